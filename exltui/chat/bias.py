"""Words that a reply is to prefer, avoid, or never use: from what a person writes to token ids."""

from __future__ import annotations

import re
from collections.abc import Callable

from exltui.errors import SamplingError

_ENTRY = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^=,"]+?))\s*=\s*(ban|[+-]?\d+(?:\.\d+)?)\s*(?:,|$)', re.IGNORECASE)
LARGEST = 100.0


def parse_bias(text: str) -> list[tuple[str, float | None]]:
    """``moon=+2, " however"=-3, delve=ban`` as words with what is added to their scores; None bans. Raises SamplingError."""
    found: list[tuple[str, float | None]] = []
    at = 0
    while text[at:].strip():
        match = _ENTRY.match(text, at)
        if match is None:
            hint = 'Write WORD=NUMBER or WORD=ban with commas between; quote a word with blanks: " however"=-3.'
            raise SamplingError(f"bias: {text[at:].strip()[:40]!r} cannot be read.", hint)
        word = match[1].replace('\\"', '"').replace("\\\\", "\\") if match[1] is not None else match[2]
        value = None if match[3].lower() == "ban" else float(match[3])
        if value is not None and abs(value) > LARGEST:
            raise SamplingError(f"bias: {value:g} for {word!r} is outside -{LARGEST:g} to {LARGEST:g}.", "Use ban for never.")
        found.append((word, value))
        at = match.end()
    return found


def bias_tokens(text: str, encode: Callable[[str], list[int]]) -> tuple[tuple[tuple[int, float], ...], tuple[int, ...]]:
    """The biases and the bans of ``text`` as token ids. A word counts with and without a blank before it, where that is one token.

    Raises SamplingError for a word that is several tokens: a part of it stands in other words too.
    """
    biases: dict[int, float] = {}
    bans: set[int] = set()
    for word, value in parse_bias(text):
        forms = [word] if word[:1].isspace() else [word, f" {word}"]
        ids = {ids[0] for form in forms if len(ids := encode(form)) == 1}
        if not ids:
            raise SamplingError(f"bias: {word!r} is several tokens for this model.", "Choose a shorter word, or a part of it.")
        for id in ids:
            if value is None:
                bans.add(id)
            else:
                biases[id] = value
    return tuple(sorted(biases.items())), tuple(sorted(bans))
