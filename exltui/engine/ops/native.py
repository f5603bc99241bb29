"""Which rows have kernels. ``register`` loads the extension of a device, builds it if need be, and enters its functions in the table."""

from __future__ import annotations

import functools


@functools.cache
def register(device_type: str) -> None:
    """Enter the kernels of ``device_type`` in the op table. Raises BuildError if its extension cannot be built or loaded."""
    if device_type == "cpu":
        from exltui.engine.ops import cpu

        cpu.register()
    elif device_type == "cuda":
        from exltui.engine.ops import cuda

        cuda.register()
