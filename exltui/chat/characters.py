"""A person's own system prompts and characters: one file each, in a folder beside the settings.

    NAME.md     the system prompt; before it, between two lines of ``+++``, there may be a head in TOML
    NAME.toml   the keys of that head, and ``system``
    NAME.json, NAME.png, NAME.yaml    cards of other programs (see ``cards``)

The head's keys: ``name`` (else the file's name), ``greeting`` (the first message of a chat), ``[variables]`` for the chat template.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exltui.chat.cards import read_json_card, read_png_card, read_yaml_card
from exltui.errors import SettingsError
from exltui.text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FENCE = "+++"
LARGEST = 20_000_000  # bytes of a file: cards are pictures
KEYS = {"name": str, "system": str, "greeting": str, "variables": dict}
WORDS = {str: "a text in quotes", dict: "a table"}
_NAMES = re.compile(r"\{\{char\}\}|<bot>|\{\{user\}\}|<user>", re.IGNORECASE)
_LINE = re.compile(r"line (\d+)")


@dataclass(frozen=True, slots=True)
class Character:
    """What a chat is begun with. ``variables`` are the template's; ``thinking``, ``date`` and ``tools`` are those of every chat.

    ``problem`` says why its file cannot be read, or is "".
    """

    name: str
    system: str = ""
    greeting: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    problem: str = ""

    def named(self, text: str, you: str) -> str:
        """``text`` with the names put in. ``you``: what the person is called."""
        names = {"{{char}}": self.name, "<bot>": self.name, "{{user}}": you, "<user>": you}
        return _NAMES.sub(lambda mark: names[mark.group().lower()], text)


def read_characters(folder: Path) -> list[Character]:
    """All characters by name, those among them that cannot be read."""
    found: list[Character] = []
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in files:
        if file.suffix.lower() in READERS and not file.name.startswith("."):
            try:
                found.append(read_character(file))
            except SettingsError as error:
                found.append(Character(one_line(file.name, 60), file=file, problem=str(error)))
    return sorted(found, key=lambda each: each.name.lower())


def read_character(file: Path) -> Character:
    """The character in ``file``. Raises SettingsError that names the file and, where it has lines, the line."""
    try:
        if file.stat().st_size > LARGEST:
            raise SettingsError(f"{file}: larger than {LARGEST // 1_000_000} MB", "a character is a text or a card")
        values = READERS[file.suffix.lower()](file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}", "mend the file, or take it out of the folder") from error
    name = one_line(str(values.get("name") or file.stem), 60)
    return Character(name, values.get("system", "").strip(), values.get("greeting", "").strip(), values.get("variables", {}), file)


def file_of(folder: Path, name: str) -> Path:
    """Where a character of this name is written: NAME.md. Raises SettingsError for what can be no file's name."""
    name = name.strip()
    if not name or name.strip(".") != name or any(sign in name for sign in '/\\:*?"<>|') or not name.isprintable():
        raise SettingsError(f"{name!r} cannot be the name of a character", "use letters, digits, blanks and dashes")
    return folder / f"{name}.md"


def save_character(file: Path, character: Character) -> Path:
    """Write ``character`` to the ``file`` of its name. Raises SettingsError; a file that is there and cannot be read is left alone."""
    import tomlkit

    if file.exists():
        read_character(file)
    head: dict[str, Any] = {key: value for key in ("greeting", "variables") if (value := getattr(character, key))}
    text = character.system
    if head or text.startswith(FENCE):
        text = f"{FENCE}\n{tomlkit.dumps(head)}{FENCE}\n{text}"
    write_file(file, f"{text}\n".encode("utf-8", "replace"))
    return file


def write_file(file: Path, data: bytes | None) -> None:
    """Have ``file`` hold ``data``, whole or not at all; None takes it away. Raises SettingsError."""
    try:
        if data is None:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_bytes(data)
        new.replace(file)
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written: {error.strerror or error}", "check the folder and the room on its disk") from error


# ── the forms of a file; each raises ValueError ──────────────────────────────────────────────────────────────────────────────────────


def _read_markdown(data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8").replace("\r\n", "\n")
    if not text.startswith(f"{FENCE}\n"):
        return {"system": text}
    head, fence, system = text.removeprefix(f"{FENCE}\n").partition(f"\n{FENCE}\n")
    if text.startswith(f"{FENCE}\n{FENCE}\n"):
        head, fence, system = "", FENCE, text.removeprefix(f"{FENCE}\n{FENCE}\n")
    if not fence:
        raise ValueError(f"line 1: the head has no end: a line {FENCE} after it")
    values = _table(head, above=1)
    if "system" in values:
        raise ValueError("the head has a key system, but the system prompt stands below it")
    return {**values, "system": system}


def _read_toml(data: bytes) -> dict[str, Any]:
    return _table(data.decode("utf-8"))


def _table(text: str, above: int = 0) -> dict[str, Any]:
    """The keys in ``text``, which begins below ``above`` other lines of its file."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        told = str(error).replace("end of document", f"line {text.count(chr(10)) + 1}")
        raise ValueError(_LINE.sub(lambda match: f"line {int(match.group(1)) + above}", told)) from error
    for key, value in values.items():
        line = next(
            (n for n, line in enumerate(text.splitlines(), above + 1) if re.match(rf'\s*\[?"?{re.escape(key)}"?\s*[=\].]', line)), 1
        )
        if key not in KEYS:
            raise ValueError(f"line {line}: {key} is not a key; known are {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise ValueError(f"line {line}: {key} must be {WORDS[KEYS[key]]}")
    return values


READERS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    ".md": _read_markdown,
    ".toml": _read_toml,
    ".json": read_json_card,
    ".png": read_png_card,
    ".yaml": read_yaml_card,
    ".yml": read_yaml_card,
}
