"""Code blocks: a label line with the block's number, then the code on its own ground."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment

from exltui.app.transcript.code import CodeLine, Highlighter
from exltui.app.transcript.palette import Palette
from exltui.app.transcript.wrap import Line, chop
from exltui.text import one_line

TAB = 4


def label(language: str, number: int, width: int, palette: Palette) -> Line:
    """The first line of a code block: its language, and at the right the number that copies it."""
    tag = f"[{number}]"
    name = one_line(language, max(1, width - len(tag) - 3)) or "code"
    gap = " " * max(1, width - cell_len(name) - len(tag) - 2)
    return Line((Segment(f" {name}{gap}{tag} ", palette["code-label"]),), lead=-1)


def draw_code_line(line: CodeLine, width: int, palette: Palette) -> list[Line]:
    """One line of code, cut where it is longer than the room; cuts are marked by an arrow and copied as nothing."""
    ground = palette["code"]
    drawn: list[Line] = []
    for part in chop([(text, palette[look]) for text, look in line], width - 2):
        mark = Segment(" " if part.join == "\n" else "↪", ground if part.join == "\n" else palette["code-label"])
        drawn.append(Line((mark, *part.segments, Segment(" " * max(0, width - 1 - part.width), ground)), 1, part.join))
    return drawn


def expand(line: str) -> str:
    """A line of code with its tabs as blanks."""
    return line.expandtabs(TAB) if "\t" in line else line


def draw_code(code: Sequence[str], language: str, number: int, width: int, palette: Palette) -> list[Line]:
    """A whole code block."""
    highlighter = Highlighter(language)
    highlighter.append([expand(line) for line in code])
    lines = [label(language, number, width, palette)]
    for line in [*highlighter.settled, *highlighter.open_lines()]:
        lines += draw_code_line(line, width, palette)
    return lines
