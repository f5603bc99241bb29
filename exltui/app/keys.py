"""Every action of the app: its keys, where it is listed, and one line of help. Bindings, palette and help are made from this table."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding

from exltui.errors import SettingsError


@dataclass(frozen=True)
class Action:
    """One thing a person can do. ``action`` is the name of an ``action_...`` method; ``everywhere`` keys win over text input."""

    id: str
    keys: str
    action: str
    label: str
    help: str
    group: str
    everywhere: bool = True
    palette: bool = True

    def binding(self) -> Binding:
        return Binding(self.keys, self.action, self.label, id=self.id, priority=self.everywhere, tooltip=self.help, show=False)


APP_ACTIONS = (
    Action("chat.new", "ctrl+n", "new_chat", "New chat", "Start an empty chat; the old one stays in the list.", "Chat"),
    Action("chat.stop", "escape", "escape", "Stop or close", "Stop the reply that is being written, or close what is open.", "Chat", False),
    Action("chat.editor", "ctrl+e", "editor", "Write in $EDITOR", "Open the prompt in your editor.", "Chat"),
    Action("message.up", "alt+up", "message(-1)", "Message above", "Put the message cursor on the message above.", "Messages"),
    Action("message.down", "alt+down", "message(1)", "Message below", "Put the message cursor on the message below.", "Messages"),
    Action("message.previous", "alt+left", "sibling(-1)", "Previous version", "Show the version before this one.", "Messages"),
    Action("message.next", "alt+right", "sibling(1)", "Next version", "Show the version after this one.", "Messages"),
    Action("pane.sessions", "ctrl+o,f5", "pane('sessions')", "Sessions", "All chats: open, search, rename, delete.", "Panes"),
    Action("pane.sampler", "ctrl+s,f2", "pane('sampler')", "Sampler", "How the next reply is drawn.", "Panes"),
    Action("pane.devices", "ctrl+d,f4", "pane('devices')", "Devices", "Memory and load of each device.", "Panes"),
    Action("models.loader", "ctrl+l,f3", "loader", "Models", "Load, unload or download a model.", "Models"),
    Action("models.unload", "", "unload", "Unload the model", "Give its memory back.", "Models"),
    Action("app.theme", "", "change_theme", "Theme", "Choose how the app looks.", "App"),
    Action("app.help", "f1", "help", "Help", "The keys of the pane that has the focus.", "App"),
    Action("app.interrupt", "ctrl+c", "interrupt", "Copy or stop", "Copy what is selected, or stop; twice quits.", "App", palette=False),
    Action("app.quit", "ctrl+q", "quit", "Quit", "Leave; a reply that is being written is saved.", "App"),
)  # fmt: skip

MESSAGE_ACTIONS = (
    Action("message.copy", "y", "copy", "Copy", "Copy the message; with a digit before it, code block n.", "Messages", False),
    Action("message.edit", "e", "edit", "Edit", "Write the message anew as a branch of its own; the old one stays.", "Messages", False),
    Action("message.regenerate", "r", "regenerate", "Regenerate", "Have the reply written again; the old one stays.", "Messages", False),
    Action("message.delete", "d", "delete", "Delete", "Take the message and what follows out (u brings it back).", "Messages", False),
    Action("message.undo", "u", "undo", "Undo", "Bring back what was deleted last.", "Messages", False),
    Action("message.previous_plain", "left_square_bracket", "sibling(-1)", "Previous version", "", "Messages", False, False),
    Action("message.next_plain", "right_square_bracket", "sibling(1)", "Next version", "", "Messages", False, False),
)  # fmt: skip

ALL = (*APP_ACTIONS, *MESSAGE_ACTIONS)
SIGNS = {
    "escape": "Esc", "enter": "Enter", "up": "↑", "down": "↓", "left": "←", "right": "→", "question_mark": "?", "slash": "/",
    "delete": "Del", "backspace": "Bksp", "left_square_bracket": "[", "right_square_bracket": "]", "minus": "-", "plus": "+",
    "pageup": "PgUp", "pagedown": "PgDn", "home": "Home", "end": "End", "space": "Space", "tab": "Tab",
}  # fmt: skip


def key_name(key: str) -> str:
    """A key as people write it: ``ctrl+p`` becomes ``Ctrl+P``, ``question_mark`` becomes ``?``."""
    parts = key.strip().split("+")
    last = parts[-1]
    name = SIGNS.get(last) or (last.upper() if len(last) > 1 and last[0] == "f" and last[1:].isdigit() else last)
    if len(parts) > 1 and len(last) == 1:
        name = last.upper()
    return "+".join([*(part.capitalize() for part in parts[:-1]), name])


def keys_name(keys: str) -> str:
    """A comma-separated list of keys as people write it."""
    return ", ".join(key_name(key) for key in keys.split(",") if key)


def check_keymap(keymap: dict[str, str], known: set[str]) -> None:
    """Raise SettingsError when the settings name an action that does not exist or give one key to two actions."""
    taken: dict[str, str] = {}
    for id, keys in keymap.items():
        if id not in known:
            raise SettingsError(f"settings: keys.{id} is not an action.", f"Known are {', '.join(sorted(known))}.")
        for key in keys.split(","):
            other = taken.setdefault(key.strip(), id)
            if other != id:
                raise SettingsError(f"settings: {key.strip()} is given to both {other} and {id}.", "Give one of them another key.")
