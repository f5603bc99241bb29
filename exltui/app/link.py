"""The way to the terminal: how much still waits to be taken, and signs that a plain terminal can show."""

from __future__ import annotations

import select
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from contextlib import suppress
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


QUESTION = "\x1b[?2026$p"  # whether there is synchronised output, which Textual asks too: the answer is no key
LARGE = 2500  # bytes; so many tell how fast the line is, fewer only how far away its end is and how busy this machine
SLOW = 4000  # bytes a second below which a whole pane is too much at once
AHEAD = 0.15  # seconds' worth of bytes that may be under way
PATIENCE = 60.0  # seconds after which an answer does not come any more


class WatchedFile:
    """The terminal's file, which knows how much of what was written the terminal has not taken yet.

    What waits in the file is seen by its ``flush``. Beyond it there are buffers of kilobytes, seconds on a slow line; so a terminal that
    has answered a question once is asked again behind every frame, and its answer says that it has got so far.
    """

    def __init__(self, file: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._held = False  # something is written and not flushed
        self._since: float | None = None  # when the first was written that no question stands behind
        self._answers = False
        self._sent = self._taken = 0  # bytes
        self._asked: deque[tuple[int, float]] = deque()  # bytes sent up to each open question, and when the first was
        self._rate: float | None = None  # bytes a second, of the last large frame
        self._answered_at = 0.0

    @property
    def waiting(self) -> bool:
        """Whether so much is under way that a further frame, and a key's echo behind it, would come late."""
        if self._asked and self._clock() - self._asked[-1][1] > PATIENCE:
            self._asked.clear()
        under_way = self._asked[-1][0] - self._taken if self._asked else 0
        return self._held or under_way > (self._rate or SLOW) * AHEAD

    @property
    def slow(self) -> bool:
        """Whether the line carries so little that a pane should be repainted in parts."""
        return self._rate is not None and self._rate < SLOW

    def answered(self) -> None:
        """The terminal has answered a question: it has taken everything before that."""
        self._answers = True
        if not self._asked:
            return
        now = self._clock()
        sent, asked = self._asked.popleft()
        size = sent - self._taken
        if size >= LARGE:
            self._rate = size / max(0.001, now - max(asked, self._answered_at))
        self._taken, self._answered_at = sent, now

    def write(self, text: str) -> None:
        self._held = True
        if self._since is None:
            self._since = self._clock()
        self._sent += len(text.encode())
        if QUESTION in text:
            self._asked.append((self._sent, self._since))
            self._since = None
        with suppress(OSError):  # the terminal is gone: see ``hung_up``; whoever writes here must live on until the program has ended
            self._file.write(text)

    def flush(self) -> None:
        if self._answers and self._since is not None:
            self.write(QUESTION)
        with suppress(OSError):
            self._file.flush()
        self._held = False

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


def hung_up(fileno: int) -> bool:
    """Whether there is no terminal behind ``fileno`` any more: one that controls the program sends a signal then, another just goes."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(fileno, 0)
    return any(state & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, state in poll.poll(0))


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
