"""What is read from the drivers' tools and from /proc, with stand-ins for the tools."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from exltui.engine import meters
from exltui.engine.meters import Meters

NVIDIA = "GPU-aa, NVIDIA H200, 143771, 1234, 56, 41, 120.5\nGPU-bb, NVIDIA H200, 143771, 0, [N/A], [N/A], [N/A]\n"
ROCM = """{"card0": {"Card Series": "Radeon RX 7900", "VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "500",
 "GPU use (%)": "7", "Temperature (Sensor edge) (C)": "44.0",
 "Average Graphics Package Power (W)": "20.5"}, "system": {"Driver version": "6"}}"""


def tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for stand-in tools; the real ones are out of reach."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(meters.shutil, "which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    return tmp_path


def test_nvidia_gpus_with_what_they_do_not_know_as_none(path: Path) -> None:
    tool(path, "nvidia-smi", f"cat <<'END'\n{NVIDIA}END")
    first, second = Meters().read()
    assert (first.name, first.kind, first.utilisation, first.temperature, first.power) == ("NVIDIA H200", "cuda", 56.0, 41.0, 120.5)
    assert first.memory_total == 143771 << 20
    assert first.memory_used == 1234 << 20
    assert second.memory_used == 0
    assert (second.utilisation, second.temperature, second.power) == (None, None, None)


def test_gpus_have_the_order_of_their_numbers_and_hidden_ones_are_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    third = "GPU-cc, NVIDIA T4, 15360, 7, 3, 50, 30"
    tool(path, "nvidia-smi", f"cat <<'END'\n{NVIDIA}{third}\nEND")
    monkeypatch.setattr(meters, "seen_gpus", lambda: (("cc", "NVIDIA T4"), ("aa", "NVIDIA H200"), ("MIG", "a part of one")))
    found = Meters().read()
    assert [device.name for device in found] == ["NVIDIA T4", "NVIDIA H200", "a part of one"]
    assert [device.memory_used for device in found] == [7 << 20, 1234 << 20, None], "of a part nothing is known, not its whole GPU's"


def test_rocm_gpus(path: Path) -> None:
    tool(path, "rocm-smi", f"cat <<'END'\n{ROCM}\nEND")
    (card,) = Meters().read()
    assert (card.name, card.kind, card.memory_total, card.memory_used) == ("Radeon RX 7900", "rocm", 25753026560, 500)
    assert (card.utilisation, card.temperature, card.power) == (7.0, 44.0, 20.5)


@pytest.mark.parametrize("body", ["exit 9", "echo No devices were found", "echo '{broken'", "sleep 5"])
@pytest.mark.parametrize("name", ["nvidia-smi", "rocm-smi"])
def test_a_tool_that_fails_or_hangs_leaves_the_cpu(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    monkeypatch.setattr(meters, "TIMEOUT", 0.3)
    tool(path, name, body)
    started = time.monotonic()
    (device,) = Meters().read()
    assert device.kind == "cpu"
    assert time.monotonic() - started < 3


def test_the_cpu_where_there_is_no_gpu(path: Path) -> None:
    reader = Meters()
    (first,) = reader.read()
    assert first.kind == "cpu"
    assert first.name
    assert first.utilisation is None, "a load needs two samples"
    assert first.memory_total is not None
    assert 0 < (first.memory_used or 0) < first.memory_total
    time.sleep(0.1)
    (second,) = reader.read()
    assert second.utilisation is not None
    assert 0 <= second.utilisation <= 100
