"""Numbers as people read them: fixed width where they change under the eye, a dash where nothing is known."""

from __future__ import annotations

import time
from collections.abc import Iterable

DASH = "–"
_BLOCKS = "▁▂▃▄▅▆▇█"
_STAGES = {"extension": "compiling the kernels, once", "weights": "reading the weights", "warm-up": "warming up", "": "opening"}


def stage(name: str) -> str:
    """What a stage of loading does."""
    return _STAGES.get(name, name)


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return DASH if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """Bytes with a decimal unit: ``93 MB``, ``4.1 GB``."""
    if value is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale * 0.9995:
            number = value / scale
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:,.0f} {unit}"
    return f"{value:.0f} B"


def gigabytes(value: float | None) -> str:
    """Bytes as gigabytes without the unit, for places where several stand side by side."""
    if value is None:
        return DASH
    number = value / 1e9
    return f"{number:.2f}" if number < 0.995 else f"{number:.1f}" if number < 99.5 else f"{number:.0f}"


def rate(value: float | None) -> str:
    """Tokens per second: ``8.4``, ``48.3``, ``512``, ``31,200``."""
    if value is None:
        return DASH
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A length of time: ``82 ms``, ``3.1 s``, ``4:05``."""
    if seconds is None:
        return DASH
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def millis(seconds: float) -> str:
    """A short length of time with two digits behind the point: ``21.43 ms``."""
    return f"{seconds * 1000:.2f} ms"


def parameters(value: int | None) -> str:
    """A number of weights: ``135M``, ``8.0B``."""
    if not value:
        return DASH
    return f"{value / 1e9:.1f}B" if value >= 999.5e6 else f"{value / 1e6:.0f}M"


def percent(part: float | None, whole: float | None) -> str:
    """``part`` of ``whole`` in whole percent, three characters and the sign."""
    if part is None or not whole:
        return f"  {DASH}%"
    return f"{100 * part / whole:3.0f}%"


def ago(then: float, now: float) -> str:
    """How long before ``now`` a moment was (both in seconds since 1970), in at most six characters."""
    seconds = max(0, now - then)
    if seconds < 60:
        return "now"
    for unit, length, limit in (("min", 60, 3600), ("h", 3600, 86400), ("d", 86400, 86400 * 14)):
        if seconds < limit:
            return f"{int(seconds // length)} {unit}"
    return time.strftime("%d %b", time.localtime(then)).lstrip("0")


def spark(values: Iterable[float | None], width: int, top: float | None = None) -> str:
    """The last ``width`` values as a row of blocks; unknown ones are blank. ``top``: what a full block stands for."""
    shown = list(values)[-width:]
    highest = top or max((value for value in shown if value is not None), default=0) or 1
    signs = [" " if value is None else _BLOCKS[max(0, min(7, round(value / highest * 7)))] for value in shown]
    return "".join(signs).rjust(width)


def cells(fraction: float | None, width: int) -> int:
    """How many of ``width`` cells a bar fills: at least one for anything above zero."""
    if not fraction or width <= 0:
        return 0
    return max(1, min(width, round(fraction * width)))
