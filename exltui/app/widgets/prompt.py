"""The prompt box: several lines, history, and pastes of any size."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from exltui.app.widgets.commands import CommandMenu
from exltui.app.widgets.typing import KeysInOrder
from exltui.text import visible

LONG_TEXT = 8_000  # characters; longer pastes stand aside behind a short mark
LONG_LINES = 100
SEND = ("enter",)
NEW_LINE = ("ctrl+j", "shift+enter", "alt+enter", "newline")


class PromptBox(KeysInOrder, TextArea):
    """Where a message is written. Enter sends; Ctrl+J, Shift+Enter and Alt+Enter make a new line.

    Up in the first row and Down in the last walk through the history; what was being written stays at its end. A long paste is kept
    aside and shows as a mark like ``[paste 1: 12,345 lines]``; taking the mark out takes the paste out.
    """

    DEFAULT_CSS = "PromptBox { height: auto; min-height: 1; }"

    @dataclass
    class Submitted(Message):
        """Somebody sent ``text`` (long pastes put back in). The box is empty again."""

        text: str

    @dataclass
    class Paged(Message):
        """PgUp (-1) or PgDn (1) was pressed where all that is written is in view."""

        pages: int

    def __init__(self, *, placeholder: str = "Ask anything", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, placeholder=placeholder, compact=True, highlight_cursor_line=False)
        self.cursor_blink = False  # a blinking cursor would be a timer, and bytes, while nothing happens
        self._history: list[str] = []
        self._at = 0  # where in the history; its length means: in the draft
        self._draft = ""
        self._pastes: dict[str, str] = {}  # mark -> text
        self.menu: CommandMenu | None = None  # gets the keys first while it is shown

    def set_history(self, texts: list[str]) -> None:
        """What Up and Down walk through, oldest first."""
        self._history = [text for text in texts if text.strip()]
        self._at = len(self._history)

    def put(self, text: str) -> None:
        """Replace what is in the box, with the cursor at the end. A long text stands aside behind a mark."""
        self._at = len(self._history)
        self._pastes.clear()
        self._load(self._fold(text))

    def take_in(self, text: str) -> None:
        """Insert ``text`` at the cursor; a long one stands aside behind a mark."""
        self.replace(self._fold(text), *self.selection, maintain_selection_offset=False)
        self.scroll_cursor_visible()
        self.focus()

    @property
    def full_text(self) -> str:
        """What would be sent: the text with long pastes put back in."""
        text = self.text
        for mark, paste in self._pastes.items():
            text = text.replace(mark, paste)
        return text

    def action_submit(self) -> None:
        """Send what is written, unless it is blank."""
        text = self.full_text
        if text.strip():
            if self._history[-1:] != [text]:
                self._history.append(text)
            self.put("")
            self._draft = ""
            self.post_message(self.Submitted(text))

    def action_new_line(self) -> None:
        """Start a new line where the cursor is."""
        self.replace("\n", *self.selection, maintain_selection_offset=False)
        self.scroll_cursor_visible()

    def render_line(self, y: int) -> Strip:
        """A row; an empty one where there is no room at all, for which the text area cannot wrap its placeholder."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)

    async def _on_key(self, event: events.Key) -> None:
        completed = self.menu.press(event.key, self.text) if self.menu is not None else None
        if completed is not None:
            event.stop()
            event.prevent_default()
            if completed != self.text:
                self._load(completed)
            return
        if event.key in SEND:
            action = self.action_submit
        elif event.key in NEW_LINE:
            action = self.action_new_line
        else:
            return  # the other handlers come next
        event.stop()
        event.prevent_default()
        action()

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.take_in(event.text.replace("\r\n", "\n").replace("\r", "\n"))

    def _fold(self, text: str) -> str:
        """``text`` as the box shows it: a long one is put aside and its mark takes its place."""
        lines = text.count("\n") + 1
        if len(text) <= LONG_TEXT and lines <= LONG_LINES:
            return visible(text)
        number = len(self._pastes) + 1
        amount = f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        mark = f"[paste {number}: {amount}]"
        self._pastes[mark] = text
        return mark

    def _load(self, text: str, *, at_end: bool = True) -> None:
        """Show ``text`` with the cursor at its end, or at the end of its first line."""
        self.load_text(text)
        self.move_cursor(self.document.end if at_end else (0, len(self.document.get_line(0))))

    # ── history ──

    def action_cursor_up(self, select: bool = False) -> None:
        """A row up; from the first row, back in the history."""
        first = self.navigator.is_first_wrapped_line(self.cursor_location)
        if select or not first or not self._recall(-1):
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """A row down; from the last row, forward in the history."""
        last = self.navigator.is_last_wrapped_line(self.cursor_location)
        if select or not last or not self._recall(1):
            super().action_cursor_down(select)

    def action_cursor_page_up(self) -> None:
        """A page up in what is written; where all of it is in view, in the conversation."""
        if self.max_scroll_y:
            super().action_cursor_page_up()
        else:
            self.post_message(self.Paged(-1))

    def action_cursor_page_down(self) -> None:
        """A page down, likewise."""
        if self.max_scroll_y:
            super().action_cursor_page_down()
        else:
            self.post_message(self.Paged(1))

    def _recall(self, step: int) -> bool:
        """Show the text ``step`` places on in the history; False where it ends."""
        at = self._at + step
        if not 0 <= at <= len(self._history):
            return False
        if self._at == len(self._history):
            self._draft = self.full_text
        self._at = at
        self._pastes.clear()
        text = self._history[at] if at < len(self._history) else self._draft
        self._load(self._fold(text), at_end=step > 0)
        return True
