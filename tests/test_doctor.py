"""The doctor says what is there, what is wrong, and the fix."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
from model_files import write_model

from exltui import paths
from exltui.cli import checks, main
from exltui.cli.checks import Finding


def examine(folder: Path) -> dict[str, Finding]:
    """The findings by check; of several the last one that is not ok."""
    found: dict[str, Finding] = {}
    for finding in checks.examine([folder], lambda done, total: None):
        if finding.check not in found or finding.state != "ok":
            found[finding.check] = finding
    return found


def test_a_sound_machine(capsys: pytest.CaptureFixture[str], starter_models_dir: Path) -> None:
    assert main(["doctor", "--json", "--models-dir", str(starter_models_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["ok"] is True and set(report) == {"ok", "findings"}
    states = {finding["check"]: finding["state"] for finding in report["findings"]}
    assert {"exltui", "python", "packages", "settings", "torch", "compiler", "cpu kernels", "terminal", "models", "disk"} <= set(states)
    assert "wrong" not in states.values() and states["models"] == "ok"


def test_the_op_table_is_printed(capsys: pytest.CaptureFixture[str], starter_models_dir: Path) -> None:
    from exltui.engine.ops.table import OPS

    assert main(["doctor", "--ops", "--models-dir", str(starter_models_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("operation")) + 1 :]
    assert [line.split()[0] for line in table[: len(OPS)]] == list(OPS)


def test_without_a_compiler_it_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = examine(tmp_path)["compiler"]
    assert finding.state == "slow" and "apt install g++" in finding.fix


def test_an_extension_that_does_not_build_is_slow_but_not_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from exltui.engine.ops import native
    from exltui.errors import BuildError

    def fail(kind: str, progress: object) -> None:
        raise BuildError("the native extension does not compile: boom", "report it")

    monkeypatch.setattr(native, "register", fail)
    finding = examine(tmp_path)["cpu kernels"]
    assert finding.state == "slow" and "boom" in finding.found and finding.fix == "report it"


def test_models_none_and_broken(tmp_path: Path) -> None:
    nothing = examine(tmp_path / "nowhere")["models"]
    assert nothing.state == "slow" and "(not there)" in nothing.found and "models get smollm2-135m" in nothing.fix
    write_model(tmp_path / "bad", {"config.json": b"{}"})
    broken = examine(tmp_path)["models"]
    assert broken.state == "wrong" and "tokenizer.json" in broken.found and "models rm bad" in broken.fix


def test_a_broken_settings_file_is_wrong_and_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = paths.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("theme = 1")
    try:
        assert main(["doctor", "--models-dir", str(tmp_path)]) == 1
    finally:
        file.unlink()
    out = capsys.readouterr().out
    assert "WRONG  settings" in out and "theme must be a text" in out and "1 wrong" in out


def test_a_full_disk_and_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**6, 10**6))
    monkeypatch.setattr(checks, "PACKAGES", ("numpy", "no-such-package-here"))
    findings = examine(tmp_path)
    assert findings["disk"].state == "slow" and "make room" in findings["disk"].fix
    assert findings["packages"].state == "wrong" and findings["packages"].fix == "pip install no-such-package-here"
