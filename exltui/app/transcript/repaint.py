"""Which cells of a line have to be sent again, and lines with a selection or a cursor in them."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

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


def with_span(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """``strip`` with characters ``start`` to ``end`` (-1: to the end) in ``style``."""
    text = strip.text
    end = len(text) if end == -1 else end
    left, right = cell_len(text[:start]), cell_len(text[:end])
    if right <= left:
        return strip
    before, chosen, after = strip.divide([left, right, max(right, strip.cell_length)])
    marked = Strip(Segment.apply_style(chosen, post_style=style), chosen.cell_length)
    return Strip.join([before, marked, after])


def selected_text(line: Line | None, span: tuple[int, int] | None, *, first_row: bool) -> str:
    """What a selection of ``span`` copies of one row, with what joins it to the row above."""
    if line is None or span is None:
        return ""
    text = line.text[: None if span[1] == -1 else span[1]]
    text = text[max(span[0], line.lead) :].rstrip() if line.lead >= 0 else ""
    return ("" if first_row else line.join) + text
