"""Pastes with escapes in them. Textual's parser takes an escape within a paste for the beginning of a key, and may read the paste's end as
a part of that: what follows would be pressed as keys, or never heard. Terminals differ in whether they leave escapes out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from textual._xterm_parser import XTermParser
from textual.driver import Driver
from textual.message import Message

BEGIN, END = "\x1b[200~", "\x1b[201~"
ESCAPE, PICTURE = "\x1b", "\u241b"


class PasteParser(XTermParser):
    """Textual's parser, for which an escape within a paste is a picture of one."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pasting = False
        self._tail = ""  # outside of a paste: the last letters, which may be half of its mark; within: what may be half of its end

    def feed(self, data: str) -> Iterable[Message]:
        if not data:
            return super().feed(data)
        cleaned = self._cleaned(data)
        return super().feed(cleaned) if cleaned else ()

    def _cleaned(self, data: str) -> str:
        """``data`` with pictures in the place of the escapes within pastes; what may be the beginning of an end waits for the next."""
        parts: list[str] = []
        while data:
            if self._pasting:
                text, end, data = (self._tail + data).partition(END)
                half = "" if end else next((END[:n] for n in range(len(END) - 1, 0, -1) if text.endswith(END[:n])), "")
                parts.append(text.removesuffix(half).replace(ESCAPE, PICTURE) + end)
                self._tail, self._pasting = half, not end
            else:
                before = len(self._tail)
                at = (self._tail + data).find(BEGIN)
                until = at + len(BEGIN) - before if at >= 0 else len(data)
                parts.append(data[:until])
                self._tail, self._pasting = ("", True) if at >= 0 else ((self._tail + data)[1 - len(BEGIN) :], False)
                data = data[until:]
        return "".join(parts)


def take_pastes_whole(driver: type[Driver]) -> None:
    """Have drivers of this kind read with ``PasteParser``: there is no other way in."""
    module = vars(sys.modules[driver.__module__])
    if "XTermParser" in module:
        module["XTermParser"] = PasteParser
