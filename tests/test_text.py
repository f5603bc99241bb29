"""Text from outside cannot command the terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from exltui.text import one_line, strip_terminal, visible

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x1b]52;c;aGk=\x1b\\c\x9b31md\x7f"


def test_visible_shows_controls_as_pictures() -> None:
    assert visible("a\x1b[31mb\x07") == "a\u241b[31mb\u2407"
    assert visible("x\x7f") == "x\u2421"
    assert visible("tab\tline\r\nnext") == "tab\tline\nnext"
    assert visible("a\u202eb") == "a\\u202eb"
    assert visible("\ud800") == "?"


def test_one_line_has_one_line_and_no_sequences() -> None:
    assert one_line("a\n b\t c") == "a b c"
    assert one_line("\x1b[31mred\x1b[0m \x1b]0;t\x07x") == "red x"
    assert one_line("abcdef", 4) == "abc…"


def test_strip_terminal_takes_sequences_out() -> None:
    assert strip_terminal(HOSTILE) == "abc31md"
    assert strip_terminal("ä\n\t漢🙂") == "ä\n\t漢🙂"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    for clean in (visible(text), one_line(text), strip_terminal(text)):
        assert not [char for char in clean if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert "\n" not in one_line(text)
    assert visible(visible(text)) == visible(text)
