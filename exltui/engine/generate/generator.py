"""The generator: many jobs, one forward pass at a time.

Each ``advance`` is one step: waiting jobs are admitted while pages last, every job that decodes gives one token, jobs that still read
their prompt share a budget of ``chunk`` tokens, and all of it runs as one packet. Prompts that begin like something computed before
start behind it. When the pages run out, the youngest job waits again and later goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections import deque

from exltui.engine.generate.job import Job, pages_for
from exltui.engine.generate.sampling import Sampler
from exltui.engine.generate.stream import TextStreamer
from exltui.engine.ops.sample import EXCLUDED
from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import PageTable
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ContextError, SamplingError
from exltui.protocol import Done, Event, Failed, JobSpec, Prefill, Queued, Text
from exltui.tokenizer import Tokenizer

MAX_BATCH = 32
TAIL = 4  # ids of the prompt before which the reply's text is decoded


class Generator:
    """``context`` is the longest sequence, at most what the cache holds; ``chunk`` the number of prompt tokens in a step.

    ``tokens_read`` and ``tokens_drawn`` count all that went through: prompt tokens computed, reply tokens sampled.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, context: int, chunk: int) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.context = min(context, runner.cache.pages * PAGE)
        self.chunk = chunk
        self.table = PageTable(runner.cache.pages)
        self.tokens_read = 0
        self.tokens_drawn = 0
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

    @property
    def slots(self) -> set[int]:
        """Slots of the adapters that jobs use."""
        return {slot for job in (*self._running, *self._waiting) for slot, _ in job.mix}

    def submit(self, spec: JobSpec) -> list[Event]:
        """Queue a job. Raises ContextError or SamplingError, and then the job does not exist."""
        ids = list(spec.prompt_ids) if spec.prompt_ids is not None else self._encode(spec)
        self._check(spec, ids)
        stop_ids = self.tokenizer.eos_ids | frozenset(spec.stop_token_ids)
        sampler = self._sampler(spec)
        streamer = TextStreamer(self.tokenizer.decode, spec.stop_strings, ids[-TAIL:])
        mix = self.runner.adapters.mix(spec.adapters)
        root = self.runner.adapters.root(mix)
        self._waiting.append(Job(spec, len(ids), ids, self.context, stop_ids, sampler, streamer, mix, root))
        return [Queued(spec.id, len(ids))]

    def _encode(self, spec: JobSpec) -> list[int]:
        add_bos = self.tokenizer.adds_bos if spec.add_bos is None else spec.add_bos
        return self.tokenizer.encode(spec.prompt or "", parse_special=spec.parse_special, add_bos=add_bos)

    def _sampler(self, spec: JobSpec) -> Sampler:
        width = min(self.tokenizer.size, self.runner.model.spec.vocab)
        named = [*(token for token, _ in spec.logit_bias), *spec.banned_tokens, *(spec.allowed_tokens or ())]
        if strange := [token for token in named if not 0 <= token < width]:
            raise SamplingError(f"the token id {strange[0]} does not exist", f"the tokenizer has ids 0 to {width - 1}")
        bias = {**dict(spec.logit_bias), **dict.fromkeys(spec.banned_tokens, -math.inf)}
        if wild := next((value for _, value in spec.logit_bias if not math.isfinite(value)), None):
            raise SamplingError(f"a logit bias is {wild}, it must be a finite number", "banned_tokens excludes tokens")
        return Sampler(spec.sampling, self.tokenizer.ids_with, bias=bias, allowed=spec.allowed_tokens, width=width)

    def _check(self, spec: JobSpec, ids: list[int]) -> None:
        vocabulary = self.runner.model.spec.vocab
        if not ids:
            raise ContextError("the prompt is empty", "say something")
        if strange := next((i for i in (max(ids), min(ids)) if not 0 <= i < vocabulary), None):
            sentence = f"the prompt holds the token id {strange}, the model knows 0 to {vocabulary - 1}"
            raise ContextError(sentence, "the ids come from another model's tokenizer")
        if len(ids) >= self.context:
            sentence = f"the prompt has {len(ids):,} tokens, the context holds {self.context:,}"
            raise ContextError(sentence, "shorten it, or load the model with a larger --length")
        if spec.max_new_tokens is not None and spec.max_new_tokens < 1:
            raise SamplingError(f"max_new_tokens is {spec.max_new_tokens}, it must be at least 1", "leave it out for no limit")

    def cancel(self, job_id: str) -> list[Event]:
        """End a job before its next step; what it computed stays in the cache. Unknown ids are ignored: the job may just have ended."""
        for jobs in (self._waiting, self._running):
            for job in jobs:
                if job.id == job_id:
                    job.stop_reason = "cancelled"
                    jobs.remove(job)
                    return self._finish(job, job.streamer.finish())
        return []

    def abandon(self) -> list[str]:
        """Drop every running job after a step that failed, with its pages -> their ids. What the step wrote is not trusted."""
        dropped, self._running = self._running, []
        for job in dropped:
            self.table.release(job.pages)
        return [job.id for job in dropped]

    def advance(self) -> list[Event]:
        """One step -> what happened. Returns at once when there is nothing to do."""
        events = self._admit()
        batch = self._schedule()
        if not batch:
            self._requeue_youngest()
            return events
        sequences = []
        for job, count in batch:
            last = job.computed + count == len(job.tokens)
            tokens = job.tokens[job.computed : job.computed + count]
            sequences.append(Sequence(tokens, job.computed, job.pages, "last" if last else "none", job.mix))
        logits = self.runner.step(Step.build(sequences, self.runner.model.device))
        drawing = []
        for job, count in batch:
            events.extend(self._computed(job, count))
            if job.pending == 0:
                drawing.append(job)
        if drawing:
            params = [job.sampler.params(job.tokens, len(job.tokens)) for job in drawing]
            drawn = self.runner.model.ops.sample(logits, params).tolist()
            self.tokens_drawn += len(drawn)
            for job, (token, probability, prior) in zip(drawing, drawn, strict=True):
                job.sampler.observe(len(job.tokens), probability, prior)
                events.extend(self._accept(job, int(token)))
        return events

    # ── the parts of a step ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> list[Event]:
        """Start waiting jobs, in order, while pages and the batch have room."""
        events: list[Event] = []
        while self._waiting and len(self._running) < MAX_BATCH:
            job = self._waiting[0]
            reuse = self.table.match(job.tokens, job.root)
            pages = self.table.take(reuse, pages_for(len(job.tokens)))
            if pages is None:
                break  # pages come back when a running job ends
            self._running.append(self._waiting.popleft())
            job.pages = pages
            job.hashes = [h for i in reuse.pages if (h := self.table.pages[i].hash) is not None]
            job.computed, job.goal = reuse.tokens, len(job.tokens)
            if reuse.copy:
                self.runner.cache.copy_page(reuse.copy[0], pages[len(reuse.pages)], reuse.copy[1])
            if not job.started:  # it was not here before
                job.started, job.cached, job.read = time.perf_counter(), reuse.tokens, reuse.tokens
                events.append(Prefill(job.id, job.cached, job.prompt_tokens, job.cached))
        return events

    def _schedule(self) -> list[tuple[Job, int]]:
        """Which jobs run in this step, and how many tokens of each. A job that needs a page and finds none sits the step out."""
        batch, budget = [], self.chunk
        for job in self._running:
            count = min(job.pending, budget) if job.reading else job.pending
            if count == 0:
                continue
            while len(job.pages) * PAGE < job.computed + count:
                page = self.table.extend()
                if page is None:
                    break
                job.pages.append(page)
            else:
                batch.append((job, count))
                budget -= count if job.reading else 0
        return batch

    def _requeue_youngest(self) -> None:
        """Every job waits for a page: the one admitted last gives up its own, and waits until there are enough for what it has.

        It comes back only when more is free than it gave, so at least one of the others moves on meanwhile.
        """
        if self._running:
            job = self._running.pop()
            self._give_back(job)
            self._waiting.appendleft(job)

    def _computed(self, job: Job, count: int) -> list[Event]:
        """Note that the keys and values of ``count`` more tokens are in the cache."""
        reading = job.reading
        job.computed += count
        while (len(job.hashes) + 1) * PAGE <= job.computed:
            page = len(job.hashes)
            tokens = job.tokens[page * PAGE : (page + 1) * PAGE]
            job.hashes.append(self.table.filled(job.pages[page], job.previous_hash, tokens))
        if not reading:
            return []
        self.tokens_read += count
        here = min(job.computed, job.prompt_tokens)
        if here <= job.read:
            return []  # a job that came back reads once more what it had read
        job.read = here
        return [Prefill(job.id, job.read, job.prompt_tokens, job.cached)]

    def _accept(self, job: Job, token: int) -> list[Event]:
        if token == EXCLUDED:
            self._running.remove(job)
            self._give_back(job)
            return [Failed(job.id, "no token is left to draw", "allowed and banned tokens, or a grammar, exclude them all")]
        before = len(job.tokens)
        text = job.accept(token)
        if job.stop_reason:
            self._running.remove(job)
            return self._finish(job, text, len(job.tokens) - before)
        return [Text(job.id, text, 1)]

    def _finish(self, job: Job, text: str, count: int = 0) -> list[Event]:
        """Give the job's pages back and say that it is done, after the last ``text``."""
        self._give_back(job)
        events: list[Event] = [Text(job.id, text, count)] if text or count else []
        return [*events, Done(job.id, job.stats(), tuple(job.new_ids))]

    def _give_back(self, job: Job) -> None:
        """Release the job's pages; the table remembers what is in them, the last one's part included."""
        page, rows = divmod(job.computed, PAGE)
        if rows and job.pages:
            self.table.filled(job.pages[page], job.previous_hash, job.tokens[page * PAGE : job.computed])
        self.table.release(job.pages)
        job.pages, job.hashes, job.computed = [], [], 0
