"""The generator: many jobs, one forward pass at a time.

Each ``advance`` is one step: waiting jobs are admitted while pages last, every job that decodes gives one token, jobs that still read
their prompt share a budget of ``chunk`` tokens, and all of it runs as one packet. Prompts that begin like something computed before
start behind it.
"""

from __future__ import annotations

import time
from collections import deque

from exltui.engine.generate.job import Job, pages_for
from exltui.engine.generate.sampling import Sampler
from exltui.engine.generate.stream import TextStreamer
from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import PageTable
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ContextError
from exltui.protocol import Done, Event, Failed, JobSpec, Prefill, Queued, Text
from exltui.tokenizer import Tokenizer

MAX_BATCH = 32


class Generator:
    """``context`` is the longest sequence, ``chunk`` the number of prompt tokens in a step."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, context: int, chunk: int) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.context = context
        self.chunk = chunk
        self.table = PageTable(runner.cache.pages)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []

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

    def abandon(self) -> list[str]:
        """Drop every running job after a step that failed, with its pages -> their ids. What the step wrote is not trusted."""
        dropped, self._running = self._running, []
        for job in dropped:
            self.table.release(job.pages)
        return [job.id for job in dropped]

    def submit(self, spec: JobSpec) -> list[Event]:
        """Queue a job. Raises ContextError or SamplingError, and then the job does not exist."""
        ids = list(spec.prompt_ids) if spec.prompt_ids is not None else self._encode(spec)
        if not ids:
            raise ContextError("the prompt is empty", "say something")
        if max(ids) >= self.runner.model.spec.vocab or min(ids) < 0:
            raise ContextError(f"the prompt holds the token id {max(ids)}, the model knows 0 to {self.runner.model.spec.vocab - 1}")
        if len(ids) >= self.context:
            raise ContextError(
                f"the prompt has {len(ids):,} tokens, the context holds {self.context:,}",
                "shorten it, or load the model with a larger --length",
            )
        stop_ids = self.tokenizer.eos_ids | frozenset(spec.stop_token_ids)
        streamer = TextStreamer(self.tokenizer.decode, spec.stop_strings)
        self._waiting.append(Job(spec, len(ids), ids, self.context, stop_ids, Sampler(spec.sampling), streamer))
        return [Queued(spec.id, len(ids))]

    def _encode(self, spec: JobSpec) -> list[int]:
        add_bos = self.tokenizer.adds_bos if spec.add_bos is None else spec.add_bos
        return self.tokenizer.encode(spec.prompt or "", parse_special=spec.parse_special, add_bos=add_bos)

    def cancel(self, job_id: str) -> list[Event]:
        """End a job before its next step; what it computed stays in the cache. Unknown ids are ignored: the job may just have ended."""
        for jobs in (self._waiting, self._running):
            for job in jobs:
                if job.id == job_id:
                    job.stop_reason = "cancelled"
                    jobs.remove(job)
                    return self._finish(job, job.streamer.finish())
        return []

    def advance(self) -> list[Event]:
        """One step -> what happened. Returns at once when there is nothing to do."""
        events = self._admit()
        batch = self._schedule()
        if not batch:
            return events + self._break_deadlock()
        sequences = []
        for job, count in batch:
            done = job.computed + count == len(job.tokens)
            tokens = job.tokens[job.computed : job.computed + count]
            sequences.append(Sequence(tokens, job.computed, job.pages, "last" if done else "none"))
        logits = self.runner.step(Step.build(sequences, self.runner.model.device))
        drawing = []
        for job, count in batch:
            prefilling = job.prefilling
            job.computed += count
            self._note_full_pages(job)
            if prefilling:
                events.append(Prefill(job.id, min(job.computed, job.prompt_tokens), job.prompt_tokens, job.cached))
            if job.pending == 0:
                drawing.append(job)
        if drawing:
            params = [job.sampler.params(job.tokens, len(job.tokens)) for job in drawing]
            drawn = self.runner.model.ops.sample(logits, params).tolist()
            for job, token in zip(drawing, drawn, strict=True):
                events.extend(self._accept(job, token))
        return events

    def _accept(self, job: Job, token: int) -> list[Event]:
        before = len(job.tokens)
        text = job.accept(token)
        if job.stop_reason:
            self._running.remove(job)
            return self._finish(job, text, len(job.tokens) - before)
        return [Text(job.id, text, 1)]

    def _finish(self, job: Job, text: str, count: int = 0) -> list[Event]:
        """Give the job's pages back, remembering the last one's part, and say that it is done."""
        if job.pages:
            page, rows = divmod(job.computed, PAGE)
            if rows:
                self.table.filled(job.pages[page], job.previous_hash, job.tokens[page * PAGE : job.computed])
            self.table.release(job.pages)
            job.pages = []
        events: list[Event] = [Text(job.id, text, count)] if text or count else []
        return [*events, Done(job.id, job.stats(), tuple(job.new_ids))]

    def _admit(self) -> list[Event]:
        """Start waiting jobs, in order, while pages and the batch have room."""
        events: list[Event] = []
        while self._waiting and len(self._running) < MAX_BATCH:
            job = self._waiting[0]
            reuse = self.table.match(job.tokens)
            pages = self.table.take(reuse, pages_for(len(job.tokens)))
            if pages is None:
                if self._running:
                    break  # pages come back when a running job ends
                self._waiting.popleft()
                room = len(self.table.pages) * PAGE
                events.append(
                    Failed(job.id, f"the prompt has {len(job.tokens):,} tokens, the cache holds {room:,}", "load with a larger --length")
                )
                continue
            self._waiting.popleft()
            if reuse.copy:
                self.runner.cache.copy_page(reuse.copy[0], pages[len(reuse.pages)], reuse.copy[1])
            job.pages = pages
            job.hashes = [h for i in reuse.pages if (h := self.table.pages[i].hash) is not None]
            job.computed = job.cached = reuse.tokens
            job.started = time.perf_counter()
            self._running.append(job)
            events.append(Prefill(job.id, job.cached, job.prompt_tokens, job.cached))
        return events

    def _schedule(self) -> list[tuple[Job, int]]:
        """Which jobs run in this step, and how many tokens of each. A job that needs a page and finds none sits the step out."""
        batch, budget = [], self.chunk
        for job in self._running:
            count = job.pending if not job.prefilling else min(job.pending, budget)
            if count == 0:
                continue
            while len(job.pages) * PAGE < job.computed + count:
                page = self.table.extend()
                if page is None:
                    break
                job.pages.append(page)
            else:
                batch.append((job, count))
                budget -= count if job.prefilling else 0
        return batch

    def _break_deadlock(self) -> list[Event]:
        """When every job waits for a page, the youngest gives up its own."""
        if not self._running:
            return []
        job = self._running.pop()
        job.stop_reason = "context_full"
        return self._finish(job, job.streamer.finish())

    def _note_full_pages(self, job: Job) -> None:
        while (len(job.hashes) + 1) * PAGE <= job.computed:
            page = len(job.hashes)
            tokens = job.tokens[page * PAGE : (page + 1) * PAGE]
            here = self.table.filled(job.pages[page], job.previous_hash, tokens)
            if here is None:  # cannot be: the page is full
                break
            job.hashes.append(here)
