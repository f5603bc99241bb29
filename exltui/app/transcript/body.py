"""The text of one entry as lines, drawn once and then only where it grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.segment import Segment

from exltui.app.transcript.fence import CodeBlock, NestedCode, expand
from exltui.app.transcript.inline import PARSER, mend
from exltui.app.transcript.markdown import Drawing, draw_markdown
from exltui.app.transcript.palette import Palette
from exltui.app.transcript.scan import Piece, Scanner
from exltui.app.transcript.wrap import Line, wrap

_BLANK = Line(())
_OWN_SPACE = ("fence", "rule", "heading")


@dataclass
class Change:
    """What an update did: from line ``first`` on, ``old`` lines became ``new`` ones. Lines before ``first`` are as they were."""

    first: int
    old: list[Line]
    new: list[Line]


@dataclass
class Part:
    """One piece and its lines. The first ``fixed`` lines will not change by more text."""

    piece: Piece
    gap: int  # blank lines above
    lines: list[Line] = field(default_factory=list)
    fixed: int = 0
    codes: int = 0  # code blocks up to and with this piece
    ends_in_code: bool = False
    block: CodeBlock | None = None  # of a fence
    nested: NestedCode = field(default_factory=NestedCode)


class Body:
    """A text that grows at its end, as lines of one width. The lines are a function of text, width and palette alone."""

    def __init__(self, text: str, *, markdown: bool = True, closed: bool = True) -> None:
        self._scanner = Scanner(markdown=markdown)
        self._scanner.push(text)
        self._closed = False
        self._parts: list[Part] = []
        self._tops: list[int] = [0]  # first line of each part, and behind the last one the height
        self._decided = 0  # parts whose pieces are decided; at most one more shows a piece that a partial line may start
        self._width = 0
        self._palette: Palette | None = None
        if closed:
            self.close()

    @property
    def height(self) -> int:
        """Lines, once drawn."""
        return self._tops[-1]

    def push(self, text: str) -> None:
        """Append text; ``update`` draws it."""
        self._scanner.push(text)

    def close(self) -> None:
        """No more text follows."""
        self._scanner.close()
        self._closed = True

    def draw(self, width: int, palette: Palette) -> None:
        """Draw everything for this width and these looks, if it is not drawn so already."""
        if width != self._width or palette is not self._palette:
            self._parts, self._tops, self._decided = [], [0], 0
            self._width, self._palette = width, palette
            self.update()

    def update(self) -> Change:
        """Draw what was pushed since the last time. Its cost does not depend on how much text is there already."""
        at = max(0, self._decided - 1)
        first = self._tops[at] + (self._parts[at].fixed if at < self._decided else 0)
        old = self.lines(first, self.height)
        pieces = self._scanner.pieces
        starts, adds = self._scanner.preview()
        del self._parts[self._decided :]
        for index in range(at, len(pieces)):
            if index == len(self._parts):
                self._parts.append(self._part(pieces[index]))
            self._redraw(index, adds if index == len(pieces) - 1 and starts is None else [])
        self._decided = len(pieces)
        if starts is not None:
            self._parts.append(self._part(starts))
            self._redraw(len(pieces), [])
        del self._tops[at + 1 :]
        for part in self._parts[at:]:
            self._tops.append(self._tops[-1] + len(part.lines))
        return Change(first, old, self.lines(first, self.height))

    def lines(self, start: int, stop: int) -> list[Line]:
        """Lines from ``start`` up to ``stop``, which is left out."""
        found: list[Line] = []
        index = bisect_right(self._tops, start) - 1
        while start < stop and index < len(self._parts):
            top = self._tops[index]
            found += self._parts[index].lines[start - top : stop - top]
            index += 1
            start = self._tops[index]
        return found

    def code_blocks(self) -> list[str]:
        """The contents of all code blocks, in order."""
        found: list[str] = []
        for piece in self._scanner.pieces:
            if piece.kind == "fence":
                found.append("\n".join(piece.lines))
            elif piece.kind != "plain":
                tokens = PARSER.parse("\n".join(piece.lines))
                found += [token.content.removesuffix("\n") for token in tokens if token.type in ("fence", "code_block")]
        return found

    def _part(self, piece: Piece) -> Part:
        if not self._parts or self._parts[-1].piece.kind == "heading":
            return Part(piece, 0)
        before = self._parts[-1]
        return Part(piece, int(piece.gap or piece.kind in _OWN_SPACE or before.piece.kind in _OWN_SPACE or before.ends_in_code))

    def _redraw(self, index: int, adds: Sequence[str]) -> None:
        """Draw the part anew, or of an open fence what is not settled; ``adds`` are lines that are not decided yet."""
        part = self._parts[index]
        codes = self._parts[index - 1].codes if index else 0
        palette = self._palette
        if palette is None:
            return
        if part.piece.kind == "fence":
            part.codes = codes + 1
            self._redraw_fence(part, adds, palette)
            return
        source = [*part.piece.lines, *adds]
        if part.piece.kind == "plain":
            part.codes = codes
            lines = wrap([("\n".join(map(expand, source)), palette[""])], self._width)
        else:
            if not self._closed and index >= len(self._scanner.pieces) - 1:
                source = mend("\n".join(source)).split("\n")
            drawing = Drawing(source, palette, part.nested, codes, part.piece.number)
            lines = draw_markdown(drawing, self._width)
            part.codes, part.ends_in_code = drawing.codes, drawing.ends_in_code
        part.lines = [_BLANK] * part.gap + lines

    def _redraw_fence(self, part: Part, adds: Sequence[str], palette: Palette) -> None:
        block = part.block
        if block is None:
            block = part.block = CodeBlock(part.piece.language, part.codes, self._width, palette)
            part.lines = [_BLANK] * part.gap
        del part.lines[part.fixed or part.gap :]
        kept = max(0, part.fixed - part.gap)
        block.update(part.piece.lines, adds[-1] if adds else None)
        part.lines += block.lines[kept:]
        part.fixed = part.gap + block.fixed


def card(sentence: str, hint: str, width: int, palette: Palette, look: str = "error") -> list[Line]:
    """An error as a card: the sentence, then what to do about it."""
    bar = Segment("┃ ", palette[look])
    lines = wrap([(sentence, palette[look])], width - 2) if sentence else []
    lines += wrap([(hint, palette["hint"])], width - 2) if hint else []
    return [line.behind((bar,)) for line in lines]
