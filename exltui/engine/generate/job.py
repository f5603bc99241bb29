"""One job: its tokens, its pages, its sampler and its streamer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from exltui.engine.generate.sampling import Sampler
from exltui.engine.generate.stream import TextStreamer
from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import ROOT
from exltui.protocol import JobSpec, Stats


@dataclass(slots=True, eq=False)
class Job:
    """``tokens`` are prompt and reply; the keys and values of the first ``computed`` of them are in ``pages``.

    A job is the same object from submission to its end. When it has to give its pages up for a while, only ``pages``, ``hashes`` and
    ``computed`` start again; the sampler draws by position and the streamer keeps its text, so nobody can tell.
    """

    spec: JobSpec
    prompt_tokens: int
    tokens: list[int]
    limit: int  # tokens that prompt and reply may have together
    stop_ids: frozenset[int]
    sampler: Sampler
    streamer: TextStreamer
    mix: tuple[tuple[int, float], ...] = ()  # (slot, scale) of its adapters
    root: bytes = ROOT  # what its hashes begin with: other adapters, other pages
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full pages
    computed: int = 0
    goal: int = 0  # tokens to read before the next draw: what there was when the job was admitted
    cached: int = 0
    read: int = 0  # the most prompt tokens that were ever in the cache
    started: float = 0.0
    first_token: float = 0.0
    stop_reason: str = ""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def reading(self) -> bool:
        """Whether it still takes in what was there when it was admitted; otherwise it decodes."""
        return self.computed < self.goal

    @property
    def previous_hash(self) -> bytes:
        return self.hashes[-1] if self.hashes else self.root

    @property
    def new_ids(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    def accept(self, token: int) -> str:
        """Take the token that was drawn -> the text that it makes certain. Sets ``stop_reason`` when the job is over."""
        now = time.perf_counter()
        if not self.first_token:
            self.first_token = now
        if token in self.stop_ids:
            self.stop_reason = "stop_token"
            return self.streamer.finish()
        self.tokens.append(token)
        text = self.streamer.push(token)
        if self.streamer.stop is not None:
            self.stop_reason = "stop_string"
        elif self.spec.max_new_tokens is not None and len(self.tokens) - self.prompt_tokens >= self.spec.max_new_tokens:
            self.stop_reason = "max_new_tokens"
        elif len(self.tokens) >= self.limit:
            self.stop_reason = "context_full"
        return text + self.streamer.finish() if self.stop_reason in ("max_new_tokens", "context_full") else text

    def stats(self) -> Stats:
        now = time.perf_counter()
        first = self.first_token or now
        return Stats(
            stop_reason=self.stop_reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            new_tokens=len(self.tokens) - self.prompt_tokens,
            prefill_seconds=first - self.started if self.started else 0.0,
            decode_seconds=now - first,
            seed=self.sampler.seed,
        )


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)
