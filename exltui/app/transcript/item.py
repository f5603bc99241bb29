"""One entry of the transcript as rows: the line with its name, its text, a card when something went wrong, a blank line."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment

from exltui.app.transcript.body import Body, Change, card
from exltui.app.transcript.entry import Entry
from exltui.app.transcript.palette import Palette
from exltui.app.transcript.thought import Thought
from exltui.app.transcript.wrap import Line, spaces, wrap
from exltui.text import one_line, visible

_BLANK = Line((), -1)
WIDEST = 120  # cells of text: longer lines are hard to read
LONGEST_SHOWN = 100_000  # characters of a message by a person that are drawn (all of it is kept and copied)


class Item:
    """One entry and its rows. ``height`` is an estimate until ``draw`` was called."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._thought = Thought()
        self._made: Body | None = None  # made when it is first needed: most of a long conversation is never looked at
        self._head: list[Line] = []
        self._foot: list[Line] = []
        self._width = 0
        self._palette: Palette | None = None
        self._measured = 0  # the width for which height is exact
        self.height = 0

    @property
    def is_message(self) -> bool:
        """Whether the message cursor stops here."""
        return self.entry.state not in ("notice", "error")

    @property
    def drawn(self) -> bool:
        """Whether rows are at hand, of whatever width."""
        return self._width > 0

    def drawn_for(self, width: int) -> bool:
        """Whether rows of this width are at hand."""
        return 0 < width == self._width

    def estimate(self, width: int) -> None:
        """Set ``height`` to a guess for this width, unless it is known."""
        if self._width == width:
            self._count_rows()
        elif self._measured != width:
            room = max(8, min(width, WIDEST) - indent(width) - 1)
            text = self.entry.text[:LONGEST_SHOWN]
            self.height = 2 + max(1, text.count("\n") + len(text) // room) if self.is_message else 2
            self._measured = 0

    def draw(self, width: int, palette: Palette) -> None:
        """Draw all rows for this width and these looks, if they are not."""
        if width != self._width or palette is not self._palette:
            self._width, self._palette = width, palette
            if self.is_message:
                self._body.draw(self._text_width, palette)
            self._draw_frame()
        self._count_rows()

    def forget(self) -> None:
        """Give the rows' memory back; the height stays known. Not for an entry that still grows."""
        folded = self._thought.folded
        self._made, self._thought = None, Thought()
        self._thought.folded = folded
        self._head, self._foot, self._width = [], [], 0

    def push(self, text: str) -> None:
        """Append text; ``update`` draws it."""
        self.entry.text += text
        if self._made is not None:
            self._made.push(self._thought.push(text))

    def close(self) -> None:
        """The text is complete."""
        if self._made is not None:
            self._made.push(self._thought.close())
            self._made.close()

    def update(self) -> Change:
        """Draw what was pushed. Row numbers are the item's; the rows below the text count as changed with it."""
        foot, head = self._foot, self._head
        change = self._body.update()
        self._draw_frame()
        old, new = self._indented(change.old), self._indented(change.new)
        if self._head == head:
            return Change(len(head) + change.first, [*old, *foot], [*new, *self._foot])
        above = self._indented(self._body.lines(0, change.first))
        return Change(0, [*head, *above, *old, *foot], [*self._head, *above, *new, *self._foot])

    def fold(self) -> bool:
        """Show the thoughts or put them away; False if there are none."""
        if self._made is None or not self._thought.is_there:
            return False
        self._thought.folded = not self._thought.folded
        self._draw_frame()
        return True

    def rows(self, start: int, stop: int) -> list[Line]:
        """Rows from ``start`` up to ``stop``, which is left out."""
        head, body = len(self._head), self._body.height
        found = self._head[start:stop]
        if stop > head:
            found += self._indented(self._body.lines(max(0, start - head), min(body, stop - head)))
            found += self._foot[max(0, start - head - body) : max(0, stop - head - body)]
        return found

    def reframe(self) -> None:
        """Draw the line with the name anew."""
        self._draw_frame()

    def _indented(self, lines: list[Line]) -> list[Line]:
        pad = (spaces(indent(self._width)),)
        return [line.behind(pad) for line in lines]

    def code_blocks(self) -> list[str]:
        """The contents of all code blocks, in the order of their numbers."""
        return self._body.code_blocks()

    @property
    def _body(self) -> Body:
        if self._made is None:
            self._made = self._make_body()
        return self._made

    @property
    def _text_width(self) -> int:
        return max(8, min(self._width, WIDEST) - indent(self._width) - 1)

    def _make_body(self) -> Body:
        entry = self.entry
        if entry.role == "user":
            text = entry.text
            if len(text) > LONGEST_SHOWN:
                text = f"{text[:LONGEST_SHOWN]}\n… {len(text) - LONGEST_SHOWN:,} more characters"
            return Body(text, markdown=False)
        said = self._thought.push(entry.text)
        if entry.state == "streaming":
            return Body(said, closed=False)
        return Body(said + self._thought.close())

    def _draw_frame(self) -> None:
        """Draw the rows above and below the text."""
        entry, palette = self.entry, self._palette
        if palette is None:
            return
        if entry.state == "notice":
            self._head = [line.behind((spaces(1),)) for line in wrap([(visible(entry.text), palette["notice"])], self._width - 2)]
            self._foot = [_BLANK]
        elif entry.state == "error":
            sentence, hint = visible(entry.text), visible(entry.hint)
            self._head = [line.behind((spaces(1),)) for line in card(sentence, hint, self._text_width, palette)]
            self._foot = [_BLANK]
        else:
            body = self._body  # to make it finds the thoughts
            thoughts = self._thought.draw(entry.thought, self._text_width, palette, indent(self._width))
            self._head = [self._name_line(palette), *thoughts]
            self._foot = self._card(palette)
            if body.height == 0 and entry.state == "streaming" and not thoughts:
                self._foot.append(Line((spaces(indent(self._width)), Segment("…", palette["meta"])), -1))
            self._foot.append(_BLANK)
        self._count_rows()

    def _count_rows(self) -> None:
        body = self._body.height if self.is_message else 0
        self.height, self._measured = len(self._head) + body + len(self._foot), self._width

    def _name_line(self, palette: Palette) -> Line:
        """Who speaks on the left, the numbers on the right."""
        entry = self.entry
        look = entry.role if entry.role in ("user", "assistant", "system") else "system"
        room = min(self._width, WIDEST) - 2
        meta = one_line(" · ".join(part for part in (entry.meta, "stopped" if entry.state == "stopped" else "") if part), max(8, room - 8))
        name = one_line(entry.name or entry.role, max(4, room - cell_len(meta) - 1))
        gap = max(1, room - cell_len(name) - cell_len(meta)) if meta else 0
        return Line((spaces(1), Segment(name, palette[look]), spaces(gap), Segment(meta, palette["meta"])), 1)

    def _card(self, palette: Palette) -> list[Line]:
        """What went wrong with this message."""
        entry = self.entry
        if not entry.hint or entry.state not in ("failed", "stopped"):
            return []
        look = "error" if entry.state == "failed" else "hint"
        sentence, _, way_out = visible(entry.hint).partition("\n")
        lines = card(sentence, way_out, self._text_width, palette, look)
        return [*([_BLANK] if self._body.height else []), *(line.behind((spaces(indent(self._width)),)) for line in lines)]


def indent(width: int) -> int:
    """Columns to the left of a message's text: the message cursor's and, where there is room, two more."""
    return 3 if width >= 76 else 1
