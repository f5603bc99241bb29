"""The way to the terminal: how much still waits to be taken, and signs that a plain terminal can show."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.driver import Driver
from textual.filter import LineFilter

from exltui import paths

PLAIN_SIGNS = {
    **dict.fromkeys("─━╌═┄", "-"),
    **dict.fromkeys("│┃┊║▌▏▕", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╔╗╚╝", "+"),
    **dict.fromkeys("█▇▆▅▓", "#"),
    **dict.fromkeys("▄▃▒", "="),
    **dict.fromkeys("▂▁░", "-"),
    **dict.fromkeys("●▪•∙", "*"),
    **dict.fromkeys("·", "."),
    **dict.fromkeys("▸▶›", ">"),
    **dict.fromkeys("◂◀‹", "<"),
    **dict.fromkeys("▾▼↓", "v"),
    **dict.fromkeys("▴▲↑", "^"),
    "←": "<", "→": ">", "✂": "%", "–": "-", "—": "-", "…": "~", "⏎": "/", "°": "o", "✓": "+", "✗": "x",
    "“": '"', "”": '"', "‘": "'", "’": "'",
    "\u00a0": " ",
}  # fmt: skip


class WatchedFile:
    """The terminal's file, which knows whether something waits in it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.waiting = False

    def write(self, text: str) -> None:
        self.waiting = True
        self._file.write(text)

    def flush(self) -> None:
        self._file.flush()
        self.waiting = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def watched(driver: type[Driver], tell: Callable[[WatchedFile], None]) -> type[Driver]:
    """The same driver, whose file to the terminal is watched and handed to ``tell``. One that has no such file stays as it is."""

    class WatchedDriver(driver):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if (file := getattr(self, "_file", None)) is not None:
                self._file = WatchedFile(file)
                tell(self._file)

    return WatchedDriver


@lru_cache(4096)
def plain_sign(char: str) -> str:
    """ASCII of as many cells as ``char`` has."""
    if char.isascii():
        return char
    if char in PLAIN_SIGNS:
        return PLAIN_SIGNS[char]
    width = cell_len(char)
    letters = "".join(c for c in unicodedata.normalize("NFKD", char) if c.isascii() and c.isprintable())
    return letters if len(letters) == width else "?" * width


class PlainSigns(LineFilter):
    """Writes lines with ASCII alone."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment if segment.text.isascii() else Segment("".join(map(plain_sign, segment.text)), segment.style, segment.control)
            for segment in segments
        ]


def wants_plain_signs(setting: str) -> bool:
    """Whether to write ASCII alone: as the settings say, or as the locale does."""
    if setting != "auto":
        return setting == "ascii"
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := paths.environment(name))), "")
    return bool(locale) and "utf" not in locale.lower() and "8859" not in locale
