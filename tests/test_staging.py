"""Large tensors read by threads, with plain memory in place of a GPU's: every byte arrives, in whatever order they are asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from exltui.checkpoint import TensorInfo, read_checkpoint
from exltui.engine.model import staging
from exltui.engine.model.staging import Staging
from exltui.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    cuda = SimpleNamespace(
        Stream=lambda device: None,
        Event=lambda: event,
        stream=lambda stream: contextlib.nullcontext(),
        device=lambda device: contextlib.nullcontext(),
        current_stream=lambda device: SimpleNamespace(wait_event=lambda event: None),
        empty_cache=lambda: None,
    )
    plain = torch.empty

    def unpinned(*shape: int, pin_memory: bool = False, **options: object) -> torch.Tensor:
        return plain(*shape, **options)  # type: ignore[call-overload]

    fake = SimpleNamespace(
        **{name: getattr(torch, name) for name in ("uint8", "device", "dtype")},
        cuda=cuda,
        empty=unpinned,
    )
    monkeypatch.setattr(staging, "torch", fake)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(staging, "CHUNK", 1000)
    monkeypatch.setattr(staging, "LEAST", 500)
    monkeypatch.setattr(staging, "AHEAD", 5000)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    made = {f"t{i}": torch.randn((17 + 61 * i % 90, 23), generator=g) for i in range(12)} | {"small": torch.ones(9)}
    save_file({name: made[name] for name in list(made)[:7]}, tmp_path / "a.safetensors")
    save_file({name: made[name] for name in list(made)[7:]}, tmp_path / "b.safetensors")
    return made


def infos(folder: Path) -> dict[str, TensorInfo]:
    return read_checkpoint(folder)


@pytest.mark.parametrize("order", [range(12), range(11, -1, -1), [5, 0, 11, 1, 10, 2, 9, 3, 8, 4, 7, 6]])
def test_every_byte_arrives_in_any_order(tensors: dict[str, torch.Tensor], tmp_path: Path, order: list[int]) -> None:
    found = infos(tmp_path)
    with Staging([found[f"t{i}"] for i in range(12)] + [found["small"]], CPU).reading() as reading:
        for i in order:
            got = reading.take(found[f"t{i}"], torch.float32)
            assert got is not None and torch.equal(got, tensors[f"t{i}"])
        assert reading.take(found["t0"], torch.float32) is None  # once each
        assert reading.take(found["small"], torch.float32) is None  # not worth it


def test_what_nobody_takes_is_let_go(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    found = infos(tmp_path)
    with Staging(found.values(), CPU).reading() as reading:
        assert reading.take(found["t0"], torch.float32) is not None
    assert not any(thread.is_alive() for thread in reading._threads)


def test_a_file_that_ends_early_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    found = infos(tmp_path)
    file = tmp_path / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-3000])
    with (
        Staging(found.values(), CPU).reading() as reading,
        pytest.raises(CheckpointError, match=r"b\.safetensors: cannot be read: the file is"),
    ):
        [reading.take(info, torch.float32) for info in found.values()]
