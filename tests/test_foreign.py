"""Formats that others write: AWQ, GPTQ of other widths, FP8, MXFP4, each against what its words say, and in a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import CASES, fresh, run, tokens
from tiny_models import load, make, reference_logits, rewrite
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from exltui.engine.model.weights.foreign import dense_gptq, from_awq, from_fp8
from exltui.engine.ops.table import nmse
from exltui.engine.run.step import Sequence
from exltui.errors import ModelError
from exltui.models.catalog import read_model


def words(rows: list[list[int]], bits: int) -> Tensor:
    """Each row of codes as one little-endian bit stream in 32-bit words -> [rows, words] i32."""
    found = []
    for row in rows:
        stream = sum(code << (i * bits) for i, code in enumerate(row))
        found.append([(stream >> (32 * i)) & 0xFFFFFFFF for i in range(len(row) * bits // 32)])
    wide = torch.tensor(found, dtype=torch.int64)
    return torch.where(wide >= 1 << 31, wide - (1 << 32), wide).to(torch.int32)


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gptq_of_other_widths(bits: int, v2: bool) -> None:
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (64, 32), generator=g)  # [k, n]
    zeros = torch.randint(0, 1 << bits, (4, 32), generator=g)
    scales = (torch.rand(4, 32, generator=g) * 0.1).half()
    g_idx = torch.randint(0, 4, (64,), generator=g, dtype=torch.int32)
    parts = {
        "qweight": words(codes.t().tolist(), bits).t().contiguous(),
        "qzeros": words(zeros.tolist(), bits),
        "scales": scales,
        "g_idx": g_idx,
    }
    expected = ((codes - zeros[g_idx.long()] - (0 if v2 else 1)).float() * scales.float()[g_idx.long()]).half().t()
    assert torch.equal(dense_gptq(parts, bits, v2=v2).dense(), expected)
    with pytest.raises(ModelError, match="do not fit"):
        dense_gptq({**parts, "qzeros": parts["qzeros"][1:]}, bits, v2=v2)


def awq(codes: Tensor) -> Tensor:
    """[rows, n] -> words in which columns 0, 2, 4, 6, 1, 3, 5, 7 of eight follow each other."""
    return words(codes.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1).tolist(), 4)


def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A weight [n, k] in AWQ's form, groups of 32 rows, and what that means."""
    n, k = weight.shape
    grouped = weight.t().reshape(k // 32, 32, n)
    low, high = grouped.amin(1), grouped.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15).int()
    codes = (grouped / scales.float().unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15).int()
    values = ((codes - zeros.unsqueeze(1)).float() * scales.float().unsqueeze(1)).half().float().reshape(k, n).t()
    return {"qweight": awq(codes.reshape(k, n)), "qzeros": awq(zeros), "scales": scales}, values


def test_awq_is_gptq_in_another_order() -> None:
    parts, values = quantise(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(from_awq(parts).dense().float(), values)
    with pytest.raises(ModelError, match="do not fit"):
        from_awq({**parts, "scales": parts["scales"][:, 1:]})
    with pytest.raises(ModelError, match="qweight is"):
        from_awq({**parts, "qweight": parts["qweight"].long()})


def replaced(reference, change) -> object:
    """Every linear layer of the decoder in another form: ``change(weight)`` gives (its tensors, what they mean)."""

    def rewritten(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(tensors)
        for name, module in reference.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                parts, module.weight.data = change(module.weight.data)
                del found[f"{name}.weight"]
                found.update({f"{name}.{part}": value for part, value in parts.items()})
        return found

    return rewritten


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_an_awq_model_runs(family: str, tmp_path: Path) -> None:
    name, changes = {"llama": ("Llama", {"attention_bias": True}), "phi3": CASES["phi3"]}[family]
    reference = make(name, tmp_path, **changes)
    rewrite(tmp_path, replaced(reference, quantise), quantization_config={"quant_method": "awq", "bits": 4, "version": "gemm"})
    ids = tokens(50)
    model = load(tmp_path)
    assert model.format == "gptq"
    # The kernels do not round each unpacked value to f16 as the format's definition does.
    assert nmse(run(fresh(model, 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids)) <= 2e-6


def blocks(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    n, k = weight.shape
    scale = torch.rand(-(-n // 32), -(-k // 32)) * 0.1 + 0.05
    wide = scale.repeat_interleave(32, 0)[:n].repeat_interleave(32, 1)[:, :k]
    codes = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, (codes.float() * wide).half().float()


def rows(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, (codes.float() * scale).half().float()


@pytest.mark.parametrize(("change", "config"), [
    (blocks, {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    (rows, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
])  # fmt: skip
def test_an_fp8_model_runs(change, config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = make("Qwen3", tmp_path)
    rewrite(tmp_path, replaced(reference, change), quantization_config=config)
    ids = tokens(50)
    assert nmse(run(fresh(load(tmp_path), 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids)) <= 1e-9


def test_fp8_blocks_may_be_short_at_the_end() -> None:
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3)
    got = from_fp8(weight, scale)
    assert torch.equal(got[130, 290], (weight[130, 290].float() * scale[1, 2]).half())
    assert torch.equal(got[127, 255], (weight[127, 255].float() * scale[0, 1]).half())
    with pytest.raises(ModelError, match="do not fit"):
        from_fp8(weight[:1], scale)


def packed_experts(reference: Any) -> Any:
    """Random MXFP4 experts in place of those of ``reference``, which has GPT-OSS's names."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for i, layer in enumerate(reference.model.layers):
            for name in ("gate_up_proj", "down_proj"):
                e, k, n = tensors.pop(f"model.layers.{i}.mlp.experts.{name}").shape
                codes = torch.randint(0, 256, (e, n, k // 32, 16), dtype=torch.uint8)
                scales = torch.randint(121, 126, (e, n, k // 32), dtype=torch.uint8)
                getattr(layer.mlp.experts, name).data = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
                tensors[f"model.layers.{i}.mlp.experts.{name}_blocks"] = codes
                tensors[f"model.layers.{i}.mlp.experts.{name}_scales"] = scales
        return tensors

    return change


def test_mxfp4_experts_are_unpacked_as_transformers_does(tmp_path: Path) -> None:
    family, changes = CASES["gpt-oss"]
    reference = make(family, tmp_path, **{**changes, "num_hidden_layers": 2})
    torch.manual_seed(1)
    rewrite(tmp_path, packed_experts(reference), quantization_config={"quant_method": "mxfp4"})
    (tmp_path / "tokenizer.json").touch()
    info = read_model(tmp_path)
    assert (info.format, info.parameters) == ("mxfp4", reference.num_parameters())
    ids = tokens(50)
    assert nmse(run(fresh(load(tmp_path), 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids)) <= 1e-9


@pytest.mark.parametrize(("config", "words"), [
    ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
    ({"quant_method": "awq", "version": "gemv"}, "'awq' in the form 'gemv'"),
    ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'gptq' in the form 'marlin'"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "'pack-quantized'"),
])  # fmt: skip
def test_what_cannot_be_run_is_named(config: dict[str, str], words: str, tmp_path: Path) -> None:
    make("Llama", tmp_path, num_hidden_layers=1)
    rewrite(tmp_path, lambda tensors: tensors, quantization_config=config)
    with pytest.raises(ModelError, match=words):
        load(tmp_path)
