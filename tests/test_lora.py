"""LoRA adapters against transformers with PEFT: what they compute, how they mix, and that they come and go while a model runs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_families import CASES, EXACT, fresh, run, tokens
from tiny_models import load, make, reference_logits, rewrite
from torch import nn

from exltui.adapter import read_adapter
from exltui.app.observed import Observed
from exltui.app.screens.loader_lines import model_lines
from exltui.engine.generate.generator import Generator
from exltui.engine.host import Host
from exltui.engine.model.decoder import Mlp
from exltui.engine.model.loading import Model
from exltui.engine.model.lora import parse_use
from exltui.engine.model.spec import MlpSpec
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.ops.table import nmse
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence
from exltui.errors import ModelError
from exltui.models.catalog import find_adapters, find_models, resolve_adapter
from exltui.protocol import (
    AdapterDropped,
    AdapterFailed,
    AdapterLoaded,
    Done,
    DropAdapter,
    JobSpec,
    Load,
    LoadAdapter,
    Quit,
    Sampling,
    from_json,
    to_json,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapt(reference: Any, directory: Path, name: str = "default", seed: int = 1, **config: Any) -> Any:
    """``reference`` with a random adapter, which is saved to ``directory``."""
    settings = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": EVERY, **config})
    if isinstance(reference, peft.PeftModel):
        reference.add_adapter(name, settings)
        reference.base_model.set_adapter(name)
        adapted = reference
    else:
        adapted = peft.get_peft_model(reference, settings, adapter_name=name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if f".{name}" in key and ("lora" in key or "modules_to_save" in key):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(directory, selected_adapters=[name], save_embedding_layers=False)
    if name != "default":  # PEFT puts a named one into a directory of its own
        (directory / name).rename(directory.with_name(f"{directory.name}-moved"))
        directory.rmdir() if not any(directory.iterdir()) else None
        directory.with_name(f"{directory.name}-moved").rename(directory / "adapter")
    return adapted.eval()


def with_adapters(model: Model, ids: list[int], uses: Any = None) -> torch.Tensor:
    runner = fresh(model, 1)
    return run(runner, Sequence(ids, 0, [0], "all", runner.adapters.mix(uses)))


def equal(model: Model, adapted: Any, uses: Any = None) -> None:
    ids = tokens(40)
    assert nmse(with_adapters(model, ids, uses), reference_logits(adapted, ids)) <= EXACT


KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "every-linear": ("Llama", {}, {}),
    "biased": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "rank-stabilised": ("Qwen3", {}, {"use_rslora": True}),
    "patterns": ("Llama", {}, {"rank_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 2}, "alpha_pattern": {"o_proj": 20}}),
    "some-layers": ("Qwen2", {"head_dim": 16}, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]}),
    "head": ("Llama", {}, {"target_modules": [*EVERY, "lm_head"]}),
    "embedding": ("Llama", {}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole-head-and-embedding": ("Llama", {}, {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "four-norms-soft-caps": ("Gemma2", CASES["gemma2"][1], {}),
    "scaled-embedding": ("Gemma2", CASES["gemma2"][1], {"target_modules": ["embed_tokens", "o_proj"]}),
    "multipliers": ("Granite", CASES["granite"][1], {"target_modules": [*EVERY, "lm_head"]}),
    "parallel": ("Cohere", CASES["cohere-norms"][1], {}),
    "fused": ("Phi3", CASES["phi3"][1], {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]}),
    "transposed": ("GPT2", CASES["gpt2"][1], {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "beside-experts": ("Mixtral", CASES["mixtral"][1], {"target_modules": ATTENTION}),
    "no-gate": ("Starcoder2", CASES["starcoder2"][1], {"target_modules": [*ATTENTION, "c_fc", "c_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_computes_what_peft_computes(name: str, tmp_path: Path) -> None:
    family, changes, config = KINDS[name]
    reference = make(family, tmp_path / "model", **changes)
    plain = reference_logits(reference, tokens(40))
    adapted = adapt(reference, tmp_path / "adapter", **config)
    model = load(tmp_path / "model", lora=(str(tmp_path / "adapter"),))
    equal(model, adapted)
    assert nmse(with_adapters(model, tokens(40)), plain) > 1e-4
    assert nmse(with_adapters(model, tokens(40), ()), plain) <= EXACT


def test_an_adapter_follows_an_mlp_whose_features_are_sorted(tmp_path: Path) -> None:
    """As a GPU has an EXL2 MLP: what lies between its weights is in the order in which the last of them stores its rows."""
    adapted = adapt(make("Llama", tmp_path / "model"), tmp_path / "adapter")
    model = load(tmp_path / "model", lora=(str(tmp_path / "adapter"),))
    for i, layer in enumerate(model.decoder.layers):
        mlp, spec = layer.mlp, layer.spec.mlp
        assert isinstance(mlp, Mlp) and isinstance(spec, MlpSpec)
        between = torch.randperm(mlp.down.shape[1])
        gate_up = tuple(DenseWeight(weight.dense()[between]) for weight in mlp.gate_up)
        model.decoder.layers[i] = replace(layer, mlp=Mlp(gate_up, DenseWeight(mlp.down.dense()[:, between]), mlp.activation))
        model.decoder.adapters.sort(spec, between)
    equal(model, adapted)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe-some-dense"])
def test_experts_can_be_adapted(name: str, tmp_path: Path) -> None:
    """Against the same model with the changes merged into its weights: PEFT cannot target experts that transformers stacks."""
    make(CASES[name][0], tmp_path / "model", **CASES[name][1])
    shutil.copytree(tmp_path / "model", tmp_path / "merged")
    g = torch.Generator().manual_seed(3)
    pairs: dict[str, torch.Tensor] = {}

    def merge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for key, weight in tensors.items():
            if "expert" in key and "gate.weight" not in key and "expert_gate" not in key and not key.endswith("1.w3.weight"):
                rank = 2 + len(pairs) % 3
                a, b = (torch.randn(*shape, generator=g) * 0.1 for shape in ((rank, weight.shape[1]), (weight.shape[0], rank)))
                pairs[f"base_model.model.{key.replace('weight', 'lora_A.weight')}"] = a
                pairs[f"base_model.model.{key.replace('weight', 'lora_B.weight')}"] = b
                tensors[key] = weight + 6 / rank * b @ a
        return tensors

    rewrite(tmp_path / "merged", merge)
    assert len(pairs) > 30
    (tmp_path / "adapter").mkdir()
    save_file(pairs, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager")
    model = load(tmp_path / "model", lora=(str(tmp_path / "adapter"),))
    equal(model, merged)
    assert nmse(with_adapters(model, tokens(40), ()), reference_logits(merged, tokens(40))) > 1e-4


def scaled(adapted: Any, name: str, factor: float) -> None:
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.scaling:
            module.scaling[name] *= factor


def test_several_adapters_add_up_with_their_scales_each_token_its_own(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path / "model")
    plain = reference_logits(reference, tokens(40))
    adapted = adapt(reference, tmp_path / "one", "one", target_modules=ATTENTION)
    adapt(adapted, tmp_path / "two", "two", seed=2, r=9, target_modules=["q_proj", "up_proj"])
    model = load(tmp_path / "model")
    bank = model.decoder.adapters
    bank.load(tmp_path / "one" / "adapter", "one")
    bank.load(tmp_path / "two" / "adapter", "two", scale=-0.7)
    expected = {}
    for uses in (("one",), ("two",), ("one", "two")):
        adapted.base_model.set_adapter(list(uses))
        expected[uses] = reference_logits(adapted, tokens(40))
        assert nmse(with_adapters(model, tokens(40), tuple((name, 1.0) for name in uses)), expected[uses]) <= EXACT

    # In one packet: both sequences, and a third without any.
    runner = Runner(model, KVCache(model.spec, 3, (16, 16), model.device, torch.float32))
    parts = [(("one", 1.0),), (("two", 1.0),), ()]
    rows = run(runner, *(Sequence(tokens(40), 0, [i], "all", bank.mix(uses)) for i, uses in enumerate(parts))).split(40)
    for row, other in zip(rows, (expected["one",], expected["two",], plain), strict=True):
        assert nmse(row, other) <= EXACT

    scaled(adapted, "two", -0.7)
    equal(model, adapted)  # what is loaded, with its scales
    scaled(adapted, "two", 2.0)
    bank.rescale("two", -1.4)
    equal(model, adapted)
    bank.drop("one")
    bank.settle(())
    adapted.base_model.set_adapter("two")
    equal(model, adapted)
    bank.load(tmp_path / "one" / "adapter", "one", scale=0.0)
    equal(model, adapted)
    with pytest.raises(ModelError, match="no adapter 'three'; loaded are two, one"):
        bank.mix((("three", 1.0),))


def generator(model: Model) -> Generator:
    tokenizer = SimpleNamespace(
        eos_ids=frozenset(), adds_bos=False, decode=lambda ids: "x" * len(ids), size=model.spec.vocab, ids_with=None
    )
    return Generator(Runner(model, KVCache(model.spec, 8, (16, 16), model.device, torch.float32)), tokenizer, 1024, 64)  # type: ignore[arg-type]


def finish(jobs: Generator, count: int) -> dict[str, tuple[int, ...]]:
    done: dict[str, tuple[int, ...]] = {}
    while len(done) < count:
        done.update({event.id: event.token_ids for event in jobs.advance() if isinstance(event, Done)})
    return done


def test_jobs_keep_to_their_adapters_and_share_no_pages_with_others(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path / "model")
    prompt = tokens(300)

    def greedy(found: Any) -> tuple[int, ...]:
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(reference_logits(found, ids)[-1].argmax()))
        return tuple(ids[300:])

    plain = greedy(reference)
    adapted = adapt(reference, tmp_path / "adapter")
    with_it = greedy(adapted)
    scaled(adapted, "default", 2.0)
    with_more = greedy(adapted)
    assert len({plain, with_it, with_more}) == 3

    model = load(tmp_path / "model")
    bank, jobs = model.decoder.adapters, generator(model)
    spec = {"prompt_ids": tuple(prompt), "sampling": Sampling(temperature=0.0), "max_new_tokens": 5}
    jobs.submit(JobSpec("plain", **spec))
    jobs.advance()
    bank.load(tmp_path / "adapter", "it")
    bank.settle(jobs.slots)
    jobs.submit(JobSpec("with", **spec))
    jobs.submit(JobSpec("without", adapters=(), **spec))
    jobs.submit(JobSpec("more", adapters=(("it", 2.0),), **spec))
    assert finish(jobs, 4) == {"plain": plain, "with": with_it, "without": plain, "more": with_more}

    jobs.submit(JobSpec("again", **spec))
    jobs.advance()
    bank.drop("it")
    bank.settle(jobs.slots)  # the job that runs keeps it
    jobs.submit(JobSpec("after", **spec))
    assert finish(jobs, 2) == {"again": with_it, "after": plain}
    bank.settle(jobs.slots)
    assert bank.width == 0
    bank.load(tmp_path / "adapter", "it")  # the same name again is another adapter: no page of the old one may count
    assert bank.root(bank.mix(None)) not in ("", jobs.table.pages[0].previous)


def test_the_host_loads_rescales_and_drops_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapt(make("Llama", tmp_path / "model", num_hidden_layers=1), tmp_path / "adapter", target_modules=["q_proj"])
    model = load(tmp_path / "model")
    jobs = generator(model)
    session = SimpleNamespace(runner=jobs.runner, generator=jobs, close=lambda: None, problem="")
    monkeypatch.setattr("exltui.engine.session.open_session", lambda *arguments: session)
    events: list[Any] = []
    host = Host(events.append)
    host.start()
    where = str(tmp_path / "adapter")
    commands = [
        LoadAdapter("early", where),
        Load("model", where),
        LoadAdapter("one", where, scale=0.5),
        LoadAdapter("two", name="adapter", scale=2.0),
    ]
    commands += [
        DropAdapter("three", "adapter"),
        DropAdapter("four", "adapter"),
        LoadAdapter("five", str(tmp_path)),
        LoadAdapter("six", where, "x", 1e9),
    ]
    for command in commands:
        assert from_json(to_json(command)) == command
        host.send(command)
    while not any(getattr(event, "id", "") == "six" for event in events):
        time.sleep(0.01)
    host.send(Quit())
    assert host.join(10)
    about = [event for event in events if type(event).__name__.startswith("Adapter")]
    assert about[1] == AdapterLoaded("one", "adapter", 0.5, 4, ("q_proj",), 4 * 4 * (64 + 128))
    assert about[2] == AdapterLoaded("two", "adapter", 2.0, 4, ("q_proj",), 4 * 4 * (64 + 128))
    assert about[3] == AdapterDropped("three", "adapter")
    failed = {event.id: event.error for event in about if isinstance(event, AdapterFailed)}
    assert "no model is loaded" in failed["early"] and "no adapter 'adapter'" in failed["four"]
    assert "not an adapter" in failed["five"] and "1e+09" in failed["six"]


# ── directories ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    adapt(make("Llama", directory / "model", num_hidden_layers=1), directory / "adapter", target_modules=["q_proj", "down_proj"])
    return directory


def changed(saved: Path, target: Path, **values: Any) -> Path:
    target.mkdir()
    config = {**json.loads((saved / "adapter" / "adapter_config.json").read_text()), **values}
    (target / "adapter_config.json").write_text(json.dumps(config))
    (target / "adapter_model.safetensors").write_bytes((saved / "adapter" / "adapter_model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(("values", "words"), [
    ({"use_dora": True}, "DoRA"),
    ({"peft_type": "IA3"}, "IA3 adapter, not LoRA"),
    ({"lora_bias": True}, "a bias beside its matrices"),
    ({"layer_replication": [[0, 1]]}, "repeated"),
    ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "stacked experts"),
    ({"lora_alpha": "much"}, "does not hold numbers"),
])  # fmt: skip
def test_what_is_not_plain_lora_is_refused(saved: Path, values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_adapter(changed(saved, tmp_path / "adapter", **values))
    assert caught.value.hint


def test_adapters_of_other_models_are_refused(saved: Path, tmp_path: Path) -> None:
    make("Llama", tmp_path / "wide", num_hidden_layers=1, hidden_size=32)
    with pytest.raises(ModelError, match=r"down_proj is for \(64, 96\) weights, the model has \(32, 96\)"):
        load(tmp_path / "wide", lora=(str(saved / "adapter"),))
    make("GPT2", tmp_path / "gpt2", **CASES["gpt2"][1])
    with pytest.raises(ModelError, match=r"changes model\.layers\.0"):
        load(tmp_path / "gpt2", lora=(str(saved / "adapter"),))
    make("Mixtral", tmp_path / "mixtral", **CASES["mixtral"][1])
    adapt(nn.ModuleDict({"x": nn.Linear(2, 2)}), tmp_path / "router", target_modules=["x"])
    name = "base_model.model.model.layers.0.block_sparse_moe.gate.lora_A.weight"
    tensors = {name: torch.ones(2, 64), name.replace("_A", "_B"): torch.ones(6, 2)}
    (tmp_path / "router" / "model.safetensors").write_bytes((tmp_path / "router" / "adapter_model.safetensors").read_bytes())
    (tmp_path / "router" / "config.json").write_text("{}")
    rewrite(tmp_path / "router", lambda _: tensors)
    (tmp_path / "router" / "model.safetensors").rename(tmp_path / "router" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="a router of experts, which exltui cannot run"):
        load(tmp_path / "mixtral", lora=(str(tmp_path / "router"),))


def test_pickled_and_missing_weights_are_said(saved: Path, tmp_path: Path) -> None:
    directory = changed(saved, tmp_path / "adapter")
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        read_adapter(directory)
    (directory / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match="unpickled"):
        read_adapter(directory)
    with pytest.raises(ModelError, match="not an adapter"):
        read_adapter(tmp_path)


def test_the_catalogue_lists_adapters_beside_models(saved: Path, tmp_path: Path) -> None:
    (info,) = find_adapters([saved])
    assert (info.name, info.rank, info.targets, info.problem) == ("adapter", 4, ("down_proj", "q_proj"), None)
    assert info.size == 4 * 4 * (64 + 128 + 96 + 64)
    (model,) = find_models([saved])
    assert model.name == "model" and [adapter.name for adapter in model.adapters] == ["adapter"]
    shown = "\n".join(line.plain for line in model_lines(replace(model, problem=None), Observed(time.monotonic), 0.0))
    assert "adapter       adapter: rank 4, down_proj, q_proj, 5.6 kB" in shown
    assert resolve_adapter("adapter:0.5", [saved]) == f"{saved / 'adapter'}:0.5"
    assert parse_use(resolve_adapter(str(saved / "adapter"), [])) == (str(saved / "adapter"), 1.0)
    with pytest.raises(ModelError, match="no LoRA adapter 'other'") as caught:
        resolve_adapter("other", [saved])
    assert caught.value.hint == "there are adapter"
    (broken,) = find_adapters([changed(saved, tmp_path / "broken", use_dora=True).parent])
    assert broken.problem is not None and "DoRA" in broken.problem


@pytest.mark.parametrize(("text", "use"), [("a", ("a", 1.0)), ("a:0.5", ("a", 0.5)), ("C:dir", ("C:dir", 1.0)), ("a:b:-2", ("a:b", -2.0))])
def test_a_use_is_a_directory_and_perhaps_a_scale(text: str, use: tuple[str, float]) -> None:
    assert parse_use(text) == use
