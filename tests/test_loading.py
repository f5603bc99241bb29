"""From a directory to a model: what loading says, counts and refuses."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, load, make
from torch import Tensor

from exltui.engine.model import memory
from exltui.engine.model.config import Config
from exltui.engine.model.decoder import Decoder
from exltui.engine.model.families import FAMILIES, read_spec
from exltui.engine.model.loading import load_model, resolve_device
from exltui.engine.model.spec import ArchSpec
from exltui.engine.model.tensors import Checkpoint
from exltui.engine.ops import bind
from exltui.engine.ops.rope import LinearScaling
from exltui.engine.ops.table import nmse, recording, verify
from exltui.engine.run.cache import KVCache
from exltui.engine.run.step import Sequence, Step
from exltui.errors import Cancelled, CheckpointError, DeviceError, ExltuiError, ModelError
from exltui.protocol import LoadOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    make("Llama", directory, attention_bias=True, max_position_embeddings=16384)
    return directory


@pytest.fixture
def broken(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def change_tensors(directory: Path, **changes: Tensor | None) -> None:
    """Replace (or, with None, drop) tensors; ``__`` in a name is a dot."""
    path = directory / "model.safetensors"
    tensors: dict[str, Any] = {**load_file(path), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


# ── what a model is ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_transformers_counts_them(family: str, tied: bool, tmp_path: Path) -> None:
    heads = {"head_dim": 16} if family == "Qwen2" else {}
    reference = make(family, tmp_path, tie_word_embeddings=tied, **heads)
    model = load(tmp_path)
    assert model.parameters == reference.num_parameters()
    assert model.format == "f32" and model.bits_per_weight == 32
    assert model.nbytes == 4 * reference.num_parameters()
    assert (model.decoder.head.dense().data_ptr() == model.decoder.embedding.data_ptr()) == tied


def test_the_starter_model_is_what_its_makers_say(starter_model: Path) -> None:
    model = load(starter_model)
    assert model.parameters == 134_515_008
    assert model.format == "f16" and model.bits_per_weight == 16
    assert model.context == model.spec.trained_context == 8192


def test_weights_stay_in_the_file_until_they_are_used(original: Path) -> None:
    model = load(original)
    maps = Path("/proc/self/maps").read_text()
    ranges = [line.split()[0].split("-") for line in maps.splitlines() if line.endswith(str(original / "model.safetensors"))]
    for weight in (model.decoder.head, model.decoder.layers[0].mlp.down):
        address = weight.dense().data_ptr()
        assert any(int(first, 16) <= address < int(last, 16) for first, last in ranges)


def test_the_context_is_the_models_own_up_to_a_limit_or_what_was_asked_for(original: Path, broken: Path) -> None:
    assert load(original).context == 8192
    assert load(original, length=12000).context == 12000
    change_config(broken, max_position_embeddings=512)
    assert load(broken).context == 512


def test_progress_counts_every_byte_and_cancelling_stops_it(original: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load_model(original, LoadOptions(device="cpu"), lambda *step: seen.append(step), lambda: False)
    done = [step[1] for step in seen]
    total = sum(info.nbytes for info in Checkpoint(original).infos.values())
    assert {step[0] for step in seen} == {"weights"} and {step[2] for step in seen} == {total}
    assert done == sorted(done) and done[0] == 0 and done[-1] == total and len(done) > 20

    steps: list[int] = []
    with pytest.raises(Cancelled):
        load_model(original, LoadOptions(device="cpu"), lambda _, now, all_: steps.append(now), lambda: len(steps) > 3)
    assert len(steps) == 4


def test_kernels_and_references_agree_within_the_rows_tolerances(original: Path) -> None:
    spec = read_spec(Config.read(original))
    ids = list(range(1, 40))
    results = []
    for native in (True, False):
        ops = bind(CPU, native=native)
        decoder = Decoder(spec, Checkpoint(original), ops, 64)
        cache = KVCache(spec, 1, (16, 16), CPU, torch.float32)
        calls: list[Any] = []
        with recording(ops, calls):
            for start, stop in ((0, 30), (30, 39)):  # many rows, few rows
                step = Step.build([Sequence(ids[start:stop], start, [0], "all")], CPU)
                logits = step.through(decoder, cache.layers)
        assert len(calls) == 2 * (2 + 6 * len(spec.layers))
        worst = verify(calls)
        assert all(error <= 1e-6 for error in worst.values()), worst
        results.append(logits)
    assert nmse(*results) <= 1e-9


@pytest.mark.parametrize(("options", "change"), [({"rope_scale": 2.0}, "scale"), ({"rope_alpha": 4.0}, "alpha")])
def test_rope_options_replace_what_the_model_says(original: Path, options: dict[str, float], change: str) -> None:
    ropes = {layer.attention.rope for layer in load(original, **options).spec.layers}
    assert len(ropes) == 1
    rope = ropes.pop()
    assert rope is not None
    if change == "scale":
        assert rope.scaling == LinearScaling(2.0)
    else:
        assert rope.alpha == 4.0
    for impossible in (0.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="impossible"):
            load(original, **dict.fromkeys(options, impossible))


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def refuse(directory: Path, words: str, error: type[ExltuiError] = ModelError, **options: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        load(directory, **options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_no_model(tmp_path: Path, broken: Path) -> None:
    refuse(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, "cannot be read as JSON")
    (tmp_path / "config.json").write_text("[1]")
    refuse(tmp_path, "does not hold a JSON object")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    refuse(tmp_path, "cannot be read as JSON")
    (broken / "model.safetensors").unlink()
    refuse(broken, "no .safetensors file", CheckpointError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ...}, "must name one architecture"),
        ({"architectures": ["A", "B"]}, "must name one architecture"),
        ({"architectures": [7]}, "must name one architecture"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not known"),
        ({"hidden_size": ...}, "no hidden_size"),
        ({"hidden_size": "64"}, "hidden_size in config.json is '64', not int"),
        ({"hidden_size": True}, "not int"),
        ({"hidden_size": 64.5}, "not int"),
        ({"num_attention_heads": 0}, "must be from 1"),
        ({"num_key_value_heads": 3}, "4 heads .* over 3"),
        ({"head_dim": 31}, "width 31"),
        ({"num_hidden_layers": 10**9}, "must be from 1 to 10,000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"rope_parameters": {"rope_type": "quantum", "rope_theta": 1e4}}, "quantum"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "no factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, "theta -5"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"hidden_size": 32}, "config.json says"),
        ({"num_hidden_layers": 5}, r"model.layers.3.self_attn.q_proj and 13 others is missing"),
        ({"vocab_size": 50}, "config.json says"),
    ],
)
def test_a_config_that_cannot_be_run(broken: Path, changes: dict[str, Any], words: str) -> None:
    change_config(broken, **changes)
    refuse(broken, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lm_head__weight": None}, "lm_head is missing"),
        ({"model__norm__weight": None}, "model.norm.weight is missing"),
        ({"model__norm__weight": torch.ones(63)}, "63 values, expected 64"),
        ({"model__layers__1__mlp__down_proj__weight": torch.ones(96, 64)}, r"down_proj is \(96, 64\)"),
        ({"model__layers__1__mlp__down_proj__weight": torch.ones(64 * 96)}, "not a matrix"),
        ({"model__layers__1__mlp__down_proj__weight": torch.ones(64, 96, dtype=torch.float64)}, "dtype F64"),
        ({"model__layers__1__mlp__down_proj__weight": torch.ones(64, 96, dtype=torch.int32)}, "not a matrix"),
        ({"model__layers__0__self_attn__q_proj__bias": torch.ones(7)}, "with 7 biases"),
    ],
)
def test_weights_that_do_not_fit(broken: Path, changes: dict[str, Any], words: str) -> None:
    change_tensors(broken, **changes)
    refuse(broken, words)


def test_head_norms_may_be_repeated_for_each_head_as_in_exl2_files(tmp_path: Path) -> None:
    make("Qwen3", tmp_path)
    plain = load(tmp_path).decoder.layers[1].heads
    assert plain.q_norm is not None and plain.k_norm is not None
    name = "model__layers__1__self_attn__q_norm__weight"
    change_tensors(tmp_path, **{name: plain.q_norm.weight.repeat(4, 1), name.replace("q_norm", "k_norm"): plain.k_norm.weight.repeat(2, 1)})
    again = load(tmp_path).decoder.layers[1].heads
    assert again.q_norm is not None and torch.equal(again.q_norm.weight, plain.q_norm.weight)
    assert again.k_norm is not None and torch.equal(again.k_norm.weight, plain.k_norm.weight)
    change_tensors(tmp_path, **{name: torch.arange(128.0).view(4, 32)})
    refuse(tmp_path, "q_norm.weight differs from head to head")
    change_tensors(tmp_path, **{name: torch.ones(3, 32)})
    refuse(tmp_path, "96 values, expected 32")
    change_tensors(tmp_path, **{name: None})
    refuse(tmp_path, "q_norm.weight is missing")


def test_a_truncated_file_is_refused_before_it_is_mapped(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(broken, "model.safetensors", CheckpointError)


def test_positions_that_do_not_fit_into_memory_are_refused(original: Path) -> None:
    refuse(original, "17,592,186,044,416 positions takes .* GB free", DeviceError, length=1 << 44)


def test_an_allocation_that_fails_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", Path("/nowhere"))
    assert memory.free_memory(CPU) is None
    with pytest.raises(DeviceError, match="not enough memory on cpu for a test"), memory.room_for("a test", 1 << 60, CPU, "less"):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="another"), memory.room_for("a test", 0, CPU, "less"):
        raise RuntimeError("another")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "cuda:7" if torch.cuda.device_count() < 8 else "cuda:99"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(DeviceError, match=name) as caught:
        resolve_device(name)
    assert "cpu" in caught.value.hint
    assert resolve_device("cpu") == CPU


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [*SHAPE, "architectures", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "hidden_act"]
KEYS += ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "text_config", "block_configs", "no_rope_layers"]
EVERYTHING = {  # what some families cannot do without
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "ffn_config": {"ffn_hidden_size": 32}, "num_key_value_heads_per_layer": [1, 2, 4],
}  # fmt: skip
KEYS += [*EVERYTHING, "attn_config", "mlp_only_layers", "norm_head", "scale_depth", "moe_layer_start_index", "sliding_window_pattern"]


@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_config_gets_past_with_anything_but_a_spec_or_a_sentence(family: str, changes: dict[str, Any]) -> None:
    values = {**SHAPE, **EVERYTHING, "rms_norm_eps": 1e-5, "architectures": [family], **changes}
    config = Config(copy.deepcopy(values), "model")
    with contextlib.suppress(ModelError):
        spec = read_spec(config)
        assert isinstance(spec, ArchSpec) and len(spec.linears()) >= 4 * len(spec.layers) + 1


def test_an_unknown_architecture_is_told_from_the_nearest_known_one() -> None:
    values = {**SHAPE, "rms_norm_eps": 1e-5, "architectures": ["NovelForCausalLM"], "sliding_window": 8, "novel_layers": 4}
    with pytest.raises(ModelError, match="the settings of MistralForCausalLM and novel_layers"):
        read_spec(Config(values, "model"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loading_to_a_gpu_takes_f16_and_shares_a_tied_head(tmp_path: Path) -> None:
    make("Llama", tmp_path, tie_word_embeddings=True, dtype=torch.bfloat16)
    model = load_model(tmp_path, LoadOptions(device="cuda:0"), lambda *_: None, lambda: False)
    assert {weight.dense().dtype for weight in model.decoder.weights} == {torch.float16}
    assert model.decoder.head.dense().data_ptr() == model.decoder.embedding.data_ptr()
    refuse(tmp_path, "GB free", DeviceError, device="cuda:0", length=1 << 40)


def test_the_documentation_names_every_family_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+(?:ForCausalLM|LMHeadModel|ForConditionalGeneration))`", text)) == set(FAMILIES)
