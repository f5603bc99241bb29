"""Running out of memory, said in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from exltui.errors import DeviceError


@contextlib.contextmanager
def room_for(what: str, hint: str) -> Iterator[None]:
    """Within the block, a failed allocation is a DeviceError that names ``what`` did not fit."""
    try:
        yield
    except RuntimeError as error:  # torch has a class for this on GPUs only
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise DeviceError(f"there is not enough memory for {what}", hint) from error
