"""Pastes as terminals send them, in portions of any size."""

from __future__ import annotations

import pytest
from textual import events

from exltui.app.pastes import BEGIN, END, PasteParser

TEXT = "a \x1b[31mred\x1b[0m word,\x1b" + "\x1b[201" + " no end\r\x1b\x1b"


def read(data: str, size: int) -> list[tuple[str, str]]:
    """(kind, text) of what a parser makes of ``data`` in portions of so many characters."""
    parser = PasteParser()
    found: list[tuple[str, str]] = []
    for at in range(0, len(data), size):
        for event in parser.feed(data[at : at + size]):
            if isinstance(event, events.Paste):
                found.append(("paste", event.text))
            elif isinstance(event, events.Key):
                found.append(("key", event.key))
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
def test_escapes_in_a_paste_are_letters_of_it_and_its_end_is_heard(size):
    sent = f"x{BEGIN}{TEXT}{END}y{BEGIN}again{END}z"
    shown = TEXT.replace("\x1b", "\u241b")
    assert read(sent, size) == [("key", "x"), ("paste", shown), ("key", "y"), ("paste", "again"), ("key", "z")]


def test_keys_are_keys_as_before():
    assert read("\x1b[A\x1b[1;3Aa\x0f", 1000) == [("key", "up"), ("key", "alt+up"), ("key", "a"), ("key", "ctrl+o")]
