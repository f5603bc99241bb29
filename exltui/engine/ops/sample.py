"""The row ``sample``: from logits to a token, one set of parameters for each row.

Order and formulas follow docs/sampling.md: penalties on the logits, softmax at the temperature, top-k, top-p, min-p (the distribution is
made to sum to 1 again after each), then the draw at a given random point, the likeliest token first. The point comes from outside, so a
row's token depends on nothing but its own logits, parameters and point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exltui.engine.ops.references import expect
from exltui.engine.ops.table import register_native, row
from exltui.errors import ModelError

Array = np.ndarray[Any, np.dtype[Any]]


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

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def penalises(self) -> bool:
        return self.seen is not None and (self.repetition != 1.0 or bool(self.presence) or bool(self.frequency))


@row("logits[r,v] f32, params: one for each row -> tokens[r] i64", nmse=0.0, moves=lambda logits, params: logits.numel() * 4)
def sample(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """Draw one token for each row; ties go to the lowest id. Raises ModelError if the largest logit is not a finite number."""
    expect("sample", "params", len(params), logits.shape[0])
    return torch.stack([_sample_row(penalise(logits[i], p), p) for i, p in enumerate(params)])


def penalise(logits: Tensor, p: SampleParams) -> Tensor:
    """[v] with each seen token's logit divided (multiplied, if negative) by ``repetition``, less presence and frequency."""
    if p.seen is None or p.counts is None or not p.penalises:
        return logits
    seen, counts = p.seen.to(logits.device), p.counts.to(logits.device)
    values = logits[seen]
    values = torch.where(values > 0, values / p.repetition, values * p.repetition) - p.presence - p.frequency * counts
    return logits.index_put((seen,), values)


def distribution(logits: Tensor, p: SampleParams) -> tuple[Tensor, Tensor]:
    """What is drawn from: probabilities [m] f64, largest first, and their token ids [m]."""
    values, ids = (logits.double() / p.temperature).sort(descending=True, stable=True)
    if p.top_k > 0:
        values, ids = values[: p.top_k], ids[: p.top_k]
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
    _check(float(logits.max()))
    if p.greedy:
        return logits.argmax()
    probs, ids = distribution(logits, p)
    index = torch.searchsorted(probs.cumsum(0), torch.tensor(p.point, dtype=torch.float64, device=probs.device), right=True)
    return ids[index.clamp_max(probs.shape[0] - 1)]


def _check(largest: float) -> None:
    if not np.isfinite(largest):
        raise ModelError(f"the model's largest logit is {largest}", "its weights may be damaged: exltui doctor --check names the operation")


# ── on the CPU ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────
# One thread of NumPy, which never sorts the vocabulary: a draw looks only at the few likeliest tokens. For 49,152 logits and the default
# settings 0.1 ms, where torch's sort takes 4 ms and its parallel top-k waits for whoever else has the cores.


def sample_cpu(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """``sample`` on the CPU, wherever the logits are: half a megabyte to copy is less than a GPU's sort of a row."""
    expect("sample", "params", len(params), logits.shape[0])
    values = logits.cpu().numpy()
    return torch.tensor([_draw(values[i], p) for i, p in enumerate(params)], dtype=torch.int64)


def _draw(logits: Array, p: SampleParams) -> int:
    if p.seen is not None and p.counts is not None and p.penalises:
        logits = _penalised(logits, p.seen.numpy(), p.counts.numpy(), p)
    likeliest = int(logits.argmax())  # NaN counts as the largest
    _check(float(logits[likeliest]))
    if p.greedy:
        return likeliest
    by_mass = 0.0 < p.top_p < 1.0
    ids, total = (_largest(logits, p.top_k), 0.0) if p.top_k > 0 else _head(logits, p)
    weights = np.exp((logits[ids].astype(np.float64) - float(logits[likeliest])) / p.temperature)
    cumulative = weights.cumsum()
    total = total or float(cumulative[-1])
    keep = len(ids)
    if by_mass:  # the token that crosses the mass stays
        keep = max(int(np.count_nonzero(cumulative - weights < p.top_p * total)), 1)
    if p.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(weights >= p.min_p * weights[0])))
    if by_mass or p.min_p > 0.0:
        total = float(cumulative[keep - 1])
    index = int(np.searchsorted(cumulative[:keep], p.point * total, side="right"))
    return int(ids[min(index, keep - 1)])


def _penalised(logits: Array, seen: Array, counts: Array, p: SampleParams) -> Array:
    """What ``penalise`` gives."""
    values = logits[seen]
    repetition = np.float32(p.repetition)
    values = np.where(values > 0, values / repetition, values * repetition)
    logits = logits.copy()
    logits[seen] = values - np.float32(p.presence) - np.float32(p.frequency) * counts
    return logits


def _largest(logits: Array, k: int) -> Array:
    """Ids of the ``k`` largest, the largest first. The k-th largest of many columns' maxima is a bound that at least k values reach."""
    if k >= logits.size:
        return np.argsort(-logits, kind="stable")
    columns = logits.size // 64
    maxima = logits[: 64 * columns].reshape(64, columns).max(0) if columns >= k else logits
    ids = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
    return ids[np.argsort(-logits[ids], kind="stable")[:k]]


def _head(logits: Array, p: SampleParams) -> tuple[Array, float]:
    """The likeliest ids, the largest first, as many as the draw can ask for, and the sum of all exponentials over the largest one."""
    weights = np.exp((logits - logits.max()) / np.float32(p.temperature))
    total = float(weights.sum(dtype=np.float64))
    # The weights are f32 and the cut is made in f64, so a little more is taken than is asked for.
    mass = 1.0001 * total * (p.top_p if 0.0 < p.top_p < 1.0 else p.point)
    ids = np.arange(0)
    for least in (p.min_p,) if p.min_p > 0.0 else (1e-2, 1e-3, 1e-4, 1e-6, 0.0):
        ids = np.flatnonzero(weights >= 0.999 * least)
        if float(weights[ids].sum(dtype=np.float64)) > mass:
            break
    return ids[np.argsort(-logits[ids], kind="stable")], total


for device_type in ("cpu", "cuda"):
    register_native(device_type, "sample", sample_cpu)
