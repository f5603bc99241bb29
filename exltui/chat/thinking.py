"""The thoughts at the beginning of a reply: where they start and end, in whole texts and in text that still arrives.

A reply thinks if it begins with one of ``TAGS``, white space apart; such a mark later in the text is only text (a reply may be about them).
Some templates open the mark themselves, as the end of the prompt: ``opened`` finds it, and it is kept as the beginning of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class Split:
    """A reply in two parts. ``thought`` is None where it does not think; ``open``: it still does."""

    thought: str | None
    answer: str
    open: bool = False


def split(text: str) -> Split:
    """A reply's thoughts and what it says."""
    body = text.lstrip()
    for start, end in TAGS:
        if body.startswith(start):
            thought, closed, answer = body[len(start) :].partition(end)
            return Split(thought.strip("\n"), answer.lstrip("\n") if closed else "", not closed)
    return Split(None, text)


def answer(text: str) -> str:
    """A reply without its thoughts, as it goes to the model again."""
    return split(text).answer


def opened(prompt: str) -> str:
    """The mark that the end of a prompt leaves open, with the white space after it; "" if there is none."""
    tail = prompt[-64:]
    bare = tail.rstrip()
    return next((start + tail[len(bare) :] for start, _ in TAGS if bare.endswith(start)), "")


class ThoughtStream:
    """Divides a reply that arrives in portions. ``feed`` and ``close`` return what was added to the thoughts and to the answer.

    What may turn out to be a mark is held back until it is known, so both parts only ever grow at their ends.
    """

    def __init__(self) -> None:
        self._held = ""
        self._end = ""  # the mark that is waited for
        self._state = "start"  # then "thought", "gap" (blank lines below the thoughts), "answer"
        self.thinks = False

    @property
    def thinking(self) -> bool:
        """Whether what comes now is thought."""
        return self._state == "thought"

    def feed(self, text: str) -> tuple[str, str]:
        """Take a portion."""
        self._held += text
        thought = ""
        if self._state == "start":
            self._begin()
        if self._state == "thought":
            thought = self._think()
        if self._state == "gap":
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = "answer"
        return (thought, self._release()) if self._state == "answer" else (thought, "")

    def close(self) -> tuple[str, str]:
        """Nothing more comes."""
        rest, self._held = self._held, ""
        return (rest, "") if self._state == "thought" else ("", rest)

    def _begin(self) -> None:
        body = self._held.lstrip()
        for start, end in TAGS:
            if body.startswith(start):
                self._held, self._end, self._state, self.thinks = body[len(start) :].lstrip("\n"), end, "thought", True
                return
        if not any(start.startswith(body) for start, _ in TAGS):
            self._state = "answer"

    def _think(self) -> str:
        thought, closed, rest = self._held.partition(self._end)
        if closed:
            self._held, self._state = rest, "gap"
            return thought
        keep = next((n for n in range(min(len(self._end) - 1, len(thought)), 0, -1) if self._end.startswith(thought[-n:])), 0)
        self._held = thought[len(thought) - keep :]
        return thought[: len(thought) - keep]

    def _release(self) -> str:
        text, self._held = self._held, ""
        return text
