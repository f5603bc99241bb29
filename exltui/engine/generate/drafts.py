"""Speculation: guesses at the next tokens, which one step of the model then verifies all at once.

The model's own draw decides at every place, so a reply is the same with and without; only the number of steps differs.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step

if TYPE_CHECKING:
    from exltui.engine.generate.job import Job

LONGEST = 8  # drafts in a step, at most
FIRST = 4
LOSING = 0.3  # share of accepted drafts below which it does not pay
PROBE = 16  # steps without drafts, before another try
SHORTEST = 2  # tokens that must match before an n-gram is trusted


class Drafter(Protocol):
    """Where guesses come from."""

    def read(self, sequences: Many[Sequence]) -> None:
        """The model is about to read these parts of prompts."""

    def propose(self, jobs: Many[Job], counts: Many[int]) -> list[list[int]]:
        """At most so many guesses for each job, whose pages reach so far."""


@dataclass(slots=True)
class Pace:
    """How many drafts a job gets: more while they hold, fewer while they do not, none for a while where they lose."""

    length: float = FIRST
    share: float = 1.0  # of accepted drafts, a running average
    pause: int = 0

    def count(self) -> int:
        """Drafts for the next step."""
        if self.pause:
            self.pause -= 1
            return 0
        return round(self.length)

    def verified(self, drafts: int, accepted: int) -> None:
        if not drafts:
            return
        self.share += 0.3 * (accepted / drafts - self.share)
        self.length = min(self.length * 1.3, LONGEST) if accepted == drafts else max(self.length * 0.65, 1.0)
        if self.share < LOSING:
            self.pause, self.share, self.length = PROBE, 0.5, 2.0


class Automaton:
    """The suffix automaton of a growing sequence (Blumer et al. 1985): in which place its longest repeated end occurred before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [-1]  # where the state's strings ended last, as far as that was followed
        self._last = 0
        self.match = (0, -1)  # length of the longest end that occurred before, and where it ended then

    def follow(self, tokens: list[int]) -> None:
        """Grow to ``tokens``; begin again if they are not what was there, continued."""
        if tokens[max(len(self.tokens) - 64, 0) : len(self.tokens)] != self.tokens[-64:] or len(tokens) < len(self.tokens):
            self.__init__()  # type: ignore[misc]
        for token in tokens[len(self.tokens) :]:
            self._extend(token)

    def _extend(self, token: int) -> None:
        at = len(self.tokens)
        self.tokens.append(token)
        new = self._state(self._length[self._last] + 1, {}, at)
        p = self._last
        while p >= 0 and token not in self._next[p]:
            self._next[p][token] = new
            p = self._link[p]
        self._link[new] = 0 if p < 0 else self._split(p, token)
        self._last = new
        p = self._link[new]
        self.match = (self._length[p], self._end[p])
        for _ in range(8):  # the longest ones suffice
            if p <= 0:
                break
            self._end[p] = at
            p = self._link[p]

    def _split(self, p: int, token: int) -> int:
        """The state that ``p`` reaches with ``token``, alone with its longest string."""
        q = self._next[p][token]
        if self._length[q] == self._length[p] + 1:
            return q
        clone = self._state(self._length[p] + 1, dict(self._next[q]), self._end[q])
        self._link[clone] = self._link[q]
        while p >= 0 and self._next[p].get(token) == q:
            self._next[p][token] = clone
            p = self._link[p]
        self._link[q] = clone
        return clone

    def _state(self, length: int, following: dict[int, int], end: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1


class NgramDrafter:
    """Guesses that what followed the longest repeated passage follows again. Costs a few microseconds a token, and no memory on a GPU."""

    def read(self, sequences: Many[Sequence]) -> None:
        """Nothing: the job's own tokens are all it needs."""

    def propose(self, jobs: Many[Job], counts: Many[int]) -> list[list[int]]:
        found = []
        for job, count in zip(jobs, counts, strict=True):
            if job.automaton is None:
                job.automaton = Automaton()
            job.automaton.follow(job.tokens)
            length, end = job.automaton.match
            found.append(job.tokens[end + 1 : end + 1 + count] if length >= SHORTEST else [])
        return found


class ModelDrafter:
    """A small model guesses greedily. Its cache has the same pages as the model's, so one page table rules both."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def read(self, sequences: Many[Sequence]) -> None:
        plain = [Sequence(each.tokens, each.start, each.pages, "last") for each in sequences]
        self.runner.step(Step.build(plain, self.runner.model.device))

    def propose(self, jobs: Many[Job], counts: Many[int]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in jobs]
        width = min((job.sampler.width for job in jobs), default=0)
        for depth in range(max(counts, default=0)):
            rows = [i for i, count in enumerate(counts) if depth < count]
            sequences = []
            for i in rows:
                tokens, job = [*jobs[i].tokens, *found[i]], jobs[i]
                start = min(job.drafted, len(tokens) - 1)
                sequences.append(Sequence(tokens[start:], start, job.track.pages, "last"))
                job.drafted = len(tokens)
            logits = self.runner.step(Step.build(sequences, self.runner.model.device))
            for i, token in zip(rows, logits[:, : width or None].argmax(-1).tolist(), strict=True):
                found[i].append(int(token))
        return found


def stretch(trained: int, context: int) -> float | None:
    """The NTK alpha with which a model reaches a context beyond its own, as ExLlamaV2 fits it; None if it reaches it anyway."""
    ratio = context / trained
    return None if ratio <= 1 else -0.13436 + 0.80541 * ratio + 0.28833 * ratio**2
