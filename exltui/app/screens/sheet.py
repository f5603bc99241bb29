"""A sheet of text to read, over whatever is there."""

from __future__ import annotations

import textwrap
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from exltui.app.screens.once import ClosesOnce

LINE = 71  # cells for a name and its text: what 80 columns have within a frame


class SheetScreen(ClosesOnce, ModalScreen[None]):
    """Esc, q, F1 or ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,question_mark,q", "dismiss", "Close", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]

    def __init__(self, title: str, text: Content, hint: str = "Esc closes") -> None:
        super().__init__()
        self._title, self._text, self._hint = title, text, hint

    def compose(self) -> ComposeResult:
        sheet = VerticalScroll(Static(self._text), id="sheet")
        sheet.border_title = self._title
        sheet.border_subtitle = self._hint
        yield sheet

    def action_scroll(self, lines: int) -> None:
        self.query_one("#sheet").scroll_relative(y=lines, animate=False)


def heading(text: str) -> Content:
    return Content.styled(text, "bold $primary")


def row(left: str, text: str, width: int = 14) -> Content:
    """A name in its column and what it says, which stays in its own column where it takes several lines."""
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, LINE - width) or [""]]
    return Content.assemble((f"  {left:<{width}}", "$accent"), " ", f"\n{'':<{width + 3}}".join(lines))
