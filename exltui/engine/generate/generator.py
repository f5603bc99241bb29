"""The generator: many jobs, one forward pass at a time.

Each ``advance`` is one step: waiting jobs are admitted while pages last, every job that decodes gives one token (more where drafts hold),
jobs that still read their prompt share a budget of ``chunk`` tokens, and all of it runs as one packet. Prompts that begin like something
computed before start behind it. When the pages run out, the least important job waits again and later goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.generate import admission
from exltui.engine.generate.ahead import Ahead
from exltui.engine.generate.drafts import Drafter, ModelDrafter
from exltui.engine.generate.job import Job
from exltui.engine.generate.kept import KeptLogits
from exltui.engine.generate.room import Room, Track
from exltui.engine.generate.scores import scores
from exltui.engine.model.lora import Mix
from exltui.engine.ops.sample import EXCLUDED, SampleParams
from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import PageTable, common
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence
from exltui.engine.run.stopwatch import Stopwatch
from exltui.engine.run.tier import HostTier
from exltui.errors import ContextError, ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, Prefill, Queued, Rewound, Text
from exltui.tokenizer import Tokenizer

MAX_BATCH = 32
TIDY = 16  # pages that are moved in one idle moment: a command waits so long
MAX_SKIPS = 4  # jobs that may be admitted before one that does not fit
NO_LOGITS = torch.empty(0)
WORTH = 16  # tokens: a prompt that another job is just reading is waited for, if that saves so many


@dataclass(slots=True)
class _Run:
    """What a step does for one track: ``count`` tokens that are there, then drafts."""

    job: Job
    track: Track
    count: int
    drafts: list[int]
    draws: bool


class Generator:
    """``context`` is the longest sequence, at most what the cache holds; ``chunk`` the number of prompt tokens in a step.

    ``host_cache`` is how many bytes of pages are kept in host memory when the cache gives their room away; ``max_batch`` how many jobs run
    at once.

    ``tokens_read`` and ``tokens_drawn`` count all that went through: prompt tokens computed, reply tokens sampled.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        context: int,
        chunk: int,
        drafter: Drafter | None = None,
        host_cache: int = 0,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.context = min(context, runner.cache.pages * PAGE)
        self.chunk = chunk
        self.max_batch = max_batch
        self.table = PageTable(runner.cache.pages)
        self.drafter = drafter
        stores = [runner.cache, *([drafter.runner.cache] if isinstance(drafter, ModelDrafter) else [])]
        self.room = Room(self.table, stores, HostTier(host_cache))
        self.watch = Stopwatch(runner.model.device)
        self.kept = KeptLogits(tokenizer, runner.model.spec.vocab)
        self.tokens_read = 0
        self.tokens_drawn = 0
        self.sessions: dict[str, tuple[list[int], Mix]] = {}  # by name: prompt and reply of the last job, and its adapters
        self._ahead = Ahead(runner, self.room)
        self._arrivals = 0
        self._waiting: list[Job] = []  # in the order in which they are admitted
        self._running: list[Job] = []  # in the order in which they were

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is running."""
        return max((len(job.tokens) for job in self._running), default=0)

    @property
    def job_ids(self) -> list[str]:
        return [job.id for job in (*self._running, *self._waiting)]

    @property
    def slots(self) -> set[int]:
        """Slots of the adapters that jobs use."""
        return {slot for job in (*self._running, *self._waiting) for slot, _ in job.mix}

    def submit(self, spec: JobSpec) -> list[Event]:
        """Queue a job. Raises ContextError, SamplingError or GrammarError, and then the job does not exist."""
        context = self.context
        if spec.sampling.cfg_scale != 1.0:  # both of its sequences must fit
            if self.runner.cache.pages < 2:
                raise ContextError("guidance takes two sequences, and the cache has one page", "give a larger --length, or --cache-tokens")
            context = min(context, self.runner.cache.pages // 2 * PAGE)
        job = admission.prepare(spec, self.tokenizer, self.runner.model.spec.vocab, context)
        job.mix = self.runner.adapters.mix(spec.adapters)
        for track in job.tracks:
            track.root = self.runner.adapters.root(job.mix)
        job.arrival = self._arrivals = self._arrivals + 1
        self._queue(job)
        return [Queued(spec.id, job.prompt_tokens)]

    def _queue(self, job: Job) -> None:
        self._waiting.append(job)
        self._waiting.sort(key=lambda each: (-each.spec.priority, each.arrival))

    def cancel(self, job_id: str) -> list[Event]:
        """End a job before its next step; what it computed stays in the cache. Unknown ids are ignored: the job may just have ended."""
        for job in (*self._waiting, *self._running):
            if job.id == job_id:
                job.stop_reason = "cancelled"
                self._remove(job)
                return self._finish(job, *job.finish())
        return []

    def abandon(self) -> list[str]:
        """Drop every running job after a step that failed, with its pages -> their ids. What the step wrote is not trusted."""
        dropped, self._running = self._running, []
        self._ahead.drop()
        for job in dropped:
            for track in job.tracks:
                self.room.abandon(track)
        return [job.id for job in dropped]

    def known(self, tokens: Many[int]) -> int:
        """How many of the first ``tokens`` a job with all loaded adapters would not have to compute."""
        adapters = self.runner.adapters
        return self.room.known(tokens, adapters.root(adapters.mix(None)))

    def check(self) -> None:
        """Raise ExltuiError if the page table contradicts itself or the jobs. For idle moments: it looks at every page."""
        held = [page for job in self._running for track in job.tracks for page in track.pages]
        problem = self.table.problem(held)
        if problem:
            raise ExltuiError(f"the page table is damaged: {problem}", "please report it; unload the model and load it again")

    def tidy(self) -> int:
        """Bring some pages into the order of their sequences while there is nothing to do -> how many."""
        return 0 if self.busy else self.room.tidy(TIDY)

    def advance(self) -> list[Event]:
        """One step -> what happened. Returns at once when there is nothing to do, or nothing to wait for yet."""
        self.watch.begin()
        events = self._admit()
        if self._ahead.pending:  # two steps overlap there, and the watch tells neither from the other: it counts none
            self._ahead.follow(self._in_order())
            return events + self._land()
        self._guess()
        runs = self._schedule()
        if not runs:
            self._requeue()
            return events
        if self.drafter is None and all(run.draws for run in runs) and self._ahead.begin([run.job for run in runs]):
            return events
        sequences = [self._sequence(run) for run in runs]
        if self.drafter is not None and (reading := [self._sequence(run) for run in runs if run.track.reading]):
            self.drafter.read(reading)
        with self.watch.model:
            logits = self.runner.run(sequences)
        events += self._computed(runs)
        if drawing := [run for run in runs if run.draws]:
            events += self._draw(drawing, logits)
        self.watch.end()
        return events

    def _land(self) -> list[Event]:
        """Take what the step before the newest drew."""
        events: list[Event] = []
        for job, drawn in self._ahead.land(self._running):
            run = _Run(job, job.track, 1, [], draws=True)
            self._computed([run])
            events += self._take(run, 0, [drawn], NO_LOGITS, [])
        if not self._running:
            self._ahead.drop()
        return events

    # ── the parts of a step ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> list[Event]:
        """Start waiting jobs, in order, while pages and the batch have room. One that does not fit lets a few others pass."""
        events: list[Event] = []
        passed: list[Job] = []
        for job in list(self._waiting):
            full = len(self._running) >= self.max_batch and all(each.spec.priority >= job.spec.priority for each in self._running)
            if full or len(passed) > self.max_batch or any(each.skipped >= MAX_SKIPS for each in passed):
                break
            if self._awaits(job):
                continue
            if not self._fits(job):
                passed.append(job)
                continue
            for each in passed:
                each.skipped += 1
            self._waiting.remove(job)
            self._running.append(job)
            if not job.started:  # it was not here before
                job.started, job.cached = time.perf_counter(), job.track.computed
                job.read, job.cached_pages = job.cached, len(job.track.hashes)
                events.append(Prefill(job.id, job.cached, job.prompt_tokens, job.cached))
        return events

    def _awaits(self, job: Job) -> bool:
        """Whether a running job is just reading what this one begins with: then its pages will soon be there to share."""
        for other in self._running:
            if (
                other.track.reading
                and other.track.root == job.track.root
                and (shared := min(common(other.track.tokens, job.tokens), len(job.tokens) - 1)) >= WORTH
            ):
                there = max(self.table.match(job.tokens, job.track.root).tokens, other.track.computed)
                if shared - there >= WORTH:
                    return True
        return False

    def _fits(self, job: Job) -> bool:
        """Pages for ``job``, taken if need be from running jobs of a lower priority, the lowest and youngest first."""
        while len(self._running) >= self.max_batch or not self.room.enter(job.tracks):
            victim = min(self._running, key=_importance, default=None)
            if victim is None or victim.spec.priority >= job.spec.priority:
                return False
            self._wait_again(victim)
        return True

    def _guess(self) -> None:
        """Drafts for the jobs that decode, as many as each one's pace allows and its pages reach."""
        if self.drafter is None:
            return
        jobs, counts = [], []
        for job in self._running:
            count = min(job.pace.count(), job.limit - len(job.tokens) - 1) if job.may_draft else 0
            if job.spec.max_new_tokens is not None:
                count = min(count, job.spec.max_new_tokens - len(job.new_ids) - 1)
            if count > 0 and self.room.grow(job.track, 1 + count):
                jobs.append(job)
                counts.append(count)
        if jobs:
            for job, drafts in zip(jobs, self.drafter.propose(jobs, counts), strict=True):
                job.drafts = drafts

    def _schedule(self) -> list[_Run]:
        """What runs in this step. A job that needs a page and finds none sits the step out."""
        runs: list[_Run] = []
        budget = self.chunk
        for job in self._in_order():
            if not job.reading:
                if all(self.room.grow(track, 1) for track in job.tracks):
                    runs += [_Run(job, track, 1, job.drafts if track is job.track else [], draws=True) for track in job.tracks]
                continue
            # The last tokens of both tracks run in one step, since the logits of both are wanted together.
            counts, left = [], max(budget, 0)
            for track in job.tracks:
                counts.append(min(track.pending - 1, left))
                left -= counts[-1]
            draws = all(count == track.pending - 1 for count, track in zip(counts, job.tracks, strict=True))
            counts = [count + draws for count in counts]
            if all(self.room.grow(track, count) for count, track in zip(counts, job.tracks, strict=True)):
                runs += [_Run(job, track, count, [], draws) for count, track in zip(counts, job.tracks, strict=True) if count]
                budget -= sum(counts)
        return runs

    def _in_order(self) -> list[Job]:
        return sorted(self._running, key=lambda each: (-each.spec.priority, each.arrival))

    @staticmethod
    def _sequence(run: _Run) -> Sequence:
        tokens = [*run.track.tokens[run.track.computed : run.track.computed + run.count], *run.drafts]
        return Sequence(tokens, run.track.computed, run.track.pages, "all" if run.drafts else "last" if run.draws else "none", run.job.mix)

    def _requeue(self) -> None:
        """Every job waits for a page: the least important one gives up its own, and waits until there are enough for what it has.

        It comes back only when more is free than it gave, so at least one of the others moves on meanwhile.
        """
        if self._running:
            self._wait_again(min(self._running, key=_importance))

    def _wait_again(self, job: Job) -> None:
        self._leave(job)
        self._queue(job)

    def _computed(self, runs: Many[_Run]) -> list[Event]:
        """The keys and values of ``runs`` are in the cache -> how far the jobs that read have come."""
        readers = [run.job for run in runs if run.track is run.job.track and run.job.reading]
        for run in runs:
            if run.track.reading:
                self.tokens_read += run.count
            self.room.computed(run.track, run.count)
        events: list[Event] = []
        for job in readers:
            job.drafted = job.track.computed
            here = min(job.drafted, job.prompt_tokens)
            if here > job.read:  # a job that came back reads once more what it had read
                job.read = here
                events.append(Prefill(job.id, here, job.prompt_tokens, job.cached))
        return events

    def _draw(self, runs: list[_Run], logits: Tensor) -> list[Event]:
        """Draw the next tokens of all jobs whose sequences end in this step; of one with drafts as many as hold, and one more."""
        logits = _guided(runs, logits)
        own = [run for run in runs if run.track is run.job.track]
        params = [self._params(run.job, run.drafts[:i]) for run in own for i in range(1 + len(run.drafts))]
        with self.watch.sampling:
            drawn = self.runner.model.ops.sample(logits, params).tolist()
        events: list[Event] = []
        at = 0
        for run in own:
            events.extend(self._take(run, at, drawn, logits, params))
            at += 1 + len(run.drafts)
        return events

    @staticmethod
    def _params(job: Job, drafts: list[int]) -> SampleParams:
        position = len(job.tokens) + len(drafts)
        history = [*job.tokens, *drafts] if drafts else job.tokens
        return job.sampler.params(history, position, job.params_mask(), job.banned(position))

    def _take(self, run: _Run, at: int, drawn: list[list[float]], logits: Tensor, params: list[SampleParams]) -> list[Event]:
        """Give the job what was drawn for it, from row ``at`` on, as far as its drafts hold."""
        job, held, before = run.job, 0, len(run.job.tokens)
        events: list[Event] = []
        for i in range(1 + len(run.drafts)):
            token, probability, prior = drawn[at + i]
            self.tokens_drawn += 1
            job.sampler.observe(len(job.tokens), probability, prior)
            if job.spec.scores or job.spec.top_tokens or job.spec.logits:
                events += scores(job, int(token), probability, logits[at + i], params[at + i])
            if job.spec.keep:
                self.kept.add(job, (int(token), probability, prior), logits[at + i], params[at + i])
            events += self._accept(job, int(token))
            if job not in self._running or i == len(run.drafts) or run.drafts[i] != int(token):
                break
            held += 1
        if run.drafts:
            job.verified(held)
            job.drafted = min(job.drafted, before + held)
            if held and job in self._running:
                self.room.computed(job.track, held)
        return events

    def _accept(self, job: Job, token: int) -> list[Event]:
        if token == EXCLUDED:
            self._remove(job)
            return [Failed(job.id, "no token is left to draw", "allowed and banned tokens, or a grammar, exclude them all")]
        text, count, match = job.accept(token)
        if job.stop_reason:
            self._remove(job)
            return self._finish(job, text, count)
        events: list[Event] = [Text(job.id, text, count)] if text or count else []
        if match is not None:
            gone = job.take_back(match)
            self._wait_again(job)  # it comes back at once, with pages of its own where it shares what is taken back
            events.append(Rewound(job.id, match.text, tuple(gone), match.string))
        return events

    def _finish(self, job: Job, text: str, count: int) -> list[Event]:
        """Say that the job is done, after the last ``text``."""
        if job.spec.session:
            self.sessions[job.spec.session] = list(job.tokens), job.mix
        events: list[Event] = [Text(job.id, text, count)] if text or count else []
        return [*events, Done(job.id, job.stats(), tuple(job.new_ids))]

    def _remove(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        """Take a running job's pages back; the table remembers what is in them."""
        self._running.remove(job)
        job.drafts = []
        for track in job.tracks:
            self.room.leave(track)


def _importance(job: Job) -> tuple[int, int]:
    """The lowest gives its pages up first: the priority, then who came earlier."""
    return job.spec.priority, -job.arrival


def _guided(runs: Many[_Run], logits: Tensor) -> Tensor:
    """``logits`` without the rows of negative prompts, each of which follows its job's own and guides it: classifier-free guidance,
    ``s log_softmax(a) + (1 - s) log_softmax(b)`` (Sanchez et al., 2306.17806).
    """
    if all(run.job.guide is None for run in runs):
        return logits
    rows: list[Tensor] = []
    at = 0
    for run in runs:
        count = 1 + len(run.drafts)
        mine = logits[at : at + count]
        if run.track is run.job.guide:
            scale = run.job.spec.sampling.cfg_scale
            rows[-1] = scale * rows[-1].float().log_softmax(-1) + (1 - scale) * mine.float().log_softmax(-1)
        else:
            rows.append(mine)
        at += count
    return torch.cat(rows)
