"""exltui: a full-screen terminal chat application that carries its own inference engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exltui.engine.api import Completion, Engine

__version__ = "0.1.0"
__all__ = ["Completion", "Engine", "__version__"]


def __getattr__(name: str) -> Any:
    """The Python API imports torch, so it is imported when it is first asked for."""
    if name in ("Completion", "Engine"):
        from exltui.engine import api

        return getattr(api, name)
    raise AttributeError(f"module 'exltui' has no attribute {name!r}")
