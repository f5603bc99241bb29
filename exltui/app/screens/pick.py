"""A list to choose from, narrowed by typing: themes, presets, branches, earlier prompts, found messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exltui.app.keys import key_name
from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import spread
from exltui.app.widgets.typing import LineInput
from exltui.text import one_line

SHOWN = 500  # rows at most; typing finds the others


@dataclass(frozen=True)
class Choice:
    """One row. ``key`` is what choosing it gives; ``right`` stands at the right edge, ``mark`` in the first column."""

    key: str
    text: str
    right: str = ""
    mark: str = ""
    about: str = ""  # shown below the list while the cursor is on it


class PickScreen(ClosesOnce, ModalScreen[str | None]):
    """Gives the key of the row that was chosen, or None. ``looked_at`` is told of every row that the cursor reaches.

    ``keys`` are further keys that end the choice: the result is then ``KEY:`` and the row's key.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="pick.close"),
        Binding("up,ctrl+k", "move(-1)", "Up", id="pick.up", priority=True),
        Binding("down", "move(1)", "Down", id="pick.down", priority=True),
        Binding("pageup", "move(-10)", "Ten up", show=False, priority=True),
        Binding("pagedown", "move(10)", "Ten down", show=False, priority=True),
    ]

    def __init__(
        self,
        title: str,
        choices: Sequence[Choice],
        *,
        at: str = "",
        looked_at: Callable[[str], None] | None = None,
        keys: dict[str, str] | None = None,
        value: str = "",
    ) -> None:
        super().__init__()
        self._title = title
        self._choices = list(choices)
        self._at = at
        self._looked_at = looked_at
        self._keys = keys or {}
        self._value = value
        self._shown: list[Choice] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="pick") as frame:
            frame.border_title = self._title
            extra = "".join(f" · {key_name(key).replace('Ctrl+', '^')} {word}" for key, word in self._keys.items())
            frame.border_subtitle = f"Enter choose{extra} · Esc close" if extra else "type to find · Enter choose · Esc close"
            yield LineInput(self._value, placeholder="type to find", compact=True, id="pick-input")
            yield OptionList(id="pick-list", compact=True)
            yield Static(id="pick-about")

    def on_mount(self) -> None:
        self.query_one("#pick-list").can_focus = False
        self.query_one("#pick-about").display = any(choice.about for choice in self._choices)
        self._fill()

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def replace(self, choices: Sequence[Choice]) -> None:
        """Show these rows in the place of the others; the cursor stays on its row."""
        self._choices = list(choices)
        self._fill()

    @property
    def _list(self) -> OptionList:
        return self.query_one("#pick-list", OptionList)

    @property
    def chosen(self) -> Choice | None:
        """The row under the cursor."""
        index = self._list.highlighted
        return self._shown[index] if index is not None and index < len(self._shown) else None

    @on(Input.Changed)
    def _fill(self) -> None:
        if not self.query("#pick-list"):  # closed before it was drawn again
            return
        keep = self.chosen.key if self.chosen else self._at
        words = self.query_one("#pick-input", Input).value.lower().split()
        fitting = (c for c in self._choices if all(word in f"{c.text} {c.right}".lower() for word in words))
        self._shown = [choice for choice, _ in zip(fitting, range(SHOWN), strict=False)]
        listed = self._list
        width = (listed.content_region.width or listed.size.width) - 2
        listed.clear_options()
        if not self._shown:
            listed.add_option(Option(Content.styled(" Nothing found.", "$text-muted"), disabled=True))
            return
        listed.add_options([Option(self._line(choice, width)) for choice in self._shown])
        keys = [choice.key for choice in self._shown]
        listed.highlighted = keys.index(keep) if keep in keys else 0

    @staticmethod
    def _line(choice: Choice, width: int) -> Content:
        left = Content.assemble((f"{choice.mark or ' '} ", "$accent"), choice.text.replace("\n", " ⏎ "))
        return spread(left, Content.styled(f" {choice.right}" if choice.right else "", "$text-muted"), width)

    @on(OptionList.OptionHighlighted)
    def _look(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if (choice := self.chosen) is None:
            return
        about = self.query_one("#pick-about", Static)
        if about.display:
            about.update(Content(one_line(choice.about, 400)))
        if self._looked_at is not None:
            self._looked_at(choice.key)

    @on(OptionList.OptionSelected)
    @on(Input.Submitted)
    def _choose(self, event: OptionList.OptionSelected | Input.Submitted) -> None:
        event.stop()
        if (choice := self.chosen) is not None:
            self.dismiss(choice.key)

    def take(self, key: str) -> bool:
        """Close with this key if it is one of the further ones."""
        choice = self.chosen if key in self._keys and self.is_mounted else None
        if choice is not None:
            self.dismiss(f"{key}:{choice.key}")
        return choice is not None

    def action_move(self, step: int) -> None:
        listed = self._list
        if self._shown:
            listed.highlighted = max(0, min(len(self._shown) - 1, (listed.highlighted or 0) + step))

    def action_leave(self) -> None:
        self.dismiss(None)
