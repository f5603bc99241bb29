"""The slash commands that fit what is typed, above the prompt."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from exltui.app.actions import COMMANDS
from exltui.app.keys import Action

NAMES = 22  # cells for the names of the commands


class CommandMenu(OptionList, can_focus=False):
    """Is there while the prompt holds the beginning of a command and nothing else. The prompt hands its keys on."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True)
        self._fitting: list[Action] = []
        self._left = ""  # the text at which Esc was pressed
        self.display = False

    def follow(self, text: str) -> None:
        """Show what fits the text of the prompt."""
        typed = text.removeprefix("/")
        wanted = text.startswith("/") and text != self._left and (not typed or typed.replace("-", "").isalpha())
        self._left = text if text == self._left else ""
        self._fitting = [COMMANDS[name] for name in sorted(COMMANDS) if wanted and name.startswith(typed)]
        self.display = bool(self._fitting)
        if not self.display:
            return
        self.clear_options()
        for action in self._fitting:
            line = Content.assemble((f" /{action.slash:<{NAMES}}", "$accent"), (f" {action.help}", "$text-muted"))
            self.add_option(Option(line.truncate(max(NAMES, self.parent_width - 6), ellipsis=True)))
        self.highlighted = 0

    @property
    def parent_width(self) -> int:
        """Cells of the pane; the menu's own width is not known before it is shown."""
        return self.parent.size.width if isinstance(self.parent, Widget) else 0

    def press(self, key: str, text: str) -> str | None:
        """Take a key of the prompt: the text that it makes of the prompt's, or None if the key is not for the menu."""
        if not self.display:
            return None
        if key in ("up", "down"):
            self.highlighted = ((self.highlighted or 0) + (1 if key == "down" else -1)) % len(self._fitting)
            return text
        chosen = self._fitting[self.highlighted or 0]
        if key == "escape":
            self._left, self.display = text, False
            return text
        if key == "tab" or (key == "enter" and text.removeprefix("/") != chosen.command):
            return f"/{chosen.command}{' ' if ' ' in chosen.slash else ''}"
        return None
