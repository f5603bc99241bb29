"""Loads native kernels when a device is first bound, so that importing the op table compiles nothing."""

from __future__ import annotations

from exltui.engine.ops import build
from exltui.engine.ops.build import Progress
from exltui.errors import BuildError

_outcomes: dict[str, BuildError | None] = {}


def register(device_type: str, progress: Progress | None = None) -> None:
    """Enter the kernels of ``device_type`` in the op table, building their extension first if need be.

    Raises BuildError if that cannot be done. It is tried once: compiling again would take as long and fail again.
    """
    if device_type not in _outcomes:
        try:
            _register(device_type, progress)
            _outcomes[device_type] = None
        except BuildError as error:
            _outcomes[device_type] = error
    failure = _outcomes[device_type]
    if failure is not None:
        raise failure
    if device_type == "cpu":
        from exltui.engine.ops import cpu

        cpu.configure()  # the thread count may have changed since


def _register(device_type: str, progress: Progress | None) -> None:
    if device_type == "cpu":
        build.load("cpu", progress)
        from exltui.engine.ops import cpu

        cpu.enter()
    elif device_type == "cuda":
        register("cpu", progress)  # tokens are drawn there
        build.load("cuda", progress)
        from exltui.engine.ops import cuda, cuda_mixture

        cuda.enter()
        cuda_mixture.enter()
