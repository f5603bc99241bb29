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

    Text is kept back by whole tokens, since a token is what can be taken back, and until nothing that can be taken back follows it. Case is
    folded letter by letter, so that places stay places.
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
        count = self._certain(whole)
        free, self._held = self._held[:count], self._held[count:]
        return "".join(held.text for held in free), count, match

    def _certain(self, whole: str) -> int:
        """How many of the held tokens can become part of no banned string, whatever comes and is taken back.

        A token in which a banned string may have begun can be taken back, and then what ends before it may begin one in turn: of "mm" both
        are kept where "mn" is banned, since the second m may go and an n come.
        """
        seen, ends = {len(self._held)}, [len(self._held)]
        while ends:
            end = ends.pop()
            text = whole[: sum(len(held.text) for held in self._held[:end])]
            for n in range(1, min(self._longest - 1, len(text)) + 1):
                if any(string.startswith(text[-n:]) for string in self._strings):
                    begin = self._within(len(text) - n)
                    if begin not in seen:
                        seen.add(begin)
                        ends.append(begin)
        return min(seen)

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
