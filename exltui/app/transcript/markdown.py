"""Drawing parsed Markdown as lines: paragraphs, headings, lists, quotes, tables, rules; code goes to ``fence``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from markdown_it.token import Token
from rich.cells import cell_len
from rich.segment import Segment

from exltui.app.transcript.inline import DEEPEST, PARSER, Look, spans
from exltui.app.transcript.palette import Palette
from exltui.app.transcript.table import draw_table
from exltui.app.transcript.wrap import Line, Run, spaces, wrap

_CODE = ("fence", "code_block")
_BULLETS = "•◦▪"
_TASKS = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}
NARROWEST = 8  # cells: nesting deeper than this leaves room for stays at one indent


class DrawCode(Protocol):
    """Draws one code block. ``number`` counts the code blocks of a message from 1."""

    def __call__(self, code: Sequence[str], language: str, number: int, width: int, palette: Palette) -> list[Line]: ...


@dataclass
class Drawing:
    """One drawing of a piece of Markdown. ``codes`` counts the code blocks so far in the message."""

    source: Sequence[str]
    palette: Palette
    draw_code: DrawCode
    codes: int = 0
    number: int | None = None  # of the first item of a list on the top level
    ends_in_code: bool = False  # its last line is code

    def piece(self, width: int) -> list[Line]:
        """All lines of the piece."""
        tokens = PARSER.parse("\n".join(self.source))
        leaves = [token.type for token in tokens if token.nesting == 0]
        self.ends_in_code = bool(leaves) and leaves[-1] in _CODE
        if max((token.level for token in tokens), default=0) > DEEPEST - 4:  # the parser drops what is deeper: shown as it is
            return wrap([("\n".join(self.source), self.palette[""])], width)
        return self._blocks(tokens, width)

    def _blocks(self, tokens: Sequence[Token], width: int, depth: int = 0) -> list[Line]:
        lines: list[Line] = []
        before = ""
        for block in _siblings(tokens):
            kind = block[0].type
            if lines and self._gap(block[0], before):
                lines.append(Line(()))
            lines += self._block(block, width, depth)
            before = kind
        return lines

    def _gap(self, token: Token, before: str) -> bool:
        """Whether a blank line goes above a block: where the source has one, and around code and tables."""
        start = token.map[0] if token.map else 0
        if start > 0 and not self.source[start - 1].strip("> \t"):
            return before != "heading_open"
        return token.type in ("fence", "table_open", "heading_open", "code_block") or before in (
            "fence",
            "table_open",
            "code_block",
        )

    def _block(self, block: Sequence[Token], width: int, depth: int) -> list[Line]:
        token, inner = block[0], block[1:-1]
        if token.type in ("bullet_list_open", "ordered_list_open"):
            return self._list(token, inner, width, depth)
        if token.type == "blockquote_open":
            bar = (Segment("▎", self.palette["bar"]), spaces(1))
            return [line.behind(bar) for line in self._blocks(inner, max(NARROWEST, width - 2), depth)]
        if token.type in ("fence", "code_block"):
            self.codes += 1
            code = token.content.removesuffix("\n").split("\n")
            return self.draw_code(code, token.info.strip().split(" ")[0], self.codes, width, self.palette)
        if token.type == "table_open":
            return draw_table(_rows(inner, self.runs), width, self.palette["rule"])
        if token.type == "hr":
            return [Line((Segment("─" * width, self.palette["rule"]),))]
        if token.type == "heading_open":
            return wrap(self.runs(inner[0].content, (f"heading{min(3, int(token.tag[1]))}",)), width)
        return wrap(self.runs("".join(child.content for child in inner)), width)

    def runs(self, content: str, base: Look = ()) -> list[Run]:
        """Inline Markdown as styled runs."""
        return [(text, self.palette.over((*base, *look))) for text, look in spans(content)]

    def _list(self, token: Token, inner: Sequence[Token], width: int, depth: int) -> list[Line]:
        ordered = token.type == "ordered_list_open"
        start = int(token.attrs.get("start", 1)) if ordered else 1
        if ordered and token.level == 0 and self.number is not None:
            start, self.number = self.number, None
        items = list(_siblings(inner))
        bullet = _BULLETS[min(depth, len(_BULLETS) - 1)]
        room = len(str(start + len(items) - 1)) + 2 if ordered else 2
        lines: list[Line] = []
        for index, item in enumerate(items):
            marker = f"{start + index}. ".rjust(room) if ordered else f"{bullet} "
            content = item[1:-1]
            if len(content) > 2 and content[1].content[:4] in _TASKS:
                marker, content[1].content = _TASKS[content[1].content[:4]].rjust(room), content[1].content[4:]
            body = self._blocks(content, max(NARROWEST, width - room), depth + 1) or [Line(())]
            if lines and self._gap(item[0], items[index - 1][-2].type):
                lines.append(Line(()))
            lines.append(body[0].behind((Segment(marker, self.palette["marker"]),), lead=0))
            lines += [line.behind((spaces(cell_len(marker)),)) for line in body[1:]]
        return lines


def draw_markdown(drawing: Drawing, width: int) -> list[Line]:
    """The lines of one piece at ``width`` cells."""
    return drawing.piece(max(NARROWEST, width))


def _siblings(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """The blocks on one level, each with everything inside it."""
    found: list[Sequence[Token]] = []
    start = depth = 0
    for index, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            found.append(tokens[start : index + 1])
            start = index + 1
    return found


def _rows(tokens: Sequence[Token], runs: RunsOf) -> list[list[tuple[list[Run], str]]]:
    """A table's cells as (runs, alignment) by row; the first row is the head."""
    rows: list[list[tuple[list[Run], str]]] = []
    align = ""
    head = False
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            align, head = str(token.attrs.get("style", "")).removeprefix("text-align:"), token.type == "th_open"
        elif token.type == "inline":
            rows[-1].append((runs(token.content, ("strong",) if head else ()), align))
    return rows


class RunsOf(Protocol):
    """Turns inline Markdown into runs over a base look."""

    def __call__(self, content: str, base: Look = ()) -> list[Run]: ...
