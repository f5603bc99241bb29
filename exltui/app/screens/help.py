"""Help for what has the focus: its keys first, then those that work everywhere."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from exltui.app.keys import APP_ACTIONS, keys_name

PLACES = {
    "transcript": "Messages",
    "prompt": "Prompt",
    "sessions": "Sessions",
    "sampler": "Sampler",
    "devices": "Devices",
    "models": "Models",
}
EXTRA = {
    "Prompt": (
        ("Enter", "Send the message."),
        ("Ctrl+J", "Begin a new line; so do Shift+Enter and Alt+Enter where the terminal sends them."),
        ("↑, ↓", "In the first and last line: earlier messages of this chat."),
        ("PgUp, PgDn", "Scroll the conversation."),
    ),
    "Messages": (
        ("↑, ↓", "Scroll; End follows the text again."),
        ("1-9 then y", "Copy that code block."),
    ),
    "Devices": (("w, c, o", "Memory of the weights, of the cache, and of everything else."),),
}
COPYING = "Drag with the mouse selects text; with Shift held, most terminals select by themselves."


def binding_rows(screen: Screen) -> list[tuple[str, str]]:
    """(keys, what they do) of what has the focus. Only bindings with an id are the app's own; text editing is known to everybody."""
    keys: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if active.node is not screen.app and binding.id and binding.description and active.enabled:
            keys.setdefault(binding.description, []).append(binding.key)
    rows = [(keys_name(",".join(names[:3])), text) for text, names in keys.items()]
    return [*EXTRA.get(place_name(screen), ()), *rows]


def place_name(screen: Screen) -> str:
    """What the place that has the focus is called."""
    nodes = screen.focused.ancestors_with_self if screen.focused else []
    return next((PLACES[node.id] for node in nodes if node.id in PLACES), "Keys")


class HelpScreen(ModalScreen[None]):
    """A sheet of keys. Esc, F1 or ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,question_mark,q", "dismiss", "Close", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]

    def __init__(self, title: str, rows: list[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._rows = rows

    def compose(self) -> ComposeResult:
        sheet = VerticalScroll(Static(self._sheet()), id="sheet")
        sheet.border_title = f"Help · {self._title}"
        sheet.border_subtitle = "Esc closes"
        yield sheet

    def action_scroll(self, lines: int) -> None:
        self.query_one("#sheet").scroll_relative(y=lines, animate=False)

    def _sheet(self) -> Content:
        lines: list[Content] = []
        if self._rows:
            lines += [_heading(self._title), *(_row(keys, text) for keys, text in self._rows), Content("")]
        group = ""
        for action in APP_ACTIONS:
            if not action.keys:
                continue
            if action.group != group:
                lines += [Content("")] * bool(group) + [_heading(action.group)]
                group = action.group
            lines.append(_row(keys_name(action.keys), action.help))
        lines += [Content(""), Content.styled(COPYING, "$text-muted")]
        return Content("\n").join(lines)


def _heading(text: str) -> Content:
    return Content.styled(text, "bold $primary")


def _row(keys: str, text: str) -> Content:
    return Content.assemble((f"  {keys:<14}", "$accent"), f" {text}")
