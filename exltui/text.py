"""Text from models and files is untrusted: what a terminal would execute is made visible or taken out."""

from __future__ import annotations

import re
import unicodedata

# C0 without tab and newline, DEL, and C1: everything that a terminal takes for a command starts with one of these.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
# Marks that turn the reading direction can make a line show something other than it says.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x7F:
        return "\u2421"
    return chr(0x2400 + code) if code < 0x20 else f"\\x{code:02x}"


def visible(text: str) -> str:
    """``text`` with control characters shown as their pictures (an escape becomes one sign) and lone surrogates replaced.

    Newlines and tabs stay; a carriage return before a newline goes.
    """
    text = _CONTROL.sub(_picture, text.replace("\r\n", "\n"))
    text = _DIRECTION.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
    return text.encode("utf-8", "replace").decode("utf-8")


def one_line(text: str, width: int = 0) -> str:
    """``text`` for a place of one line: escape sequences gone, white space folded, cut to ``width`` characters if that is given."""
    text = visible(_ESCAPE_SEQUENCE.sub("", text))
    text = " ".join(text.split())
    return text if not width or len(text) <= width else text[: width - 1].rstrip() + "…"


def strip_terminal(text: str) -> str:
    """``text`` for standard output: escape sequences and control characters gone, newlines and tabs kept."""
    text = _ESCAPE_SEQUENCE.sub("", text)
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
