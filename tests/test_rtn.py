"""EXL2 written by ourselves: the scale search against its goldens, and quantised models from file to logits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, load, make, reference_logits
from torch import Tensor

from exltui.engine.convert.pack import Width, split_rows
from exltui.engine.convert.rtn import nearest_codes, quantise, row_order, widths_for, write_exl2
from exltui.engine.convert.scale_search import file_scale, grid_errors, search
from exltui.engine.model.config import Config
from exltui.engine.model.decoder import Decoder
from exltui.engine.model.families import read_spec
from exltui.engine.model.tensors import Checkpoint
from exltui.engine.model.weights.bits import pack_columns, pack_nibbles
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import bind
from exltui.engine.ops.table import nmse
from exltui.engine.run.cache import KVCache
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ModelError

GOLDEN = load_file(Path(__file__).parent / "data" / "golden" / "golden_quant_scale_search.safetensors")
WIDTHS = (2, 3, 4, 5, 6, 8)


def golden(bits: int) -> dict[str, Tensor]:
    return {key.removeprefix(f"b{bits}."): value for key, value in GOLDEN.items() if key.startswith(f"b{bits}.")}


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_scale_search_finds_what_the_golden_search_found(bits: int) -> None:
    expected = golden(bits)
    rows = expected["x_fp32"]
    errors, best = grid_errors(rows, bits), int(expected["best_index_i32"])
    # f32 powers against f64 ones; the two best multipliers are at least 1.4e-4 apart.
    torch.testing.assert_close(errors.float(), expected["grid_errors_fp32"], rtol=2e-5, atol=0)
    assert int(errors.argmin()) == best
    found = search(rows, bits)
    assert torch.equal(found.steps, expected["qscale_i32"])
    assert torch.equal(found.scale_max.reshape(1), expected["qscale_max_fp16"])
    assert torch.equal(found.scale, expected["scale_fp16"])
    assert torch.equal(nearest_codes(rows, found.scale, bits).to(torch.uint8), expected["rtn_codes_u8"])


def test_a_group_of_zeros_comes_back_as_zeros() -> None:
    weight = quantise(torch.zeros(32, 64), (Width(4, 1.0, 64),), torch.arange(64))
    assert torch.equal(Exl2Weight(**weight).dense(), torch.zeros(32, 64, dtype=torch.float16))


def test_scales_are_rounded_as_a_reader_rounds_them() -> None:
    steps, scale_max = torch.tensor([1, 16, 7], dtype=torch.int32), torch.tensor(0.0017299652, dtype=torch.float16)
    small = (scale_max.float() / 256).half()  # a subnormal
    assert small.view(torch.int16).item() == 0x0071
    assert torch.equal(file_scale(steps, scale_max), torch.stack([small, small * 256, small * 49]))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_written_weight_is_as_near_as_its_codes_allow(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(96, 256) * (1 + torch.arange(96).unsqueeze(1) / 30)
    order = row_order([weight])
    read = Exl2Weight(**quantise(weight, (Width(bits, 1.0, 128),), order))
    assert torch.equal(read.q_perm.long(), order)
    scale = read.scales.float().repeat_interleave(128, 0)[read.q_invperm.long()].t()
    inside = weight.abs() <= scale * ((1 << (bits - 1)) - 1)
    error = (read.dense().float() - weight).abs()
    assert bool((error <= scale * 0.5 + weight.abs() * 2**-10)[inside].all())  # half a step, and the f16 of the product
    assert inside.float().mean() > 0.8 or bits == 2


def test_codes_may_lie_elsewhere_than_their_scales() -> None:
    """A GPU gets the codes while the file is read, and the rest with the finished layer."""
    parts = quantise(torch.randn(32, 64), (Width(4, 1.0, 32),), torch.arange(64))
    weight = Exl2Weight(**{**parts, "q_weight": parts["q_weight"].to("meta")})
    assert weight.dense().device.type == "meta"


@given(k=st.integers(1, 40), share=st.floats(0.05, 0.95), group=st.sampled_from([32, 64, 128]))
def test_rows_are_handed_out_once(k: int, share: float, group: int) -> None:
    widths = (Width(5, share, 32), Width(3, 1 - share, group))
    try:
        groups = split_rows(32 * k, widths)
    except ModelError:
        return
    assert sum(rows for _, rows in groups) == 32 * k
    assert all(rows % 32 == 0 and rows <= group for _, rows in groups)
    assert [bits for bits, _ in groups] == sorted((bits for bits, _ in groups), reverse=True)


def test_group_counts_are_those_of_the_format() -> None:
    assert split_rows(96, (Width(8, 0.05, 32), Width(4, 0.95, 128))) == [(8, 32), (4, 64)]
    assert split_rows(4096, (Width(5, 0.1, 128), Width(4, 0.9, 128))) == [(5, 128)] * 4 + [(4, 128)] * 28
    with pytest.raises(ModelError, match="cannot be cut"):
        split_rows(96, (Width(4, 0.5, 32),))
    with pytest.raises(ModelError, match="cannot be cut"):
        split_rows(100, (Width(4, 1.0, 32),))


def test_fractions_of_bits_are_a_mixture_of_neighbours() -> None:
    assert [(w.bits, w.fraction) for w in widths_for(4)] == [(4, 1.0)]
    assert [(w.bits, w.fraction) for w in widths_for(7)] == [(8, 0.5), (6, 0.5)]
    for bits in (1.9, 8.1):
        with pytest.raises(ModelError, match="cannot be written"):
            widths_for(bits)


def tokens(count: int) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def f32_logits(directory: Path, ids: list[int], *, native: bool) -> Tensor:
    """A prompt and some tokens one by one, over an f32 cache."""
    config, ops = Config.read(directory), bind("cpu", native=native)
    spec, v2 = read_spec(config), config.get(str, "quantization_config.checkpoint_format", default="") == "gptq_v2"
    decoder = Decoder(spec, Checkpoint(directory, gptq_v2=v2), ops, len(ids))
    cache = KVCache(spec, 1, (16, 16), ops.device, torch.float32)
    runs = [Sequence(ids[:60], 0, [0], "all"), *(Sequence([ids[i]], i, [0]) for i in range(60, len(ids)))]
    steps = (Step.build([run], ops.device) for run in runs)
    return torch.cat([step.through(decoder, cache.layers) for step in steps])


def assert_same_model(directory: Path, ids: list[int], expected: Tensor) -> None:
    """The references multiply with the dequantised weights; kernels may leave out the rounding of each to f16."""
    assert nmse(f32_logits(directory, ids, native=False), expected) <= 1e-9
    assert nmse(f32_logits(directory, ids, native=True), expected) <= 5e-6  # measured: 8e-7


@pytest.mark.parametrize(("bits", "allowed"), [(8, 5e-3), (4.5, 0.25)])  # measured: 1.6e-3 and 9e-2
@pytest.mark.parametrize("tied", [False, True])
def test_an_exl2_model_runs_and_is_the_model_of_its_dequantised_weights(bits: float, allowed: float, tied: bool, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 192, "tie_word_embeddings": tied, "attention_bias": True}
    reference = make("Qwen3", tmp_path / "plain", dtype=torch.float16, **shape)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    (tmp_path / "plain" / "model.safetensors.index.json").write_text("{}")
    write_exl2(tmp_path / "plain", tmp_path / "exl2", bits, 6)
    files = {path.name for path in (tmp_path / "exl2").iterdir()}
    assert {"config.json", "tokenizer.json", "output.safetensors"} <= files and "model.safetensors.index.json" not in files
    settings = json.loads((tmp_path / "exl2" / "config.json").read_text())["quantization_config"]
    assert settings == {"quant_method": "exl2", "bits": bits, "head_bits": 6}

    model, ids = load(tmp_path / "exl2"), tokens(80)
    assert model.format == "exl2"
    # Group scales and the permutation come on top; they weigh more in a small layer.
    assert bits < model.bits_per_weight < bits + 0.8
    assert nmse(f32_logits(tmp_path / "exl2", ids, native=True), reference_logits(reference, ids)) < allowed

    # The same maths from plain weights that hold the dequantised values: what is left is the loading and the kernels.
    stored = load_file(tmp_path / "exl2" / "output.safetensors")
    if tied:
        reference.lm_head.weight = torch.nn.Parameter(torch.empty_like(reference.lm_head.weight))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            module = name.removesuffix(".weight")
            if f"{module}.q_weight" in stored:
                parts = {key: stored[f"{module}.{key}"] for key in ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")}
                parameter.copy_(Exl2Weight(**parts).dense()[: parameter.shape[0]].float())
    assert_same_model(tmp_path / "exl2", ids, reference_logits(reference, ids))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    make("Llama", tmp_path / "plain")
    for name in ("a", "b"):
        write_exl2(tmp_path / "plain", tmp_path / name, 3.5, 4)
    digests = {hashlib.sha256((tmp_path / name / "output.safetensors").read_bytes()).hexdigest() for name in ("a", "b")}
    assert len(digests) == 1
    with pytest.raises(ModelError, match="exists already"):
        write_exl2(tmp_path / "plain", tmp_path / "a", 3.5, 4)
    with pytest.raises(ModelError, match="is exl2 already"):
        write_exl2(tmp_path / "a", tmp_path / "c", 3.5, 4)
    assert not list(tmp_path.glob("*.partial"))


def gptq_layer(weight: Tensor, act_order: bool, v2: bool) -> dict[str, Tensor]:
    """4-bit tensors near ``weight`` [n, k], in groups of 32 rows; with ``act_order`` the groups' rows are scattered."""
    k = weight.shape[1]
    group = torch.arange(k) // 32
    if act_order:
        group = group[torch.randperm(k, generator=torch.Generator().manual_seed(5))]
    low = torch.stack([weight.t()[group == g].amin(0) for g in range(k // 32)])
    high = torch.stack([weight.t()[group == g].amax(0) for g in range(k // 32)])
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15).to(torch.int32)
    codes = ((weight.t() / scales.float()[group]).round() + zeros[group]).clamp(0, 15).to(torch.int32)
    tensors = {"qweight": pack_columns(codes, 4), "qzeros": pack_nibbles(zeros - (0 if v2 else 1)), "scales": scales}
    return {**tensors, "g_idx": group.to(torch.int32)} if act_order else tensors


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_a_gptq_model_runs_and_is_the_model_of_its_dequantised_weights(act_order: bool, v2: bool, tmp_path: Path) -> None:
    reference = make("Qwen2", tmp_path, head_dim=16, dtype=torch.float16)
    tensors = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "_proj.weight" not in name:
                continue
            layer = gptq_layer(parameter, act_order, v2)
            parameter.copy_(GptqWeight.read(layer, v2=v2).dense().float())
            del tensors[name]
            tensors.update({name.replace("weight", part): value for part, value in layer.items()})
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, ids = load(tmp_path), tokens(80)
    assert model.format == "gptq"
    assert_same_model(tmp_path, ids, reference_logits(reference, ids))
