"""Bars made of line-drawing signs, which every terminal font has."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exltui.app.figures import cells

FULL, EMPTY = "━", "─"


def bar(fraction: float | None, width: int, style: str = "$primary") -> Content:
    """One bar of ``width`` cells, filled to ``fraction``."""
    return segments([(fraction or 0.0, style)], width)


def segments(parts: Sequence[tuple[float, str]], width: int) -> Content:
    """A bar of several coloured shares of the whole. Every share above zero gets a cell as long as there is room."""
    pieces: list[tuple[str, str]] = []
    left = width
    for share, style in parts:
        filled = min(left, cells(share, width))
        pieces.append((FULL * filled, style))
        left -= filled
    return Content.assemble(*pieces, (EMPTY * left, "$border-blurred"))


def spread(left: Content, right: Content, width: int) -> Content:
    """``left`` and ``right`` at the two edges of a line of ``width`` cells; ``left`` is cut when both do not fit."""
    room = max(0, width - right.cell_length)
    if left.cell_length > room:
        left = left.truncate(max(0, room - 1), ellipsis=True)
    return Content.assemble(left, " " * max(0, width - left.cell_length - right.cell_length), right)
