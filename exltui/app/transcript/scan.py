"""Cutting Markdown into pieces that can be drawn one by one while the text still arrives.

Decisions are made line by line, on finished lines only, and never taken back. So the pieces are the same however the text was split on its
way here, and a piece that is not the last one is never parsed again. Each item of a top-level list is a piece of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from exltui.text import visible

Kind = Literal["paragraph", "list", "quote", "indented", "heading", "rule", "fence", "plain"]

LONGEST_LINE = 4096  # characters: prose without a newline is cut there, at a blank
LONGEST_PIECE = 8192  # characters of one paragraph or quote, after which a new piece starts

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*(.*)$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_BULLET = re.compile(r" ?[-+*](?=[ \t]|$)")
_NUMBER = re.compile(r" ?(\d{1,9})([.)])(?=[ \t]|$)")
_UNDECIDED = re.compile(r"\s*(?:[`~]{1,2}|[-+*_=>|#]{1,3}|\d{1,2}[.)]?)\s*")  # the start of a line that could become anything
_INTERRUPTS = re.compile(r" ?(?:[-+*]|1[.)])[ \t]+\S")


@dataclass
class Piece:
    """Some top-level Markdown. ``lines`` are without newlines and with control characters made visible."""

    kind: Kind
    lines: list[str] = field(default_factory=list)
    gap: bool = False  # a blank line stands before it in the source
    number: int | None = None  # list: the number of its first item
    language: str = ""  # fence: the word after the ticks
    closed: bool = False  # nothing more belongs to it
    size: int = 0  # characters

    @property
    def is_table(self) -> bool:
        """Whether it is one table, whose rows only make sense together."""
        if self.kind != "paragraph" or len(self.lines) < 2 or "|" not in self.lines[0]:
            return False
        return set(self.lines[1]) <= set("|:- \t") and "-" in self.lines[1]

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.size += len(line)


class Scanner:
    """Takes text in any portions. ``pieces`` are decided; ``partial`` is the line that has no newline yet."""

    def __init__(self, *, markdown: bool = True) -> None:
        self.pieces: list[Piece] = []
        self.partial = ""
        self._markdown = markdown
        self._blanks = 0
        self._fence = ""  # the ticks of the open fence
        self._indent = 0  # of the open fence

    def push(self, text: str) -> None:
        """Append text."""
        *lines, self.partial = (self.partial + text).split("\n")
        for line in lines:
            for part in self._portions(line):
                self._take(part)
        if len(self.partial) > LONGEST_LINE:
            *parts, self.partial = self._portions(self.partial)
            for part in parts:
                self._take(part)

    def close(self) -> None:
        """The text is complete: its last line counts although no newline follows."""
        if self.partial:
            self.push("\n")

    def preview(self) -> tuple[Piece | None, list[str]]:
        """Where the partial line would go: (the piece that it starts, or None; the lines that it would add to the last piece).

        What is still undecided, as two of three backticks are, shows as nothing.
        """
        line = _clean(self.partial)
        if self._fence:
            ends = not line or self._closes(line) or self._fence.startswith(line.strip())
            return None, [] if ends else [self._unindent(line)]
        if not line.strip() or (self._markdown and _UNDECIDED.fullmatch(line)):
            return None, []
        piece = self._starts(line)
        if piece is None:
            return None, [*[""] * self._blanks, line]
        if piece.kind != "fence":
            piece.add(line)
        return piece, []

    def _portions(self, line: str) -> Iterator[str]:
        """A very long line of prose as lines; its cuts depend on nothing but its beginning."""
        while len(line) > LONGEST_LINE and not self._fence:
            blank = line.rfind(" ", LONGEST_LINE // 2, LONGEST_LINE)
            at = blank if blank > 0 else LONGEST_LINE
            yield line[:at]
            line = line[at:].removeprefix(" ")
        yield line

    def _take(self, raw: str) -> None:
        line = _clean(raw)
        if self._fence:
            self._take_code(line)
            return
        if not line.strip():
            self._blanks += 1
            return
        piece = self._starts(line)
        if piece is not None:
            self.pieces.append(piece)
            if piece.kind == "fence":
                match = _FENCE.match(line)
                self._fence, self._indent = (match.group(1), _indent(line)) if match else ("", 0)
            else:
                piece.add(line)
        else:
            last = self.pieces[-1]
            for _ in range(self._blanks):
                last.add("")
            last.add(line)
        self._blanks = 0

    def _take_code(self, line: str) -> None:
        if self._closes(line):
            self._fence = ""
            self.pieces[-1].closed = True
        else:
            self.pieces[-1].add(self._unindent(line))

    def _closes(self, line: str) -> bool:
        ticks = line.strip()
        return len(ticks) >= len(self._fence) and set(ticks) == {self._fence[0]} and _indent(line) <= 3

    def _unindent(self, line: str) -> str:
        return line[min(self._indent, _indent(line)) :]

    def _starts(self, line: str) -> Piece | None:
        """The new piece that starts with this line of visible text; None when the line continues the last piece."""
        last = self.pieces[-1] if self.pieces and not self.pieces[-1].closed else None
        gap = self._blanks > 0
        fence = _FENCE.match(line)
        inside = last is not None and last.kind == "list" and _indent(line) > 1
        if fence and not inside:
            return Piece("fence", gap=gap, language=fence.group(2).split(" ")[0].split("{")[0].strip())
        if not self._markdown:
            return Piece("plain", gap=gap) if last is None or last.kind != "plain" or gap or last.size > LONGEST_PIECE else None
        if inside:
            return None
        if _RULE.match(line):
            underline = last is not None and last.kind == "paragraph" and not gap and line.strip()[0] == "-"
            return None if underline else Piece("rule", gap=gap, closed=True)
        if _HEADING.match(line):
            return Piece("heading", gap=gap, closed=True)
        return self._starts_text(line, last, gap)

    def _starts_text(self, line: str, last: Piece | None, gap: bool) -> Piece | None:
        marker = _BULLET.match(line) or _NUMBER.match(line)
        indent = _indent(line)
        if last is not None and last.kind == "list":
            if marker:
                return Piece("list", gap=gap, number=self._number(line, last))
            return Piece("quote" if line.startswith(">") else "paragraph", gap=gap) if gap else None
        if last is not None and not gap and (last.size <= LONGEST_PIECE or last.is_table):
            interrupts = _INTERRUPTS.match(line) and last.kind != "indented"
            return Piece("list", number=self._number(line, None)) if interrupts else None
        if last is not None and last.kind == "indented" and indent >= 4 and last.size <= LONGEST_PIECE:
            return None
        if marker:
            return Piece("list", gap=gap, number=self._number(line, None))
        if indent >= 4:
            return Piece("indented", gap=gap)
        return Piece("quote" if line.lstrip().startswith(">") else "paragraph", gap=gap)

    def _number(self, line: str, last: Piece | None) -> int | None:
        """The number of a list item: counted on within a list, as written at its start."""
        match = _NUMBER.match(line)
        if match is None:
            return None
        before = _NUMBER.match(last.lines[0]) if last is not None else None
        if last is not None and last.number is not None and before and before.group(2) == match.group(2):
            return last.number + 1
        return int(match.group(1))


def _clean(line: str) -> str:
    return visible(line.removesuffix("\r")).replace("\u2028", " ").replace("\u2029", " ")


def _indent(line: str) -> int:
    """Columns of white space at the start, a tab going to the next multiple of four."""
    columns = 0
    for char in line:
        if char == " ":
            columns += 1
        elif char == "\t":
            columns += 4 - columns % 4
        else:
            break
    return columns
