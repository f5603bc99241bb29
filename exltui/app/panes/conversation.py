"""The conversation: the transcript with the keys that act on a message, and the prompt below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.strip import Strip

from exltui.app.keys import MESSAGE_ACTIONS
from exltui.app.transcript import Transcript
from exltui.app.widgets.prompt import PromptBox
from exltui.text import one_line


class Talk(Transcript):
    """The transcript with message keys. They work on the message under the cursor, or the last one when there is no cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in MESSAGE_ACTIONS]

    @dataclass
    class Wanted(Message):
        """A person wants ``what`` (copy, edit, regenerate, delete, undo, previous, next) done to message ``id``."""

        what: str
        id: str | None
        block: int | None = None

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._digit: int | None = None

    def render_line(self, y: int) -> Strip:
        """The row on the pane's own ground: what has no colour of its own must not show the terminal's."""
        return super().render_line(y).apply_style(self.rich_style)

    def on_key(self, event: events.Key) -> None:
        """A digit waits for the y that copies this code block."""
        if event.character and event.character in "123456789":
            self._digit = int(event.character)
            event.stop()
        elif event.key != "y":
            self._digit = None

    def action_copy(self) -> None:
        self._want("copy", self._digit)
        self._digit = None

    def action_edit(self) -> None:
        self._want("edit")

    def action_regenerate(self) -> None:
        self._want("regenerate")

    def action_delete(self) -> None:
        self._want("delete")

    def action_undo(self) -> None:
        self._want("undo")

    def action_sibling(self, step: int) -> None:
        self._want("next" if step > 0 else "previous")

    def _want(self, what: str, block: int | None = None) -> None:
        self.post_message(self.Wanted(what, self.current, block))


class ConversationPane(Vertical):
    """Transcript over prompt, with the chat's title and the model's name in the frame."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = ""
        self._model = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="talk"):
            yield Talk(id="transcript")
        with Vertical(id="asking") as asking:
            asking.border_subtitle = "Enter sends · Ctrl+J new line"
            yield PromptBox(id="prompt")

    @property
    def talk(self) -> Talk:
        return self.query_one("#transcript", Talk)

    @property
    def prompt(self) -> PromptBox:
        return self.query_one("#prompt", PromptBox)

    def name_chat(self, title: str, model: str) -> None:
        """Put the chat's title and the model's name into the frame."""
        self._title, self._model = one_line(title), one_line(model)
        self._draw_names()

    def on_resize(self) -> None:
        self._draw_names()

    def _draw_names(self) -> None:
        frame = self.query_one("#talk")
        room = frame.size.width - 4
        title = Content(self._title or "New chat").truncate(max(8, room - len(self._model) - 6), ellipsis=True)
        gap = room - title.cell_length - len(self._model) - 2
        if not self._model or gap < 2:
            frame.border_title = title
            return
        frame.border_title = Content.assemble(title, " ", ("─" * gap, "$border-blurred"), " ", (self._model, "$text-muted not bold"))
