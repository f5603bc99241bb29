"""Whole models on a GPU against transformers in f32: every family, RoPE scaling, weight format, cache and adapter. f16 between the rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_parity
import test_rope
import torch
from test_families import CASES, decided, run, tokens
from test_foreign import blocks, packed_experts, quantise, replaced, rows
from test_lora import ATTENTION, KINDS, adapt
from test_rtn import gptq_layer
from tiny_models import load, make, reference_logits, rewrite
from torch import Tensor

from exltui.engine.convert.rtn import write_exl2
from exltui.engine.model.loading import Model
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops.cuda import ATTEND_BITS, ATTEND_DIMS
from exltui.engine.ops.table import nmse
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda:0"
HALF = 3e-5  # kernels for few rows round x before each product too; a flipped expert, a wrong epsilon or theta gives more than 1e-4


def on_gpu(directory: Path, **options: Any) -> Model:
    return load(directory, **{"device": DEVICE, "load_as": None, "activations": None, **options})


def check(
    model: Model, texts: list[list[int]], wanted: list[Tensor], limits: tuple[float, float] = (HALF, HALF), bits: tuple[int, int] = (16, 16)
) -> Tensor:
    """A prompt and what kernels for few rows take, alone; then beside another sequence in uneven steps. Returns the logits."""
    ids, other = texts
    runner = Runner(model, KVCache(model.spec, 3, bits, model.device))
    mix, end = runner.adapters.mix(None), len(ids)
    cuts = [0, end - 12, end - 8, end - 7, end - 6, end]
    alone = torch.cat([run(runner, Sequence(ids[a:b], a, [1, 0], "all", mix)) for a, b in itertools.pairwise(cuts)]).cpu()
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a0, a1, b0, b1 in ((0, 7, 0, 1), (7, 8, 1, 20), (8, end - 1, 20, 21), (end - 1, end, 21, 22), (end - 1, end, 22, 37)):
        sequences = Sequence(ids[a0:a1], a0, [0, 1], "all", mix), Sequence(other[b0:b1], b0, [2], "all", mix)
        step = run(runner, *sequences).cpu()
        seen[0].append(step[: a1 - a0])
        seen[1].append(step[a1 - a0 :])
    for got, text in ((alone, 0), (torch.cat(seen[0][:-1]), 0), (torch.cat(seen[1]), 1)):
        error, limit = nmse(got, wanted[text]), limits[text]
        assert error < limit, f"NMSE {error:.1e}"
    heads_fit = all(layer.attention.d in ATTEND_DIMS for layer in model.spec.layers)
    adapted = bool(mix) or bits not in ATTEND_BITS
    assert adapted or bool(runner._graphs is not None and runner._graphs._captured) is heads_fit, "steps that could be graphs were not"
    return alone


def compare(directory: Path, reference: Any, count: int = 262, **options: Any) -> None:
    """The model in ``directory`` against ``reference``: no further from it than HALF, or than transformers itself is in f16, where that
    is more. The tokens leave no router a choice that rounding could make.
    """
    plain = load(directory, **options)
    texts = [decided(plain, count), decided(plain, 37, seed=2)]
    wanted, half = [reference_logits(reference, ids) for ids in texts], copy.deepcopy(reference).half()
    rounded = [nmse(reference_logits(half, ids).float(), right) for ids, right in zip(texts, wanted, strict=True)]
    check(on_gpu(directory, **options), texts, wanted, (max(HALF, rounded[0]), max(HALF, rounded[1])))


def wide(changes: dict[str, Any]) -> dict[str, Any]:
    """The same model with heads that have kernels, so that its steps become graphs. Four times the width, half the weights: what a
    product gives is as large, so that softmaxes are no sharper and rounding counts as much.
    """
    changes = {**changes, "initializer_range": 0.05}
    if "d_model" in changes:
        return {**changes, "d_model": 256, "ffn_config": {**changes["ffn_config"], "hidden_size": 256}}
    if "n_embd" in changes:
        return {**changes, "n_embd": 256}
    return {**changes, "hidden_size": 256, "head_dim": 64}


@pytest.mark.parametrize("heads", ["narrow", "wide"])
@pytest.mark.parametrize("name", [*CASES, *test_parity.CASES])
def test_a_gpu_computes_what_transformers_computes(name: str, heads: str, tmp_path: Path) -> None:
    family, changes = CASES[name] if name in CASES else test_parity.CASES[name]
    compare(tmp_path, make(family, tmp_path, **(wide(changes) if heads == "wide" else changes)))


@pytest.mark.parametrize("name", test_rope.CASES)
def test_rope_scalings(name: str, tmp_path: Path) -> None:
    compare(tmp_path, make("Llama", tmp_path, rope_parameters=test_rope.CASES[name]))


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Change = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]  # a weight -> its tensors, and what they mean


def gptq(*, act_order: bool, v2: bool) -> Change:
    def change(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        parts = gptq_layer(weight, act_order, v2)
        return parts, GptqWeight.read(parts, v2=v2).dense().float()

    return change


FORMS: dict[str, tuple[Change, dict[str, Any]]] = {
    "gptq": (gptq(act_order=False, v2=False), {"quant_method": "gptq", "bits": 4}),
    "gptq-v2-order": (gptq(act_order=True, v2=True), {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
    "awq": (quantise, {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "fp8-blocks": (blocks, {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "fp8-rows": (rows, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_quantised_weights(name: str, tmp_path: Path) -> None:
    change, config = FORMS[name]
    torch.manual_seed(0)
    reference = make("Llama", tmp_path, attention_bias=True, head_dim=64)
    rewrite(tmp_path, replaced(reference, change), quantization_config=config)
    compare(tmp_path, reference)


def test_mxfp4_experts(tmp_path: Path) -> None:
    family, changes = CASES["gpt-oss"]
    reference = make(family, tmp_path, **{**changes, "num_hidden_layers": 2})
    torch.manual_seed(1)
    rewrite(tmp_path, packed_experts(reference), quantization_config={"quant_method": "mxfp4"})
    compare(tmp_path, reference, 100)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe-some-dense", "gemma2", "phi3"])
def test_exl2_models(name: str, tmp_path: Path) -> None:
    """Against the same file on the CPU, where every format is held to transformers."""
    family, changes = CASES[name]
    make(family, tmp_path / "plain", **changes)
    write_exl2(tmp_path / "plain", tmp_path / "exl2", 4, 6)
    plain = load(tmp_path / "exl2")
    texts = [decided(plain, 262), decided(plain, 37, seed=2)]
    cpu = [run(Runner(plain, KVCache(plain.spec, 2, (16, 16), plain.device)), Sequence(ids, 0, [0, 1], "all")) for ids in texts]
    check(on_gpu(tmp_path / "exl2"), texts, cpu)


# ── caches ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

QUANTISED = [((8, 8), 1.6e-4), ((8, 4), 5e-2), ((4, 4), 5e-2)]  # as on the CPU


@pytest.mark.parametrize(("bits", "limit"), QUANTISED)
def test_quantised_caches(bits: tuple[int, int], limit: float, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, head_dim=64)
    texts = [tokens(262), tokens(37, seed=2)]
    expected = [reference_logits(reference, ids) for ids in texts]
    alone = check(on_gpu(tmp_path), texts, expected, (limit, limit), bits)
    assert nmse(alone, expected[0]) > 1e-7, "the cache was not quantised"


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", KINDS)
def test_adapters(name: str, tmp_path: Path) -> None:
    family, changes, config = KINDS[name]
    adapted = adapt(make(family, tmp_path / "model", **changes), tmp_path / "adapter", **config)
    compare(tmp_path / "model", adapted, 60, lora=(str(tmp_path / "adapter"),))


def test_jobs_with_different_adapters_in_one_step(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path / "model", head_dim=64)
    plain = reference_logits(reference, tokens(40))
    adapted = adapt(reference, tmp_path / "one", "one", target_modules=ATTENTION)
    adapt(adapted, tmp_path / "two", "two", seed=2, r=9, target_modules=["q_proj", "up_proj"])
    model = on_gpu(tmp_path / "model")
    bank = model.decoder.adapters
    for name in ("one", "two"):
        bank.load(tmp_path / name / "adapter", name)
    expected = [plain]
    for name in ("one", "two"):
        adapted.base_model.set_adapter([name])
        expected.append(reference_logits(adapted, tokens(40)))
    runner, uses = Runner(model, KVCache(model.spec, 3, (16, 16), model.device)), [(), (("one", 1.0),), (("two", 1.0),)]
    for a, b in ((0, 38), (38, 39), (39, 40)):
        step = run(runner, *(Sequence(tokens(40)[a:b], a, [i], "all", bank.mix(use)) for i, use in enumerate(uses)))
        for got, wanted in zip(step.cpu().split(b - a), expected, strict=True):
            assert nmse(got, wanted[a:b]) < HALF
