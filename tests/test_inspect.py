"""What `exltui models info` finds out about models of every kind without reading a weight."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_families import CASES
from tiny_models import load, make, rewrite

from exltui.cli import main
from exltui.cli.models import _details
from exltui.engine.convert.rtn import write_exl2
from exltui.engine.model.inspect import inspect
from exltui.protocol import LoadOptions


@pytest.mark.parametrize("name", ["gemma3", "qwen2-moe-some-dense", "gpt2", "olmo3-yarn", "cohere-norms", "dbrx", "gpt-oss", "phi3"])
def test_every_kind_of_model_is_described(name: str, tmp_path: Path) -> None:
    family, changes = CASES[name]
    reference = make(family, tmp_path, **changes)
    found = inspect(tmp_path)
    assert found["parameters"] == reference.num_parameters()
    spec = load(tmp_path).spec
    assert found["architecture"] == spec.architecture and found["layers"] == len(spec.layers)
    assert sum(rope["layers"] for rope in found["rope"]) == len(spec.layers)
    assert set(found["bits"].values()) == {32.0}
    assert len(found["refused"]) == 1 and "no tokenizer.json" in found["refused"][0]
    rows = _details(found)
    assert "layers of 64" in rows["shape"] and "positions" in rows


def test_positions_windows_and_experts_are_told(tmp_path: Path) -> None:
    for name in ("gemma3", "olmo3-yarn", "cohere2", "qwen2-moe-some-dense"):
        make(CASES[name][0], tmp_path / name, **CASES[name][1])
    rows = {name: _details(inspect(tmp_path / name)) for name in ("gemma3", "olmo3-yarn", "cohere2", "qwen2-moe-some-dense")}
    assert "theta 10,000, in 6 layers" in rows["gemma3"]["positions"] and "theta 1e+06, in 1 layers" in rows["gemma3"]["positions 2"]
    assert rows["gemma3"]["windows"] == "1 layers all, 6 layers 20"
    assert "yarn (factor 4.0" in rows["olmo3-yarn"]["positions 2"]
    assert "none from RoPE in 1 layers" in rows["cohere2"].values()
    assert rows["qwen2-moe-some-dense"]["experts"] == "6 in each of 2 layers, 3 a token and one that all take"


def test_positions_are_those_that_the_options_make(tmp_path: Path) -> None:
    make("Llama", tmp_path, num_hidden_layers=1)
    found = inspect(tmp_path, LoadOptions(length=2000))
    assert found["loaded"] == 2000 and "longer than the 1,024" in found["notes"][0] and "longer than" in _details(found)["loaded with"]
    found = inspect(tmp_path, LoadOptions(length=2000, rope_alpha=2.0))
    assert found["notes"] == [] and found["rope"][0]["theta"] == pytest.approx(10000 * 2 ** (32 / 30)) and found["rope"][0]["alpha"] == 2
    found = inspect(tmp_path, LoadOptions(rope_yarn=4.0))
    assert found["rope"][0]["scaling"]["factor"] == 4 and "cos and sin times 1.139" in _details(found)["positions"]
    assert "a context of -5 tokens" in inspect(tmp_path, LoadOptions(length=-5))["refused"][0]
    assert "exclude each other" in inspect(tmp_path, LoadOptions(rope_yarn=4.0, rope_scale=2.0))["refused"][0]


def test_bits_are_counted_by_kind(tmp_path: Path) -> None:
    make("Llama", tmp_path / "plain", hidden_size=128, intermediate_size=256)
    write_exl2(tmp_path / "plain", tmp_path / "exl2", 4, 8)
    bits = inspect(tmp_path / "exl2")["bits"]
    assert bits["embedding"] == 16 and 4 < bits["attention"] < 5 and 4 < bits["mlp"] < 5 and bits["head"] > 8


def test_what_would_be_refused_is_said(tmp_path: Path) -> None:
    make("Llama", tmp_path, num_hidden_layers=1)
    (tmp_path / "tokenizer.model").touch()
    rewrite(tmp_path, lambda tensors: tensors, quantization_config={"quant_method": "hqq"})
    refused = inspect(tmp_path)["refused"]
    assert "'hqq' cannot be run" in refused[0] and "save_pretrained" in refused[1]
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "q_proj" not in n}, quantization_config=...)
    assert "q_proj" in inspect(tmp_path)["refused"][0]
    rewrite(tmp_path, lambda tensors: tensors, architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM is not known" in inspect(tmp_path)["refused"][0]


def test_a_directory_with_sentencepiece_alone_is_told_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("Llama", tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "model" / "tokenizer.model").touch()
    assert main(["models", "info", str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert "a SentencePiece tokenizer.model but no tokenizer.json" in said and "save_pretrained" in said
