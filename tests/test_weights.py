"""Weight formats: bit fields, and files that do not say what their format says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from exltui.engine.model.tensors import read_weight
from exltui.engine.model.weights.bits import pack_columns, pack_nibbles, unpack_columns, unpack_nibbles
from exltui.engine.model.weights.dense import DenseWeight
from exltui.errors import ModelError

GOLDEN = Path(__file__).parent / "data" / "golden"
CPU = torch.device("cpu")


def layer(name: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"golden_{name}.safetensors")
    return {key.removeprefix("layer."): value for key, value in tensors.items() if key.startswith("layer.")}


EXL2 = layer("exl2_d_288x64_all_bits")
GPTQ = layer("gptq_actorder_128x64_g32")


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), units=st.integers(1, 4), n=st.integers(1, 5), seed=st.integers(0, 1 << 16))
def test_columns_are_little_endian_bit_streams(bits: int, units: int, n: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (32 * units, n), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    words = pack_columns(codes, bits)
    assert words.shape == (units * bits, n) and words.dtype == torch.int32
    for column in range(n):
        stream = int.from_bytes(words[:, column].numpy().astype("<i4").tobytes(), "little")
        assert stream == sum(code << (i * bits) for i, code in enumerate(codes[:, column].tolist()))
    assert torch.equal(unpack_columns(words, bits, 32 * units), codes)


@given(st.lists(st.lists(st.integers(0, 15), min_size=16, max_size=16), min_size=1, max_size=4))
def test_nibbles_come_back(rows: list[list[int]]) -> None:
    values = torch.tensor(rows, dtype=torch.int32)
    words = pack_nibbles(values)
    assert words[0, 1].item() & 0xFFFFFFFF == sum(value << (4 * i) for i, value in enumerate(rows[0][8:]))
    assert torch.equal(unpack_nibbles(words), values)


@pytest.mark.parametrize("parts", [EXL2, GPTQ, {"weight": torch.ones(4, 8)}], ids=["exl2", "gptq", "dense"])
def test_preparing_for_the_cpu_keeps_what_the_file_holds(parts: dict[str, Tensor]) -> None:
    weight = read_weight(parts)
    assert weight.prepare(CPU) is weight
    assert weight.dense().shape == weight.shape
    held = sum(part.numel() * part.element_size() for name, part in parts.items() if name != "bias")
    assert weight.nbytes == held


def test_exl2_reads_the_groups_of_every_width() -> None:
    weight = read_weight(EXL2)
    assert weight.format == "exl2" and weight.shape == (64, 288)
    assert {group.bits for group in weight.groups} == {2, 3, 4, 5, 6, 8}
    assert weight.group_table.tolist() == [[g.bits, g.first, g.rows] for g in weight.groups]


def changed(parts: dict[str, Tensor], name: str, change) -> dict[str, Tensor]:
    return {**parts, name: change(parts[name].clone())}


def put(index: int, value: int):
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("q_weight", lambda t: t.float(), "q_weight is float32"),
        ("q_weight", lambda t: t.view(-1), "q_weight is int32 of shape"),
        ("q_weight", lambda t: t[:-1], "multiples of 32 rows|impossible|groups hold"),
        ("q_weight", lambda t: t[:, :40].contiguous(), "40 columns"),
        ("q_invperm", put(0, 287), "not a permutation"),
        ("q_invperm", put(5, -1), "not a permutation"),
        ("q_invperm", lambda t: t[:-1], "groups hold 288 rows"),
        ("q_scale", lambda t: t[:, 1:], "q_scale is"),
        ("q_scale_max", lambda t: t[1:], "q_scale_max has"),
        ("q_scale_max", lambda t: t.float(), "q_scale_max is float32"),
        ("q_groups", put(0, 7), "7 bits"),
        ("q_groups", put(1, 4), "begins at packed row 4|groups of 16 rows|multiples"),
        ("q_groups", put(3, 0), "impossible"),
        ("q_groups", put(3, 30000), "impossible"),
        ("q_groups", lambda t: t[:-1], "not pairs"),
        ("q_groups", lambda t: t[:0], "not pairs"),
        ("q_groups", lambda t: t.to(torch.int32), "q_groups is int32"),
    ],
)
def test_exl2_tensors_that_lie_are_refused(name: str, change, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_weight(changed(EXL2, name, change))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qweight", lambda t: t[:-1], "do not fit"),
        ("qweight", lambda t: t.to(torch.int64), "qweight is"),
        ("qweight", lambda t: t.view(-1), "qweight is"),
        ("qzeros", lambda t: t[1:], "do not fit"),
        ("scales", lambda t: t[:, 1:], "do not fit"),
        ("scales", lambda t: t[:0], "do not fit"),
        ("g_idx", put(3, 99), "g_idx names groups"),
        ("g_idx", put(3, -1), "g_idx names groups"),
        ("g_idx", lambda t: t[1:], "g_idx names groups"),
    ],
)
def test_gptq_tensors_that_lie_are_refused(name: str, change, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_weight(changed(GPTQ, name, change))


def test_a_zero_gptq_bias_and_a_zero_g_idx_count_as_none() -> None:
    weight = read_weight({**GPTQ, "bias": torch.zeros(64), "g_idx": torch.zeros(128, dtype=torch.int32)})
    assert weight.bias is None
    assert weight.g_idx.tolist() == [row // 32 for row in range(128)]


@pytest.mark.parametrize("plain", [torch.ones(3), torch.ones(3, 4, dtype=torch.int32)])
def test_a_plain_weight_is_a_matrix_of_floats(plain: Tensor) -> None:
    with pytest.raises(ModelError, match="not a matrix"):
        read_weight({"weight": plain})
    assert isinstance(read_weight({"weight": torch.ones(3, 4)}), DenseWeight)
