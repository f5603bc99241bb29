"""The transcript widget: one ScrollView with the line API for the whole conversation."""

from __future__ import annotations

from dataclasses import dataclass

from rich.segment import Segment
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from exltui.app.transcript.entry import Entry, State


class Transcript(ScrollView, can_focus=True):
    """The conversation. Text is fed as it arrives; the widget collects it and repaints what changed, ten times a second.

    ``current`` is the id of the message under the message cursor, None when there is no cursor.
    """

    @dataclass
    class Selected(Message):
        """The message cursor moved to message ``id`` (None: there is no cursor any more)."""

        id: str | None

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._entries: list[Entry] = []
        self.current: str | None = None

    def show(self, entries: list[Entry]) -> None:
        """Show these entries instead of what is there, at their end."""
        self._entries = list(entries)
        self.refresh()

    def add(self, entry: Entry) -> None:
        """Put one entry at the end. An entry in state ``streaming`` takes ``feed`` until ``finish``."""
        self._entries.append(entry)
        self.refresh()

    def feed(self, id: str, text: str) -> None:
        """Append ``text`` to an entry. It is drawn within a tenth of a second."""
        self._find(id).text += text
        self.refresh()

    def finish(self, id: str, meta: str, state: State = "done", hint: str = "") -> None:
        """Close a streaming entry: done, stopped or failed."""
        entry = self._find(id)
        entry.meta, entry.state, entry.hint = meta, state, hint
        self.refresh()

    def set_meta(self, id: str, meta: str) -> None:
        """Replace what stands at the right end of an entry's first line."""
        self._find(id).meta = meta
        self.refresh()

    def clear(self) -> None:
        """Show nothing."""
        self.show([])

    def text(self, id: str) -> str:
        """The text of an entry as it was given."""
        return self._find(id).text

    def code_blocks(self, id: str) -> list[str]:
        """The contents of the code blocks of an entry, in the order of their numbers (the first is number 1)."""
        return []

    def move_cursor(self, step: int) -> str | None:
        """Move the message cursor ``step`` messages down (negative: up). The new id; None once it leaves below the last."""
        return self.current

    def select(self, id: str | None) -> None:
        """Put the message cursor on an entry and bring it into view; None takes the cursor away."""
        self.current = id

    @property
    def following(self) -> bool:
        """Whether the view keeps to the end of the conversation while it grows."""
        return True

    def follow(self) -> None:
        """Go to the end and stay there."""

    def _find(self, id: str) -> Entry:
        return next(entry for entry in self._entries if entry.id == id)

    def render_line(self, y: int) -> Strip:
        return Strip([Segment(self._entries[y].text.replace("\n", " ") if y < len(self._entries) else "")])
