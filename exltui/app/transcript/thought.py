"""The thoughts above a reply: one line that says how long they were, and below it, unfolded, what they are."""

from __future__ import annotations

from rich.segment import Segment

from exltui.app.transcript.palette import Palette
from exltui.app.transcript.wrap import Line, spaces, wrap
from exltui.chat.thinking import ThoughtStream
from exltui.text import visible


class Thought:
    """Divides a reply's text as it comes: ``push`` keeps what is thought and returns what is said."""

    def __init__(self) -> None:
        self._stream = ThoughtStream()
        self._lines: list[str] = [""]
        self._drawn: list[list[Line]] = []  # of all lines of text but the last, which still grows
        self._drawn_for: tuple[int, Palette] | None = None
        self.folded = True

    @property
    def is_there(self) -> bool:
        return self._stream.thinks

    def push(self, text: str) -> str:
        """Take a portion of the reply."""
        return self._keep(*self._stream.feed(text))

    def close(self) -> str:
        """The reply is complete."""
        return self._keep(*self._stream.close())

    def _keep(self, thought: str, answer: str) -> str:
        first, *more = thought.split("\n")
        self._lines[-1] += first
        self._lines += more
        return answer

    def draw(self, label: str, width: int, palette: Palette, indent: int) -> list[Line]:
        """The line with ``label`` (how many tokens, how long), and the thoughts if they are unfolded."""
        if not self.is_there:
            return []
        sign, word = "▸" if self.folded else "▾", "thinking" if self._stream.thinking else "thought for"
        pad = (spaces(indent),)
        head = Line((*pad, Segment(f"{sign} {word} {label}".rstrip(), palette["meta"])), -1)
        if self.folded:
            return [head]
        if self._drawn_for is None or self._drawn_for[0] != width or self._drawn_for[1] is not palette:
            self._drawn, self._drawn_for = [], (width, palette)
        while len(self._drawn) < len(self._lines) - 1:
            self._drawn.append(self._wrapped(self._lines[len(self._drawn)], width, palette))
        rows = [line for lines in self._drawn for line in lines] + self._wrapped(self._lines[-1], width, palette)
        bar = Segment("┊ ", palette["rule"])
        while rows and not rows[-1].text.strip():
            rows.pop()
        return [head, *(row.behind((*pad, bar)) for row in rows), Line((), -1)]

    @staticmethod
    def _wrapped(text: str, width: int, palette: Palette) -> list[Line]:
        return wrap([(visible(text), palette["hint"])], max(4, width - 2))
