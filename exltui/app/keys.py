"""Actions and their keys: what one is, how keys are named, and whether a person's own keys fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.binding import Binding

from exltui.errors import SettingsError


@dataclass(frozen=True)
class Action:
    """One thing a person can do; ``actions.DO`` says how.

    ``everywhere`` keys win over text input. ``slash`` is the command's name and what it takes: ``title [TEXT]``.
    """

    id: str
    keys: str
    label: str
    help: str
    group: str
    slash: str = ""
    everywhere: bool = True
    palette: bool = True

    @property
    def command(self) -> str:
        """The name of the slash command, without what it takes."""
        return self.slash.partition(" ")[0]

    def binding(self) -> Binding:
        """The key as Textual takes it."""
        return Binding(self.keys, f"app.do('{self.id}')", self.label, id=self.id, priority=self.everywhere, tooltip=self.help, show=False)


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


def check_keymap(keymap: dict[str, str], defaults: Sequence[tuple[str, str, str]]) -> list[SettingsError]:
    """What is wrong with a person's own keys: actions that do not exist, and keys that one place would give to two actions.

    ``defaults`` are (place, action's id, keys): keys of different places do not meet, those of the place "" meet all others.
    """
    known = {id: place for place, id, _ in defaults}
    problems = [
        SettingsError(f"settings: keys.{id} is not an action.", f"Known are {', '.join(sorted(known))}.")
        for id in keymap
        if id not in known
    ]
    taken: dict[str, list[tuple[str, str]]] = {}
    for place, id, keys in defaults:
        for key in keymap.get(id, keys).split(","):
            if key.strip():
                taken.setdefault(key.strip(), []).append((place, id))
    for key, users in taken.items():
        for number, (place, id) in enumerate(users):
            meets = [other for where, other in users[:number] if other != id and (where == place or not where or not place)]
            if meets and (id in keymap or meets[0] in keymap):
                hint = "Give one of them another key."
                problems.append(SettingsError(f"settings: {key_name(key)} is given to both {meets[0]} and {id}.", hint))
    return problems
