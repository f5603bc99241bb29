"""What is reckoned from a model's files: the memory that it will need, and the settings that it recommends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exltui.models.plan import cache_bytes, plan
from exltui.models.recommended import recommended
from exltui.protocol import LoadOptions, Sampling

LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_the_cache_of_a_token_is_layers_times_heads_times_bits(model):
    assert cache_bytes(model, "fp16") == 32 * 8 * 128 * 32 / 8
    assert cache_bytes(model, "q8") == 32 * 8 * 128 * 17 / 8
    assert cache_bytes(model, "8,4") == 32 * 8 * 128 * 13 / 8
    assert cache_bytes(model, "rubbish") is None
    assert cache_bytes(model / "nowhere", "fp16") is None


def test_a_plan_says_what_fits(model):
    found = plan(model, 5_000_000_000, 131_072, LoadOptions(), free=8_000_000_000)
    assert found.length == 8192
    assert found.cache == 8192 * 131_072
    assert found.fits
    assert found.longest % 256 == 0
    assert plan(model, 5_000_000_000, 131_072, LoadOptions(length=found.longest), free=8_000_000_000).fits
    assert not plan(model, 5_000_000_000, 131_072, LoadOptions(length=found.longest + 512), free=8_000_000_000).fits
    assert plan(model, 5_000_000_000, None, LoadOptions()).fits is None


def test_recommended_settings_are_taken_and_nonsense_is_not(tmp_path):
    file = tmp_path / "generation_config.json"
    assert recommended(tmp_path) is None
    file.write_text(json.dumps({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "do_sample": True}))
    plain = {"min_p": 0.0, "token_repetition_penalty": 1.1}
    assert recommended(tmp_path) == Sampling(temperature=0.6, top_k=20, top_p=0.95, **plain)
    for nonsense in ({"eos_token_id": 2}, {"temperature": -4}, {"top_k": "many"}, []):
        file.write_text(json.dumps(nonsense))
        assert recommended(tmp_path) is None
    file.write_text("{")
    assert recommended(tmp_path) is None
