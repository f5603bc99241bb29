"""Which cells of a line have to be sent again."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment

from exltui.app.transcript.wrap import Line


def changed_cells(old: Line | None, new: Line | None) -> tuple[int, int] | None:
    """The columns (start, end) in which two versions of a line differ; None where they look the same. None stands for an empty line."""
    before = old.segments if old else ()
    after = new.segments if new else ()
    if before == after:
        return None
    start = 0
    for was, now in zip(before, after, strict=False):
        if was == now:
            start += cell_len(now.text)
            continue
        if was.style == now.style:
            start += _same_cells(was.text, now.text)
        break
    end = max(old.width if old else 0, new.width if new else 0)
    return (start, end) if end > start else None


def _same_cells(was: str, now: str) -> int:
    """Cells that two texts share at their start. Signs may combine with what follows, so that only plain ones are counted."""
    if not (was.isascii() and now.isascii()):
        return 0
    same = 0
    for a, b in zip(was, now, strict=False):
        if a != b:
            break
        same += 1
    return same


def without_first_cell(segments: tuple[Segment, ...]) -> list[Segment]:
    """A row without the blank in its first column, which every row has."""
    if not segments:
        return []
    first, *rest = segments
    return [Segment(first.text[1:], first.style), *rest] if len(first.text) > 1 else rest
