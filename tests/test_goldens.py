"""Golden vectors of the formats, bit for bit. They were checked against the reference implementation's GPU build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from exltui.engine.model.tensors import read_weight
from exltui.engine.model.weights.bits import pack_columns, unpack_columns
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import kv_codec

GOLDEN = Path(__file__).parent / "data" / "golden"
EXL2 = sorted(path.stem for path in GOLDEN.glob("golden_exl2_*"))
GPTQ = sorted(path.stem for path in GOLDEN.glob("golden_gptq_*"))


def load(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("layer."): value for key, value in tensors.items() if key.startswith("layer.")}


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", EXL2)
def test_exl2_dequantises_to_the_same_bits(name: str) -> None:
    tensors = load(name)
    weight = Exl2Weight(**layer(tensors))
    assert_same_bits(weight.dense().t(), tensors["expected.weight_fp16"])
    assert_same_bits(weight.stored(), tensors["expected.weight_fp16_stored_order"])
    assert_same_bits(weight.q_perm, tensors["expected.q_perm_i32"])


@pytest.mark.parametrize("prescale", ["0.22", "0.0625"])
def test_exl2_folds_the_model_scale_into_its_scales(prescale: str) -> None:
    tensors = load("golden_exl2_d_288x64_all_bits")
    weight = Exl2Weight(**layer(tensors), prescale=float(prescale))
    assert_same_bits(weight.dense().t(), tensors[f"expected.weight_fp16_prescale_{prescale}"])


@pytest.mark.parametrize("name", EXL2)
def test_exl2_codes_pack_to_the_file_again(name: str) -> None:
    tensors = load(name)
    weight = Exl2Weight(**layer(tensors))
    codes, row = tensors["expected.codes_u8_stored_order"], 0
    for group in weight.groups:
        words = weight.q_weight[group.first : group.first + group.rows * group.bits // 32]
        here = codes[row : row + group.rows].to(torch.int32)
        assert torch.equal(unpack_columns(words, group.bits, group.rows), here)
        assert torch.equal(pack_columns(here, group.bits), words)
        row += group.rows


@pytest.mark.parametrize("name", GPTQ)
@pytest.mark.parametrize("v2", [False, True])
def test_gptq_dequantises_to_the_same_bits(name: str, v2: bool) -> None:
    tensors = load(name)
    weight = GptqWeight.read(layer(tensors), v2=v2)
    assert_same_bits(weight.dense().t(), tensors["expected.weight_fp16_v2_same_bits" if v2 else "expected.weight_fp16_v1"])


@pytest.mark.parametrize("bits", [4, 8])
def test_kv_cache_codes_scales_and_values_are_the_same_bits(bits: int) -> None:
    tensors = load("golden_kv_cache")
    values = tensors["input_fp16"]
    assert_same_bits(kv_codec.rotate(values), tensors["rotated_fp16"])
    codes, scales = kv_codec.quantise(values, bits)
    assert_same_bits(codes, tensors[f"q{bits}.data_u8"])
    assert_same_bits(scales, tensors[f"q{bits}.scales_fp16"])
    assert_same_bits(kv_codec.dequantise(codes, scales, bits), tensors[f"q{bits}.dequant_fp16"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*EXL2, *GPTQ])
def test_a_gpu_dequantises_to_the_same_bits(name: str) -> None:
    tensors = load(name)
    on_gpu = read_weight(layer(tensors)).prepare(torch.device("cuda:0")).dense()
    assert on_gpu.device.type == "cuda"
    assert_same_bits(on_gpu.t().cpu(), tensors["expected.weight_fp16" if name in EXL2 else "expected.weight_fp16_v1"])
