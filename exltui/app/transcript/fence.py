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


class CodeBlock:
    """One code block that may grow. ``lines`` are its rows; the first ``fixed`` of them will not change by more code."""

    def __init__(self, language: str, number: int, width: int, palette: Palette) -> None:
        self.lines = [label(language, number, width, palette)]
        self.fixed = 1
        self._width = width
        self._palette = palette
        self._highlighter = Highlighter(language)
        self._taken: list[str] = []  # the finished lines that the highlighter has
        self._drawn = 0  # of its settled lines, how many are drawn

    def update(self, code: Sequence[str], partial: str | None = None) -> None:
        """Take in the code, of which all lines known before are the same as before; ``partial`` is a line that is not finished."""
        new = code[len(self._taken) :]
        self._highlighter.append([expand(line) for line in new])
        self._taken += new
        del self.lines[self.fixed :]
        for line in self._highlighter.settled[self._drawn :]:
            self.lines += draw_code_line(line, self._width, self._palette)
        self._drawn = len(self._highlighter.settled)
        self.fixed = len(self.lines)
        for line in self._highlighter.open_lines(None if partial is None else expand(partial)):
            self.lines += draw_code_line(line, self._width, self._palette)

    def continues_in(self, code: Sequence[str]) -> bool:
        """Whether ``code`` is what this block has, and perhaps more."""
        return list(code[: len(self._taken)]) == self._taken


class NestedCode:
    """Draws the code blocks within one piece, such as a list item, which is drawn again and again while it grows."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, int, int], CodeBlock] = {}

    def __call__(self, code: Sequence[str], language: str, number: int, width: int, palette: Palette) -> list[Line]:
        """All rows of one code block. ``number`` counts the code blocks of a message from 1."""
        *finished, last = code
        key = (language, number, width)
        block = self._blocks.get(key)
        if block is None or not block.continues_in(finished):
            block = self._blocks[key] = CodeBlock(language, number, width, palette)
        block.update(finished, last)
        return list(block.lines)
