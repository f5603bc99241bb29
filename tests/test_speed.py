"""exltui bench: synthetic models are valid, whatever their shape, and every figure that is asked for is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exltui import paths
from exltui.cli import main
from exltui.engine.convert import synthetic
from exltui.engine.convert.synthetic import write_synthetic
from exltui.engine.evaluate import speed
from exltui.engine.model.loading import load_model
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ModelError
from exltui.protocol import LoadOptions


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shape that is written in no time, and a folder of one's own."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", synthetic._shape(256, 320, 2, (4, 2), 500))
    monkeypatch.setattr(synthetic, "BLOCK", 1 << 14)
    monkeypatch.setattr(paths, "synthetic_dir", lambda: tmp_path / "synthetic")
    monkeypatch.setattr(speed, "copy_rate", lambda device: 1e9)


@pytest.mark.parametrize("bits", [2.0, 4.0, 4.25, 8.0])
def test_a_synthetic_model_loads_and_gives_sane_logits(bits: float, tmp_path: Path) -> None:
    write_synthetic("tiny", bits, 6, tmp_path / "model")
    model = load_model(tmp_path / "model", LoadOptions(device="cpu", length=256), lambda *_: None, lambda: False)
    assert model.format == "exl2" and abs(model.bits_per_weight - bits) < 0.7
    runner = Runner(model, KVCache(model.spec, 1, (16, 16), model.device))
    logits = runner.step(Step.build([Sequence(list(range(20)), 0, [0])], model.device))
    assert logits.shape == (1, 500) and bool(torch.isfinite(logits).all()) and 0.05 < float(logits.std()) < 50


def test_the_same_shape_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_synthetic("tiny", 4.0, 6, tmp_path / name)
    one, two = ((tmp_path / name / "output.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two and not list(tmp_path.glob("*.partial"))


def test_unknown_shapes_and_taken_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no shape 'vast'"):
        write_synthetic("vast", 4.0, 6, tmp_path / "model")
    with pytest.raises(ModelError, match="exists already"):
        write_synthetic("tiny", 4.0, 6, tmp_path)
    with pytest.raises(ModelError, match="9 bits cannot be written"):
        write_synthetic("tiny", 9.0, 6, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_bench_measures_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--prefill", "5,300", "--context", "0,260", "--batch", "1,3", "--steps", "2", "--cache", "q8"]
    assert main(["bench", "--synthetic", "tiny", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cells = [(figure["what"], figure["tokens"], figure["batch"]) for figure in found["figures"]]
    decodes = [("decode", context, batch) for batch in (1, 3) for context in (0, 260)]
    assert cells == [("prefill", 5, 1), ("prefill", 300, 1), *decodes]
    assert all(figure["tokens_per_second"] > 0 for figure in found["figures"])
    near, far = found["figures"][2], found["figures"][3]
    assert far["nbytes"] - near["nbytes"] == 260 * 2 * 2 * 2 * (64 + 4)  # layers, k and v, heads, a byte a value and a scale


def test_bench_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--synthetic", "tiny", "--device", "cpu", "--prefill", "4", "--context", "0", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("prefill") and lines[-1].startswith("decode") and lines[-1].endswith("%")


@pytest.mark.parametrize("flags", [["--context", "many"], ["--prefill", "-3"], ["--batch", "1,x"]])
def test_bench_refuses_what_is_no_list_of_numbers(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--synthetic", "tiny", "--device", "cpu", *flags]) == 1
    assert "no list of numbers" in capsys.readouterr().err


def test_a_step_knows_whether_it_decodes() -> None:
    cpu = torch.device("cpu")
    one, two = Sequence([5], 3, [0]), Sequence([6], 300, [2, 1])
    assert Step.build([one, two], cpu).decodes
    assert not Step.build([one, Sequence([6, 7], 3, [1])], cpu).decodes
    assert not Step.build([one, Sequence([6], 3, [1], "none")], cpu).decodes
    assert not Step.build([one] * 33, cpu).decodes
