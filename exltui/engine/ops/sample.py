"""The row ``sample``: from logits to a token, one set of parameters for each row.

Order and formulas follow docs/sampling.md: penalties on the logits, softmax at the temperature, top-k, top-p, min-p (the distribution is
made to sum to 1 again after each), then the draw at a given random point. The random point comes from outside, so a row's token depends
on nothing but its own logits, parameters and point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.ops.references import expect
from exltui.engine.ops.table import row


@dataclass(frozen=True, slots=True)
class SampleParams:
    """One row's parameters. ``seen`` [m] i64 are distinct token ids that the penalties hit, ``counts`` [m] f32 how often each occurred."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seen: Tensor | None = None
    counts: Tensor | None = None
    point: float = 0.0  # in [0, 1)


@row("logits[r,v] f32, params: one for each row -> tokens[r] i64", nmse=0.0, moves=lambda logits, params: logits.numel() * 4)
def sample(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """Draw one token for each row. Ties in a greedy row go to the lowest id."""
    expect("sample", "params", len(params), logits.shape[0])
    return torch.stack([_sample_row(penalise(logits[i], p), p) for i, p in enumerate(params)])


def penalise(logits: Tensor, p: SampleParams) -> Tensor:
    """[v] with each seen token's logit divided (multiplied, if negative) by ``repetition``, less presence and frequency."""
    if p.seen is None or p.counts is None or (p.repetition == 1.0 and not p.presence and not p.frequency):
        return logits
    values = logits[p.seen]
    values = torch.where(values > 0, values / p.repetition, values * p.repetition) - p.presence - p.frequency * p.counts
    return logits.index_put((p.seen,), values)


def distribution(logits: Tensor, p: SampleParams) -> tuple[Tensor, Tensor]:
    """What is drawn from: probabilities [m] f32, largest first, and their token ids [m]."""
    scaled = logits / p.temperature
    values, ids = scaled.topk(min(p.top_k, scaled.shape[0])) if p.top_k > 0 else scaled.sort(descending=True, stable=True)
    probs = values.softmax(0)
    if 0.0 < p.top_p < 1.0:
        before = probs.cumsum(0) - probs  # the token that crosses the mass stays
        probs = probs[: max(int((before < p.top_p).sum()), 1)]
        probs = probs / probs.sum()
    if p.min_p > 0.0:
        probs = probs[: int((probs >= p.min_p * probs[0]).sum())]
        probs = probs / probs.sum()
    return probs, ids[: probs.shape[0]]


def _sample_row(logits: Tensor, p: SampleParams) -> Tensor:
    if p.temperature == 0.0 or p.top_k == 1:
        return logits.argmax()
    probs, ids = distribution(logits, p)
    index = torch.searchsorted(probs.cumsum(0), torch.tensor(p.point, device=probs.device), right=True)
    return ids[index.clamp_max(probs.shape[0] - 1)]
