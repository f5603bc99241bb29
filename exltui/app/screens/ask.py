"""One line to type into, over whatever is there."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.typing import LineInput


class AskScreen(ClosesOnce, ModalScreen[str | None]):
    """Gives what was typed, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Close", id="ask.close")]

    def __init__(self, title: str, value: str = "", placeholder: str = "") -> None:
        super().__init__()
        self._title, self._value, self._placeholder = title, value, placeholder

    def compose(self) -> ComposeResult:
        with Vertical(id="ask") as frame:
            frame.border_title = self._title
            frame.border_subtitle = "Enter takes it · Esc leaves it"
            yield LineInput(self._value, placeholder=self._placeholder, compact=True, id="ask-input")

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)
