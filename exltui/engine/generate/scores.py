"""How likely a token was, to the model and after the sampler: for people who want to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from exltui.engine.ops.sample import SampleParams, distribution
from exltui.protocol import Event, Scores

if TYPE_CHECKING:
    from exltui.engine.generate.job import Job


def scores(job: Job, token: int, probability: float, logits: Tensor, params: SampleParams) -> list[Event]:
    """The event for a ``token`` that was drawn with ``params`` from the model's ``logits`` [v]; none where nothing could be drawn."""
    if token < 0:
        return []
    raw = logits.float().softmax(0)
    top: tuple[tuple[int, float], ...] = ()
    raw_top: tuple[tuple[int, float], ...] = ()
    if count := job.spec.top_tokens:
        ids, probs, _ = distribution(logits, params)
        top = tuple(zip(ids[:count].tolist(), probs[:count].tolist(), strict=True))
        likeliest = raw.topk(min(count, len(raw)))
        raw_top = tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
    kept = tuple(logits.tolist()) if job.spec.logits else ()
    return [Scores(job.id, len(job.tokens), token, probability, float(raw[token]), top, raw_top, kept)]
