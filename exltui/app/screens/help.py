"""Help for what has the focus: its keys first, then those that work everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.screen import Screen

from exltui.app.keys import Action, keys_name
from exltui.app.screens.sheet import heading, row

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
        ("/", "Type a command into the prompt."),
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


def help_text(title: str, rows: list[tuple[str, str]], actions: Sequence[Action], keymap: dict[str, str]) -> Content:
    """The keys of the place with the focus, then those that work everywhere, then the slash commands."""
    lines: list[Content] = []
    if rows:
        lines += [heading(title), *(row(keys, text) for keys, text in rows), Content("")]
    group = ""
    for action in actions:
        keys = keymap.get(action.id, action.keys)
        if not keys:
            continue
        if action.group != group:
            lines += [Content("")] * bool(group) + [heading(action.group)]
            group = action.group
        lines.append(row(keys_name(keys), action.help))
    lines += [Content(""), heading("Commands, typed as a message")]
    lines += [row(f"/{action.slash}", action.help) for action in actions if action.slash]
    return Content("\n").join([*lines, Content(""), Content.styled(COPYING, "$text-muted")])
