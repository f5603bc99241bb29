"""The conversation: the transcript with the keys that act on a message, and the prompt below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.scrollbar import ScrollBar
from textual.strip import Strip
from textual.widgets import TextArea

from exltui.app.actions import MESSAGE_ACTIONS
from exltui.app.transcript import Transcript
from exltui.app.transcript.caret import Caret
from exltui.app.widgets.commands import CommandMenu
from exltui.app.widgets.prompt import PromptBox
from exltui.app.widgets.slowly import Bar, InParts, Link
from exltui.text import one_line


class Talk(InParts, Transcript):
    """The transcript with message keys. They work on the message under the cursor, or the last one when there is no cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in MESSAGE_ACTIONS]

    @dataclass
    class Taken(Message):
        """This text was selected by keys and is to be copied."""

        text: str

    def __init__(self, link: Link, *, id: str | None = None) -> None:
        self.repaint_in_parts(link)
        super().__init__(id=id)
        self.ready = lambda: (file := link()) is None or not file.waiting
        self._digit: int | None = None
        self.caret = Caret(self)

    @property
    def vertical_scrollbar(self) -> ScrollBar:
        """One that is repainted in parts, too."""
        if self._vertical_scrollbar is None:
            self._vertical_scrollbar = Bar(self.link, self.scrollbar_size_vertical)
            self.app._start_widget(self, self._vertical_scrollbar)
        return self._vertical_scrollbar

    def render_line(self, y: int) -> Strip:
        """The row on the pane's own ground: what has no colour of its own must not show the terminal's."""
        return super().render_line(y).apply_style(self.rich_style)

    def on_key(self, event: events.Key) -> None:
        """While text is selected the keys are the caret's; a digit waits for the y that copies this code block."""
        if self.caret.active:
            event.stop()
            event.prevent_default()
            if event.key in ("y", "enter"):
                self.post_message(self.Taken(self.screen.get_selected_text() or ""))
                self.caret.leave()
            elif event.key == "escape" or not self.caret.key(event.key):
                self.caret.leave()
        elif event.character and event.character in "123456789":
            self._digit = int(event.character)
            event.stop()
        elif event.key != "y":
            self._digit = None

    def on_blur(self) -> None:
        if self.caret.active:
            self.caret.leave()

    def take_digit(self) -> int | None:
        """The digit that was pressed before this key."""
        digit, self._digit = self._digit, None
        return digit


HINT = "Enter sends · Ctrl+J new line · / commands"


class ConversationPane(Vertical):
    """Transcript over prompt, with the chat's title and the model's name in the frame."""

    def __init__(self, link: Link, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._link = link
        self._title = self._model = self._purpose = self._warning = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="talk"):
            yield Talk(self._link, id="transcript")
        yield CommandMenu(id="commands")
        with Vertical(id="asking") as asking:
            asking.border_subtitle = HINT
            yield PromptBox(id="prompt")

    def on_mount(self) -> None:
        self.prompt.menu = self.query_one("#commands", CommandMenu)

    @on(TextArea.Changed, "#prompt")
    def _typed(self) -> None:
        self.query_one("#commands", CommandMenu).follow(self.prompt.text)

    @on(PromptBox.Paged)
    def _paged(self, event: PromptBox.Paged) -> None:
        event.stop()
        if event.pages < 0:
            self.talk.scroll_page_up()
        else:
            self.talk.scroll_page_down()

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

    def show_purpose(self, purpose: str) -> None:
        """Say what is being written in the prompt; "" is the next message."""
        self._purpose = purpose
        self.query_one("#asking").set_class(bool(purpose), "-purpose")
        self._draw_asking()

    def show_budget(self, budget: tuple[str, bool]) -> None:
        """Put the size of what would be sent, or a warning, into the frame of the prompt."""
        text, warns = budget
        self._warning = text if warns else ""
        self.query_one("#asking").border_subtitle = HINT if not text else "" if warns else f"{text} · {HINT}"
        self._draw_asking()

    def _draw_asking(self) -> None:
        """The purpose and the warning. A small terminal has a line above the prompt and none below: there the title warns."""
        asking = self.query_one("#asking")
        above = self._purpose or (self._warning if self.screen.has_class("-narrow") else "")
        asking.border_title = Content.styled(above, "$warning") if above else ""
        if self._warning:
            asking.border_subtitle = Content.styled(self._warning, "$warning bold")

    def on_resize(self) -> None:
        self._draw_names()
        self._draw_asking()

    def _draw_names(self) -> None:
        frame = self.query_one("#talk")
        room = frame.size.width - 4
        title = Content(self._title or "New chat").truncate(max(8, room - len(self._model) - 6), ellipsis=True)
        gap = room - title.cell_length - len(self._model) - 2
        if not self._model or gap < 2:
            frame.border_title = title
            return
        frame.border_title = Content.assemble(title, " ", ("─" * gap, "$border-blurred"), " ", (self._model, "$text-muted not bold"))
