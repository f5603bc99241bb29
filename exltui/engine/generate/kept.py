"""The logits of replies, kept for people who want to look at them again: how likely a token was, and what other settings make of it.

Nothing here is an approximation: rows are kept as the model gave them, and the stages are those of the op ``sample``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exltui.engine.generate.admission import sampler_of
from exltui.engine.generate.job import Job
from exltui.engine.ops.sample import Distribution, SampleParams, steps
from exltui.errors import SamplingError
from exltui.protocol import Sampling, Scores, StageOf
from exltui.tokenizer import Tokenizer

LIMIT = 256 << 20  # bytes of logits; the oldest go first
CHUNK = 64  # tokens whose distributions are reckoned together


@dataclass(frozen=True, slots=True)
class KeptToken:
    """One token that was drawn: the logits [v] f32, what it was drawn with, and what the sampler was told of it."""

    token: int
    logits: Tensor
    mask: Tensor | None
    banned: frozenset[int]
    probability: float
    prior: float


@dataclass(slots=True)
class KeptJob:
    job: Job
    rows: dict[int, KeptToken] = field(default_factory=dict)  # by position


class KeptLogits:
    """At most ``limit`` bytes of logits of jobs that asked for it."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, limit: int = LIMIT) -> None:
        self._tokenizer = tokenizer
        self._width = min(tokenizer.size, vocabulary)
        self._limit = limit
        self._jobs: dict[str, KeptJob] = {}
        self._order: deque[tuple[str, int, int]] = deque()  # job, position, bytes, the oldest first
        self.nbytes = 0

    def add(self, job: Job, drawn: tuple[int, float, float], logits: Tensor, params: SampleParams) -> None:
        """Keep the ``logits`` [v] of the token that is drawn next for ``job``: (id, probability, probability before adaptive-p)."""
        token, probability, prior = drawn
        if token < 0:
            return
        row = torch.empty(logits.shape, dtype=torch.float32, pin_memory=logits.device.type == "cuda")
        row.copy_(logits, non_blocking=True)  # the step's own buffer is written again only behind this copy
        position = len(job.tokens)
        kept = self._jobs.setdefault(job.id, KeptJob(job))
        kept.rows[position] = KeptToken(token, row, params.mask, frozenset(job.banned(position)), probability, prior)
        self._order.append((job.id, position, row.nbytes))
        self.nbytes += row.nbytes
        while self.nbytes > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        id, position, nbytes = self._order.popleft()
        self.nbytes -= nbytes
        kept = self._jobs[id]
        if (id, position, nbytes) not in self._order:  # it was taken back and drawn again
            kept.rows.pop(position, None)
        if not kept.rows:
            del self._jobs[id]

    def scores(self, job_id: str, top: int) -> tuple[Scores, ...]:
        """How likely each token was that is kept of a job. Raises SamplingError if none is."""
        kept = self._kept(job_id)
        rows = [(position, row) for position, row in sorted(kept.rows.items()) if _stands(kept.job.tokens, position, row.token)]
        found: list[Scores] = []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            raw = torch.stack([row.logits for _, row in part]).softmax(1)
            values, ids = raw.topk(min(top, raw.shape[1]))
            for i, (position, row) in enumerate(part):
                likeliest = tuple(zip(ids[i].tolist(), values[i].tolist(), strict=True))
                own = float(raw[i, row.token])
                found.append(Scores(job_id, position, row.token, row.probability, own, raw_top=likeliest))
        return tuple(found)

    def explain(self, job_id: str, position: int, sampling: Sampling | None, top: int) -> tuple[int, tuple[int, ...], tuple[StageOf, ...]]:
        """(token that was drawn, ids that are followed, stages) for one token. Raises SamplingError.

        What mirostat and adaptive-p remember is reckoned from the tokens that were drawn before, with the probabilities that they had.
        """
        kept = self._kept(job_id)
        row = kept.rows.get(position)
        if row is None:
            raise SamplingError("the logits of this token are no longer kept", "write the reply again")
        raw = _distribution(row.logits)
        found = [("raw", raw), *steps(row.logits, self._params(kept, position, row, sampling))]
        if torch.equal(found[0][1].probs, found[1][1].probs):
            del found[1]  # no single logit was changed
        last = found[-1][1]
        ids = list(dict.fromkeys([*raw.ids[:top].tolist(), *last.ids[:top].tolist(), row.token]))
        return row.token, tuple(ids), tuple(_stages(found, ids, len(row.logits)))

    def _params(self, kept: KeptJob, position: int, row: KeptToken, sampling: Sampling | None) -> SampleParams:
        """What the token would be drawn with under these settings."""
        spec = kept.job.spec if sampling is None else replace(kept.job.spec, sampling=sampling)
        spec = replace(spec, allowed_tokens=None)  # they are in the row's mask
        sampler = sampler_of(spec, self._tokenizer, self._width)
        for place, other in sorted(kept.rows.items()):
            if place < position:
                sampler.observe(place, other.probability, other.prior)
        return sampler.params(kept.job.tokens[:position], position, row.mask, row.banned)

    def _kept(self, job_id: str) -> KeptJob:
        if job_id not in self._jobs:
            raise SamplingError("the logits of this reply are no longer kept", "write it again")
        return self._jobs[job_id]


def _stands(tokens: Sequence[int], position: int, token: int) -> bool:
    """Whether a row was not taken back: its token is in the reply, or is the one that ended it."""
    return position == len(tokens) or (position < len(tokens) and tokens[position] == token)


def _distribution(logits: Tensor) -> Distribution:
    probs, ids = logits.double().softmax(0).sort(descending=True, stable=True)
    return Distribution(ids, probs, probs)


def _stages(found: Sequence[tuple[str, Distribution]], ids: list[int], width: int) -> list[StageOf]:
    """What each step left, with the probabilities of ``ids``; there are ``width`` ids in all."""
    stages: list[StageOf] = []
    before: Distribution | None = None
    for name, here in found:
        removed = 0.0
        if before is not None and len(here.ids) < len(before.ids):
            removed = float(before.probs[~torch.isin(before.ids, here.ids)].sum())
        table = torch.zeros(width, dtype=torch.float64)
        table[here.ids] = here.probs
        probabilities = tuple(table[ids].tolist())
        stages.append(StageOf(name or "penalties", len(here.ids), removed, probabilities))
        before = here
    return stages
