"""Strings that a reply must not hold: text that may become one is kept back, and on a match the job goes back to before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Match:
    """``tokens`` is how many are to be taken back, ``state`` what the streamer was before them, ``first`` the token that began it."""

    tokens: int
    first: int
    text: str
    string: str
    state: Any


@dataclass(slots=True)
class _Held:
    token: int
    text: str
    state: Any


class Guard:
    """Looks for ``strings``, in any case of letters, in the text of tokens as they come.

    Text is kept back by whole tokens, since a token is what can be taken back. Case is folded letter by letter, so that places stay places.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [_fold(string) for string in strings if string]
        self._longest = max((len(string) for string in self._strings), default=0)
        self._held: list[_Held] = []

    def push(self, token: int, text: str, state: Any) -> tuple[str, int, Match | None]:
        """The text of one more token, before which the streamer was in ``state`` -> what is free now, of how many tokens, and a match."""
        self._held.append(_Held(token, text, state))
        whole = _fold(self.text)
        hits = [(at, string) for string in self._strings if (at := whole.find(string)) >= 0]
        match = None
        if hits:
            at, string = min(hits)
            before = self._within(at)
            taken, self._held = self._held[before:], self._held[:before]
            match = Match(len(taken), taken[0].token, "".join(held.text for held in taken), string, taken[0].state)
            whole = whole[: len(self.text)]
        keep = next(
            (n for n in range(min(self._longest - 1, len(whole)), 0, -1) if any(s.startswith(whole[-n:]) for s in self._strings)), 0
        )
        count = self._within(len(whole) - keep)
        free, self._held = self._held[:count], self._held[count:]
        return "".join(held.text for held in free), count, match

    @property
    def text(self) -> str:
        """What is kept back."""
        return "".join(held.text for held in self._held)

    def finish(self) -> tuple[str, int]:
        """What is still kept back, which has become no banned string."""
        held, self._held = self._held, []
        return "".join(each.text for each in held), len(held)

    def _within(self, length: int) -> int:
        """How many tokens' text lies within the first ``length`` characters."""
        count = 0
        while count < len(self._held) and len(self._held[count].text) <= length:
            length -= len(self._held[count].text)
            count += 1
        return count


def _fold(text: str) -> str:
    return "".join(low if len(low := sign.lower()) == 1 else sign for sign in text)
