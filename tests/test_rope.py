"""Every way of scaling positions, from the config and from the command line, against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_families import check, fresh, run, tokens
from tiny_models import SHAPE, VOCAB, load, make, reference_logits, rewrite

from exltui.engine.ops.rope import RopeSpec, YarnScaling, frequencies, tables
from exltui.engine.ops.table import nmse
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ModelError

BASE = {"rope_theta": 5000.0, "original_max_position_embeddings": 64}
YARN = {**BASE, "rope_type": "yarn", "factor": 8.0}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 32,
    "short_factor": [1.0 + i / 20 for i in range(16)],
    "long_factor": [1.0 + i / 3 for i in range(16)],
}
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 3.0},
    "llama3": {**BASE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": YARN,
    "yarn-betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn-attention": {**YARN, "attention_factor": 0.9},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "longrope-long": {**BASE, **LONG},
    "longrope-attention": {**BASE, **LONG, "attention_factor": 1.3},
}


@pytest.mark.parametrize("name", CASES)
def test_scalings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, rope_parameters=CASES[name])
    check(load(tmp_path), reference)


def test_longrope_takes_the_short_factors_for_a_short_context(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, rope_parameters={**BASE, **LONG})
    ids = tokens(30)
    expected = reference_logits(reference, ids)
    got, long = (run(fresh(load(tmp_path, length=n), 1), Sequence(ids, 0, [0], "all")) for n in (32, 33))
    assert nmse(got, expected) <= 1e-9
    assert nmse(long, expected) > 1e-6


def test_a_dynamic_scaling_grows_with_what_is_loaded(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, rope_parameters=CASES["dynamic"], max_position_embeddings=128)
    ids = tokens(256)
    assert nmse(run(fresh(load(tmp_path, length=256), 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids)) <= 1e-9


@pytest.mark.parametrize("old", ["type", "rope_type"])
def test_older_files_say_it_in_rope_scaling(old: str, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, rope_parameters=YARN)
    scaling = {old: "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
    rewrite(tmp_path, lambda tensors: tensors, rope_parameters=..., rope_theta=5000.0, rope_scaling=scaling)
    check(load(tmp_path), reference)


def test_older_phi3_files_say_su_and_name_the_original_context_outside(tmp_path: Path) -> None:
    reference = make("Phi3", tmp_path, head_dim=..., rope_parameters={**BASE, **LONG, **half(LONG)}, original_max_position_embeddings=32)
    scaling = {"type": "su", **half(LONG)}
    rewrite(tmp_path, lambda tensors: tensors, rope_parameters=..., rope_theta=5000.0, rope_scaling=scaling)
    check(load(tmp_path), reference)


def half(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:8] for key, value in values.items() if key.endswith("_factor")}


def test_older_gemma3_files_scale_the_layers_without_a_window(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    }
    reference = make("Gemma3Text", tmp_path, num_hidden_layers=7, sliding_window=20, tie_word_embeddings=True, rope_parameters=parameters)
    older = {"rope_theta": 500_000.0, "rope_local_base_freq": 3000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    rewrite(tmp_path, lambda tensors: tensors, rope_parameters=..., layer_types=..., **older)
    check(load(tmp_path), reference)


@pytest.mark.parametrize(("options", "parameters"), [
    ({"rope_scale": 2.5}, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
    ({"rope_yarn": 4.0}, {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}),
    ({"rope_alpha": 3.0}, {"rope_type": "default", "rope_theta": 10000.0 * 3.0 ** (32 / 30)}),
])  # fmt: skip
def test_options_do_what_a_config_would(options: dict[str, float], parameters: dict[str, Any], tmp_path: Path) -> None:
    make("Llama", tmp_path / "plain")
    reference = make("Llama", tmp_path / "scaled", rope_parameters=parameters)
    check(load(tmp_path / "plain", **options), reference)


def test_a_context_beyond_the_positions_is_said_or_refused(tmp_path: Path) -> None:
    make("Llama", tmp_path / "llama", num_hidden_layers=1)
    assert load(tmp_path / "llama", length=1024).notes == ()
    (note,) = load(tmp_path / "llama", length=2000).notes
    assert "2,000 tokens is longer than the 1,024" in note and "--rope-yarn" in note
    for options in ({"rope_alpha": 2.0}, {"rope_scale": 2.0}, {"rope_yarn": 2.0}):
        assert load(tmp_path / "llama", length=2000, **options).notes == ()
    assert load(tmp_path / "llama", length=2000, rope_scale=1.5).notes
    with pytest.raises(ModelError, match="exclude each other"):
        load(tmp_path / "llama", rope_scale=2.0, rope_yarn=2.0)

    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 512}
    make("GPT2", tmp_path / "gpt2", **{**dict.fromkeys(SHAPE, ...), **sizes, "vocab_size": VOCAB})
    with pytest.raises(ModelError, match="learned 512 positions"):
        load(tmp_path / "gpt2", length=513)
    with pytest.raises(ModelError, match="no RoPE"):
        load(tmp_path / "gpt2", rope_yarn=2.0)


@pytest.mark.parametrize(("values", "words"), [
    ({"rope_type": "yarn", "factor": -1.0}, "factor is -1"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_position_embeddings": 64}, "16 numbers"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "low_freq_factor 4 is not below"),
    ({"rope_type": "mrope", "mrope_section": [1, 2]}, "mrope_section"),
])  # fmt: skip
def test_scalings_that_cannot_be(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    make("Llama", tmp_path, num_hidden_layers=1)
    rewrite(tmp_path, lambda tensors: tensors, rope_parameters={"rope_theta": 1e4, **values})
    with pytest.raises(ModelError, match=words):
        load(tmp_path)


def test_yarn_keeps_quick_pairs_and_divides_slow_ones() -> None:
    """By hand: pair 0 turns 4096 / 2 pi times within 4096 positions, the last one not once."""
    plain = RopeSpec(10000.0, 64)
    scaled = RopeSpec(10000.0, 64, scaling=YarnScaling(4.0, 4096))
    ratio = frequencies(plain, 1) / frequencies(scaled, 1)
    assert ratio[0] == 1 and float(ratio[-1]) == pytest.approx(4.0)
    assert bool((ratio.diff() >= 0).all())
    assert float(tables(scaled, 2).cos[0, 0]) == pytest.approx(1.1386294)  # 0.1 ln 4 + 1


def test_multimodal_positions_turn_sections_on_their_own(tmp_path: Path) -> None:
    """An image's tokens share a temporal position and have rows and columns, as Qwen2-VL's language model has it."""
    shape = {
        **SHAPE,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    config = transformers.Qwen2VLTextConfig(**shape)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    reference = transformers.Qwen2VLTextModel(config).eval()
    text = make("Qwen2", tmp_path, head_dim=16, rope_parameters=shape["rope_parameters"])
    model = load(tmp_path)
    state = {name.removeprefix("model."): value for name, value in text.state_dict().items()}
    head = state.pop("lm_head.weight")
    reference.load_state_dict(state)

    ids = tokens(40)
    planes = torch.arange(40).repeat(3, 1)
    planes[0, 10:22], planes[1, 10:22], planes[2, 10:22] = 10, 10 + torch.arange(12) // 4, 10 + torch.arange(12) % 4
    with torch.no_grad():
        expected = reference(torch.tensor([ids]), position_ids=planes.unsqueeze(1)).last_hidden_state[0] @ head.t()
    runner, step = fresh(model, 1), Step.build([Sequence(ids, 0, [0], "all")], model.device)
    plain = runner.step(step)
    seeing = replace(step.batch, planes=planes.to(torch.int32))
    got = model.decoder.forward(step.tokens, seeing, runner.cache.layers, step.logit_rows)
    assert nmse(got, expected) <= 1e-9
    assert nmse(plain, expected) > 1e-4
