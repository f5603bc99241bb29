"""Running out of memory, said in words, and before the system ends the program for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from exltui.errors import DeviceError

MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on ``device``: the driver's word, or what Linux calls available; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


@contextlib.contextmanager
def room_for(what: str, nbytes: int, device: torch.device, hint: str) -> Iterator[None]:
    """Raise DeviceError if ``what`` does not fit: ``nbytes`` are more than what is free, or an allocation in the block fails.

    The first is needed because Linux grants memory that it does not have, and ends the program when that is written to.
    """
    free = free_memory(device)
    if free is not None and nbytes > free:
        raise DeviceError(f"{what} takes {nbytes / 1e9:,.1f} GB, and {device} has {free / 1e9:,.1f} GB free", hint)
    try:
        yield
    except RuntimeError as error:  # torch has a class for this on GPUs only
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise DeviceError(f"there is not enough memory on {device} for {what}", hint) from error
