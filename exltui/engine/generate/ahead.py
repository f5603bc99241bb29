"""One step ahead of the host: while it reads what a step drew, the next one runs already, with tokens that never left the GPU.

Nothing is taken back when a job turns out to have ended meanwhile: what the step behind its end drew is dropped, and what it wrote lies
behind the rows that count. Its pages may go to others at once, since all steps run in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exltui.engine.generate.job import Job
from exltui.engine.generate.room import Room
from exltui.engine.ops.sample import BROKEN, TOO_MANY, Seat, broken
from exltui.engine.run.graphs import Flight, Place
from exltui.engine.run.runner import Runner


@dataclass(frozen=True, slots=True)
class _Launched:
    jobs: tuple[Job, ...]
    seats: tuple[Seat, ...]
    lengths: tuple[int, ...]  # tokens that each job has before what this step draws
    flight: Flight


class Ahead:
    """The steps on their way, at most two."""

    def __init__(self, runner: Runner, room: Room) -> None:
        self._runner = runner
        self._room = room
        self._launched: list[_Launched] = []

    @property
    def pending(self) -> bool:
        return bool(self._launched)

    def begin(self, jobs: Sequence[Job]) -> bool:
        """Launch a step for ``jobs``, whose pages reach so far -> whether that could be done; otherwise it has to be run as any other."""
        if not self._runner.launches or not jobs or not all(job.steady for job in jobs):
            return False
        seats = [job.sampler.seat(job.tokens, job.limit - len(job.tokens)) for job in jobs]
        if any(seat is None for seat in seats):
            return False
        self._launch(tuple(jobs), tuple(seat for seat in seats if seat is not None), tuple(len(job.tokens) for job in jobs), fed=True)
        return True

    def follow(self, jobs: Sequence[Job]) -> None:
        """Launch the step behind the one on its way, if it has the same ``jobs`` and none of them is known to end with that one."""
        (last,) = self._launched
        same = last.jobs == tuple(jobs) and all(len(job.tokens) == length for job, length in zip(jobs, last.lengths, strict=True))
        if not same or any(job.ends_with(1) for job in jobs):
            return
        if all(self._room.grow(job.track, 2) for job in jobs):
            self._launch(last.jobs, last.seats, tuple(length + 1 for length in last.lengths), fed=False)

    def _launch(self, jobs: tuple[Job, ...], seats: tuple[Seat, ...], lengths: tuple[int, ...], *, fed: bool) -> None:
        places = [
            Place(job.tokens[-1] if fed else None, length - 1, job.track.pages, seat, job.sampler.point(length))
            for job, seat, length in zip(jobs, seats, lengths, strict=True)
        ]
        self._launched.append(_Launched(jobs, seats, lengths, self._runner.launch(places)))

    def land(self, running: Sequence[Job]) -> list[tuple[Job, list[float]]]:
        """Wait for the older step -> the jobs of ``running`` that it still drew for, and what. A job that only the CPU can draw for is not
        among them, and stays where it is. Raises ModelError for a logit that is no finite number.
        """
        step = self._launched.pop(0)
        drawn = step.flight.read()
        found = []
        for job, length, row in zip(step.jobs, step.lengths, drawn, strict=True):
            if job not in running or len(job.tokens) != length or job.reading:
                continue
            if row[0] == BROKEN:
                broken()
            if row[0] == TOO_MANY:
                job.host_draws = True
            else:
                found.append((job, row))
        return found

    def drop(self) -> None:
        """Forget what is on its way."""
        self._launched.clear()
