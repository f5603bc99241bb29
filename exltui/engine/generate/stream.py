"""Token ids in, text out, as early as it is certain.

Invariant: the pieces that ``push`` and ``finish`` return join to the decoding of all accepted ids (to what they add to the prompt's last
ids, where those are given), up to the stop string if one ended the text. No piece holds half a character, and none has to be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
UNCERTAIN = 3  # a character has at most four bytes, so at most three can stand incomplete at the end
LONG_WINDOW = 16  # ids; a window grows beyond this only while a model writes broken bytes


class TextStreamer:
    """``decode`` turns ids into text with special tokens left out. Work per token is bounded: only a window of ids is decoded again.

    ``before`` are the last ids of the prompt: what the reply adds to them is its text, so a reply that begins with a space keeps it where
    a decoder drops the space of the very first word.

    The invariant needs a decoder that does not take back whole characters. Byte-level ones never do; those with a byte fall-back do when a
    model writes broken bytes right behind whole ones, and then the stream keeps what it said.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: tuple[str, ...] = (), before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stop_strings if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        # The window: ids whose text is out, kept because decoders treat the very first id differently, then ids that are open.
        self._context = self._whole(list(before[-LONG_WINDOW:]))
        self._open: list[int] = []
        self._known = decode(self._context) if self._context else ""  # the beginning of the window's text, up to which it is out
        self._held = ""  # text that is certain but may be the start of a stop string
        self.stop: str | None = None  # the stop string that ended the text

    def _whole(self, before: list[int]) -> list[int]:
        """The longest end of ``before`` that does not end within a character; none if the prompt itself does: the reply stands alone.

        Where ``before`` begins within a character, a byte fall-back decodes no byte of the run, complete characters behind it included.
        """
        while before and self._decode(before).endswith(REPLACEMENT):
            before = before[1:]
        return before

    def push(self, token: int) -> str:
        """Accept one id -> the text that is now certain. After a stop string was found, nothing more comes."""
        return self.release(self.read(token))

    @property
    def state(self) -> tuple[list[int], list[int], str]:
        """What ``read`` knows; setting it takes back the ids that were read since. Text that was released stays out."""
        return self._context, self._open, self._known

    @state.setter
    def state(self, state: tuple[list[int], list[int], str]) -> None:
        self._context, self._open, self._known = list(state[0]), list(state[1]), state[2]

    def read(self, token: int) -> str:
        """Accept one id -> the text that is now certain, stop strings and all."""
        self._open = [*self._open, token]
        text = self._decode(self._context + self._open)
        if not text.startswith(self._known):
            # A run of byte tokens that is valid only as a whole: what was a character is undecided until the next one is complete.
            if len(self._open) <= LONG_WINDOW:
                return ""
            self._context, self._known = [], ""
            text = self._decode(self._open)
        certain = len(text) - min(len(text) - len(text.rstrip(REPLACEMENT)), UNCERTAIN)
        piece = text[len(self._known) : certain]
        self._known += piece
        if certain == len(text):
            self._settle()
        elif len(self._open) > LONG_WINDOW:
            self._shorten(len(text))
        return piece

    def finish(self, before: str = "") -> str:
        """The rest, after ``before`` that was read and not released: what was held back, and characters that stayed incomplete."""
        if self.stop is not None:
            return ""
        piece = self.release(before + (self._decode(self._context + self._open)[len(self._known) :] if self._open else ""))
        self._open = []
        if self.stop is None:
            piece, self._held = piece + self._held, ""
        return piece

    def _settle(self) -> None:
        """All open ids are out; they become the context of the next, unless they say nothing on their own (special tokens, a space)."""
        said = self._decode(self._open)
        if said:
            self._context, self._known = self._open, said
        else:
            self._context = (self._context + self._open)[:LONG_WINDOW]
            self._known = self._decode(self._context)
        self._open = []

    def _shorten(self, length: int) -> None:
        """Cut the window, whose text has ``length`` characters, where both sides decode alone to what they are together."""
        cut = len(self._open) - UNCERTAIN - 1
        left, right = self._open[:cut], self._open[cut:]
        together = self._decode(self._open)
        if self._decode(left) + self._decode(right) == together:
            self._context, self._open = left, right
            self._known = together[: max(len(self._known) - (length - len(together)), 0)]

    def stops_in(self, text: str) -> bool:
        """Whether a stop string ends the text if ``text`` is released now."""
        return any(stop in self._held + text for stop in self._stops)

    def release(self, text: str) -> str:
        """``text`` that was read, behind what is held -> what can no longer become a stop string. Sets ``stop`` when one is found."""
        if not self._stops:
            return text
        if self.stop is not None:
            return ""
        text, self._held = self._held + text, ""
        hits = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            at, self.stop = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            return text[:at]
        keep = self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of ``text`` with which some stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
