"""Themes as TOML files: those that ship with exltui and those in the user's own folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from textual.color import Color, ColorParseError
from textual.theme import Theme

from exltui.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLOURS = ("primary", "secondary", "warning", "error", "success", "accent", "foreground", "background", "surface", "panel", "boost")
NUMBERS = ("luminosity_spread", "text_alpha")
_PERCENT = re.compile(r"\s+\d{1,3}%$")


def read_theme(path: Path) -> Theme:
    """The theme in one TOML file. Raises SettingsError that names the file and the key."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"theme {path}: {error}", "Mend the file, or take it out of the themes folder.") from error
    unknown = sorted(set(fields) - {"name", "dark", "variables", *COLOURS, *NUMBERS})
    if unknown:
        raise _wrong(path, unknown[0], f"is not a key of a theme; known are name, dark, {', '.join(COLOURS)} and [variables]")
    if "primary" not in fields:
        raise _wrong(path, "primary", "is missing")
    checked: dict[str, Any] = {"name": path.stem, "dark": True, **fields}
    _check_kinds(path, checked)
    for key in COLOURS:
        if key in fields:
            _check_colour(path, key, fields[key])
    for key, value in fields.get("variables", {}).items():
        if not isinstance(value, str):
            raise _wrong(path, f"variables.{key}", "must be a text")
        if value.startswith("#"):
            _check_colour(path, f"variables.{key}", _PERCENT.sub("", value))
    return Theme(**checked)


def _check_kinds(path: Path, fields: dict[str, Any]) -> None:
    """Raise SettingsError for a key whose value is of another kind than Textual takes."""
    for key, kind, word in (("name", str, "a text"), ("dark", bool, "true or false"), ("variables", dict, "a table")):
        if not isinstance(fields.get(key, kind()), kind):
            raise _wrong(path, key, f"must be {word}")
    for key in NUMBERS:
        if not isinstance(fields.get(key, 1.0), (int, float)):
            raise _wrong(path, key, "must be a number")


def find_themes(*folders: Path) -> tuple[list[Theme], list[SettingsError]]:
    """All themes of ``folders`` (a later folder replaces a theme of the same name), and what was wrong with the rest."""
    themes: dict[str, Theme] = {}
    errors: list[SettingsError] = []
    for folder in folders:
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
            try:
                theme = read_theme(path)
            except SettingsError as error:
                errors.append(error)
            else:
                themes[theme.name] = theme
    return list(themes.values()), errors


def _check_colour(path: Path, key: str, value: object) -> None:
    try:
        Color.parse(value if isinstance(value, str) else "")
    except ColorParseError as error:
        raise _wrong(path, key, f"is not a colour: {value!r}") from error


def _wrong(path: Path, key: str, what: str) -> SettingsError:
    return SettingsError(f"theme {path}: {key} {what}.", "Colours are written like #7aa8f0.")
