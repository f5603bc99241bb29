"""Breaking styled text into lines of a given width in terminal cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style

Run = tuple[str, Style]

# Scripts without spaces break after any sign, but a closing mark stays with the sign before it.
_WIDE = "\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\U00020000-\U0003fffd"
_CLOSING = "\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\uff09\u300d\u300f\u3011\u3015\u300b\u3009"
_WORD = re.compile(f"[ \t]+|[{_WIDE}][{_CLOSING}]*|[^ \t{_WIDE}]+")


class Line(NamedTuple):
    """One line as it is drawn.

    ``lead``: how many characters at its start are decoration (indent, bar) and no text of the message; negative: the whole line is.
    ``join``: what stands between this line and the one above in copied text: a newline, or for a wrapped line a space or nothing.
    """

    segments: tuple[Segment, ...]
    lead: int = 0
    join: str = "\n"

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def width(self) -> int:
        """Cells that the line fills."""
        return sum(cell_len(segment.text) for segment in self.segments)

    def behind(self, prefix: Sequence[Segment], lead: int | None = None) -> Line:
        """The same line after ``prefix``, of which ``lead`` characters (all, if not given) are decoration."""
        if self.lead < 0:
            return Line((*prefix, *self.segments), -1, self.join)
        length = sum(len(segment.text) for segment in prefix)
        return Line((*prefix, *self.segments), self.lead + length if lead is None else lead, self.join)


def spaces(count: int) -> Segment:
    """``count`` unstyled blanks."""
    return Segment(" " * count)


def break_text(text: str, width: int) -> list[tuple[int, int, str]]:
    """Where to cut ``text`` so that each piece fits ``width`` cells: (start, end, join), blanks at a cut left out."""
    cuts: list[tuple[int, int, str]] = []
    start = 0
    for paragraph in text.split("\n"):
        if cell_len(paragraph) <= width:
            cuts.append((start, start + len(paragraph.rstrip(" \t")), "\n"))
        else:
            cuts.extend((start + a, start + b, join) for a, b, join in _break_paragraph(paragraph, width))
        start += len(paragraph) + 1
    return cuts


def _break_paragraph(text: str, width: int) -> list[tuple[int, int, str]]:
    cuts: list[tuple[int, int, str]] = []
    start, end, used, join = 0, 0, 0, "\n"  # the open line: text[start:end] fits, used counts the cells up to the next word
    for match in _WORD.finditer(text):
        word = match.group()
        cells = cell_len(word)
        if word[0] in " \t":
            used += cells
            continue
        if used + cells > width and (end > start or used > 0):
            if end > start:
                cuts.append((start, end, join))
                join = " " if match.start() > end else ""
            start, used = match.start(), 0
        if cells > width:
            at = match.start()
            *full, rest = chop_cells(word, width) or [word]
            for piece in full:
                cuts.append((at, at + len(piece), join))
                at, join = at + len(piece), ""
            start, cells = at, cell_len(rest)
        end = match.end()
        used += cells
    cuts.append((start, end, join))
    return cuts


def wrap(runs: Sequence[Run], width: int) -> list[Line]:
    """Styled text as lines of at most ``width`` cells; a newline in the text always ends a line."""
    width = max(1, width)
    text = "".join(run[0] for run in runs)
    lines: list[Line] = []
    index, offset = 0, 0  # the run that holds the next cut, and where in the text it starts
    for start, end, join in break_text(text, width):
        segments: list[Segment] = []
        while index < len(runs) and offset + len(runs[index][0]) <= start:
            offset += len(runs[index][0])
            index += 1
        at, here = offset, index
        while here < len(runs) and at < end:
            run, style = runs[here]
            piece = run[max(0, start - at) : end - at]
            if piece:
                segments.append(Segment(piece, style))
            at += len(run)
            here += 1
        lines.append(Line(tuple(segments), 0, join))
    return lines


def chop(runs: Sequence[Run], width: int) -> list[Line]:
    """Styled text of one line cut at every ``width`` cells, as code is wrapped."""
    text = "".join(run[0] for run in runs)
    if cell_len(text) <= width:
        return [Line(tuple(Segment(piece, style) for piece, style in runs if piece))]
    lines: list[Line] = []
    queue = list(runs)
    for piece in chop_cells(text, max(2, width)):
        need, segments = len(piece), []
        while need:
            run, style = queue[0]
            segments.append(Segment(run[:need], style))
            if len(run) > need:
                queue[0] = (run[need:], style)
            else:
                queue.pop(0)
            need -= min(need, len(run))
        lines.append(Line(tuple(segments), 0, "" if lines else "\n"))
    return lines
