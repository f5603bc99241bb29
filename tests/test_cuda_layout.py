"""The order in which CUDA kernels read weights: each code lies where their own rule looks for it, and a GPU packs the same words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from op_cases import MIXES, exl2, gptq
from safetensors.torch import load_file

from exltui.engine.model.weights.bits import unpack_columns
from exltui.engine.model.weights.exl2 import PARTS, Exl2Weight
from exltui.engine.model.weights.packed import pack_exl2, pack_gptq
from exltui.engine.ops import build, cuda_layout
from exltui.engine.ops.cuda_layout import WIDTHS, inverse_order, pack_codes, pack_scales, shared_order

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "data" / "golden"


def field(words: list[int], bits: int, pair: int, high: bool) -> int:
    """What the kernel takes for half ``high`` of pair ``pair`` from a lane's words: numbers.cuh, ``unpack``, in plain Python."""
    halves = [(word & 0xFFFFFFFF) >> (16 if high else 0) & 0xFFFF for word in words]
    whole = 16 // bits
    if pair < whole * bits:
        return halves[pair // whole] >> (pair % whole * bits) & ((1 << bits) - 1)
    if bits in (3, 5):
        return sum((halves[j] >> 15) << j for j in range(bits))
    group, second = divmod(pair - 12, 2)
    low, shared = halves[3 * group + second] >> 12, halves[3 * group + 2] >> (12 + 2 * second) & 3
    return low | shared << 4


def lane_words(tile: list[int], bits: int, lane: int) -> list[int]:
    """A lane's words of a tile: planes of four words a lane, then two, then one, as ``load_tile`` reads them."""
    words, at = [], 0
    for width in (4, 2, 1):
        while bits - at >= width:
            words += tile[at * 32 + lane * width :][:width]
            at += width
    return words


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_lies_where_the_tensor_cores_want_it(bits: int) -> None:
    n, k = 64, 96
    codes = torch.randint(0, 1 << bits, (n, k), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    tiles = pack_codes(codes, bits).view(n // 32, k // 32, bits * 32).tolist()
    table = codes.tolist()
    for column in range(n // 32):
        for tile in range(k // 32):
            for lane in (0, 1, 6, 13, 31):
                words = lane_words(tiles[column][tile], bits, lane)
                for pair in range(16):
                    m, s, r = pair // 8, pair // 4 % 2, pair % 4
                    row = column * 32 + 16 * m + 8 * (r % 2) + lane // 4
                    feature = tile * 32 + 8 * (lane % 4) + 4 * s + 2 * (r // 2)
                    assert field(words, bits, pair, False) == table[row][feature]
                    assert field(words, bits, pair, True) == table[row][feature + 1]


def test_scales_of_a_lane_are_those_of_its_four_rows() -> None:
    scales = torch.randn(3, 64).half()
    packed = pack_scales(scales)
    for group, lane, i in ((0, 0, 0), (1, 5, 3), (2, 31, 2)):
        for column in range(2):
            assert packed[column, group, lane // 4, i] == scales[group, column * 32 + lane // 4 + 8 * i]


@pytest.mark.parametrize("mix", MIXES)
def test_a_packed_exl2_weight_is_the_weight_bit_for_bit(mix: str) -> None:
    weight = exl2(torch.Generator().manual_seed(3), 96, MIXES[mix])
    packed = pack_exl2(weight, shared_order(weight.q_perm, CPU))
    assert packed.shape == weight.shape and packed.format == "exl2"
    assert torch.equal(packed.dense(), weight.dense())
    assert [panel.tag for panel in packed.panels] == list(dict.fromkeys(bits for bits, _ in MIXES[mix]))


def test_the_rows_of_a_packed_weight_may_be_sorted() -> None:
    """An MLP's weights before the last are packed in the order of the last one's stored rows, which then needs none."""
    down = exl2(torch.Generator().manual_seed(4), 64, MIXES["exl2-all"])
    up = exl2(torch.Generator().manual_seed(5), down.shape[1], MIXES["exl2-53"], bias=True)
    between = down.q_perm.long()
    packed = pack_exl2(up, shared_order(up.q_perm, CPU), between)
    assert up.bias is not None and packed.bias is not None
    assert torch.equal(packed.dense(), up.dense()[between]) and torch.equal(packed.bias, up.bias[between])
    assert torch.equal(pack_exl2(down, None).dense(), down.dense()[:, between])


@pytest.mark.parametrize("name", ["a_96x32_8_4_2", "b_128x64_5_3", "d_288x64_all_bits"])
def test_a_packed_golden_layer_is_the_golden_weight(name: str) -> None:
    tensors = load_file(GOLDEN / f"golden_exl2_{name}.safetensors")
    weight = Exl2Weight.read({part: tensors[f"layer.{part}"] for part in PARTS})
    assert torch.equal(pack_exl2(weight, shared_order(weight.q_perm, CPU)).dense(), tensors["expected.weight_fp16"].t())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_a_packed_gptq_weight_is_the_weight_bit_for_bit(act_order: bool, v2: bool) -> None:
    weight = gptq(torch.Generator().manual_seed(4), 64, 256, 64, act_order=act_order, v2=v2)
    packed = pack_gptq(weight)
    assert packed is not None and (packed.order is None) is not act_order
    assert torch.equal(packed.dense(), weight.dense())


def test_gptq_groups_that_are_no_tiles_are_left_to_fp16() -> None:
    weight = gptq(torch.Generator().manual_seed(5), 32, 64, 16)
    assert pack_gptq(weight) is None


def test_equal_permutations_share_one_tensor() -> None:
    permutation = torch.randperm(64, generator=torch.Generator().manual_seed(6))
    first, second = shared_order(permutation, CPU), shared_order(permutation.clone(), CPU)
    assert first is second and first is not shared_order(permutation.flip(0), CPU)
    assert shared_order(torch.arange(64), CPU) is None


def test_high_features_survive_the_sixteen_bit_order() -> None:
    permutation = torch.arange(65536).flip(0)
    order = shared_order(permutation, CPU)
    assert order is not None and torch.equal(order.long() & 0xFFFF, permutation)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("n", "tiles"), [(32, 1), (96, 3), (4096, 7)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_gpu_repacks_to_the_words_that_torch_packs(bits: int, n: int, tiles: int) -> None:
    build.load("cuda")
    words = torch.randint(-(2**31), 2**31, (tiles * bits, n), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    expected = pack_codes(unpack_columns(words, bits, 32 * tiles).to(torch.uint8).t().contiguous(), bits)
    assert torch.equal(torch.ops.exltui_cuda.repack(words.cuda(), bits).cpu(), expected)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (128, 64), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    whole = pack_codes(codes, 4)
    monkeypatch.setitem(cuda_layout._SLAB, "cpu", 1)
    assert torch.equal(pack_codes(codes, 4), whole)


def test_an_order_has_its_inverse_ready() -> None:
    permutation = torch.randperm(40_000, generator=torch.Generator().manual_seed(3))  # beyond what an i16 counts
    order = shared_order(permutation, torch.device("cpu"))
    assert order is not None
    inverse = inverse_order(order)
    assert inverse is inverse_order(order)
    assert torch.equal((inverse.long() & 0xFFFF)[permutation], torch.arange(40_000))
