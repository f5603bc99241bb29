"""The row ``sample``: from logits to a token, one set of parameters for each row. Formulas: docs/sampling.md.

First single logits change (penalties, shifts, mask), then the rules shape the distribution in the order in which they stand, then a
token is drawn at a given random point, the likeliest first. The point comes from outside, so a row's token depends on nothing but its
own logits, parameters and point.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exltui.engine.ops.references import expect
from exltui.engine.ops.table import OPS, register_native, row
from exltui.errors import ModelError
from exltui.sampling import ORDER

STAGES = (*ORDER, "skew")  # the last one moves the random point; csrc/cpu/sample.h numbers them alike
EXCLUDED = -1  # what is drawn where every token is excluded
BROKEN = -2
TOO_MANY = -3  # of a GPU: a stage needs the order of more tokens than it sorts, and the CPU must draw
COLDEST = 0.01  # a dynamic temperature is at least this
XTC_LEAST = 1e-9  # of probability that XTC must leave over; what it takes from its choices needs somewhere to go


class Rule(NamedTuple):
    """One stage with its numbers: a threshold, a temperature, or (minimum, maximum, exponent), or XTC's (probability, threshold)."""

    stage: str
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0


@dataclass(frozen=True, slots=True)
class Penalties:
    """``weights`` say how much of repetition and presence each seen token takes (1: all), ``counts`` how often it occurred."""

    repetition: float
    presence: float
    frequency: float
    seen: Tensor  # [m] i64, distinct
    weights: Tensor  # [m] f32
    counts: Tensor  # [m] f32


class SampleParams(NamedTuple):
    """One row's parameters. A greedy row has the one rule ``top_k`` 1."""

    rules: tuple[Rule, ...] = ()
    point: float = 0.0  # in [0, 1)
    penalties: Penalties | None = None
    shift: tuple[Tensor, Tensor] | None = None  # distinct ids [s] i64, what is added to their logits [s] f32; -inf bans
    mask: Tensor | None = None  # [v / 32] i32: bit i % 32 of word i / 32 allows token i
    spared: Tensor | None = None  # [x] i64, sorted: ids that XTC leaves alone
    width: int = 0  # so many ids exist; a model's head may have more. 0: all

    @property
    def plainly_greedy(self) -> bool:
        """Whether the likeliest token is drawn from logits as they are."""
        return self.rules == (Rule("top_k", 1),) and self.penalties is None and self.shift is None and self.mask is None


@dataclass(frozen=True, slots=True)
class Tally:
    """Penalties that a GPU counts by itself, from the tokens of a sequence to which it adds each one that it draws.

    ``room`` is how many tokens may come; ``window`` and ``decay`` are ``token_repetition_range`` and ``token_repetition_decay``.
    """

    tokens: Sequence[int]
    room: int
    window: int
    decay: int
    repetition: float
    presence: float
    frequency: float


@dataclass(frozen=True, slots=True)
class Seat:
    """All that the draws of a sequence need but their random points, for as long as the host need not look at them one by one."""

    params: SampleParams
    tally: Tally | None = None


class Distribution(NamedTuple):
    """What a token is drawn from: ids [m] i64 and probabilities [m] f64, the likeliest first; ``prior`` is the latter before adaptive-p."""

    ids: Tensor
    probs: Tensor
    prior: Tensor


@row("logits[r,v] f32, params: one for each row -> drawn[r,3] f64", nmse=0.0, moves=lambda logits, params: logits.numel() * 4)
def sample(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """Draw one token for each row -> its id, its probability in what it was drawn from, and that before adaptive-p.

    Ties go to the lowest id. The id is ``EXCLUDED`` where no token is allowed. Raises ModelError if a logit is NaN or infinite.
    """
    expect("sample", "params", len(params), logits.shape[0])
    return torch.tensor([_draw(logits[i], p) for i, p in enumerate(params)], dtype=torch.float64).reshape(-1, 3)


def adjusted(logits: Tensor, p: SampleParams) -> Tensor:
    """[width] f64: the logits after penalties, shifts and mask. Raises ModelError."""
    logits = logits[: p.width or None].double().cpu().clone()
    if bool(logits.isnan().any()) or bool((logits == math.inf).any()):
        broken()
    if p.penalties is not None:
        by = p.penalties
        inside = by.seen < len(logits)
        seen, weights, counts = by.seen[inside], by.weights[inside].double(), by.counts[inside].double()
        factor = 1 + (by.repetition - 1) * weights
        values = logits[seen]
        values = torch.where(values > 0, values / factor, values * factor)
        logits[seen] = values - by.presence * weights - by.frequency * counts
    if p.shift is not None:
        inside = p.shift[0] < len(logits)
        logits[p.shift[0][inside]] += p.shift[1][inside].double()
    if p.mask is not None:
        index = torch.arange(len(logits))
        logits[(p.mask[index // 32] >> (index % 32) & 1) == 0] = -math.inf
    return logits


def distribution(logits: Tensor, p: SampleParams) -> Distribution:
    """What the token of this row is drawn from; empty if every token is excluded."""
    _, ids, z, prior = deque(_walk(logits, p), maxlen=1).pop()
    return _weighed(ids, z, prior)


def steps(logits: Tensor, p: SampleParams) -> Iterator[tuple[str, Distribution]]:
    """How ``distribution`` comes about: what is left after the changes of single logits (named ""), then after each rule."""
    for stage, ids, z, prior in _walk(logits, p):
        yield stage, _weighed(ids, z, prior)


def _weighed(ids: Tensor, z: Tensor, prior: Tensor | None) -> Distribution:
    probs, order = z.softmax(0).sort(descending=True, stable=True)
    return Distribution(ids[order], probs, probs if prior is None else prior[order])


def _walk(logits: Tensor, p: SampleParams) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """(stage, ids [m] i64, log-weights [m] f64, probabilities before adaptive-p if it has run), as far as each stage."""
    values = adjusted(logits, p)
    ids = (values > -math.inf).nonzero().flatten()
    z = values[ids]
    prior: Tensor | None = None
    yield "", ids, z, prior
    for rule in p.rules:
        if len(ids) > 1:
            z, order = (z - z.max()).sort(descending=True, stable=True)
            ids, prior = ids[order], None if prior is None else prior[order]
            if rule.stage == "adaptive":
                prior = z.softmax(0)
            keep, z = _STAGES[rule.stage](z, ids, rule, p)
            keep = keep & (z > -math.inf)
            order = ids[keep].argsort()  # of equal ones the lowest id is the first
            z, ids, prior = z[keep][order], ids[keep][order], None if prior is None else prior[keep][order]
        yield rule.stage, ids, z, prior


def _all(z: Tensor) -> Tensor:
    return torch.ones_like(z, dtype=torch.bool)


def _head(z: Tensor, count: int) -> Tensor:
    return torch.arange(len(z)) < max(count, 1)


def _crossing(probs: Tensor, mass: float) -> int:
    """How many of ``probs`` it takes to reach ``mass``."""
    return int((probs.cumsum(0) - probs < mass).sum())


def _tail_free(z: Tensor, ids: Tensor, rule: Rule, p: SampleParams) -> tuple[Tensor, Tensor]:
    if len(z) < 3:
        return _all(z), z
    second = z.softmax(0).diff().diff().abs()
    if float(second.sum()) == 0.0:
        return _all(z), z
    return _head(z, 1 + int(((second / second.sum()).cumsum(0) <= rule.a).sum())), z


def _typical(z: Tensor, ids: Tensor, rule: Rule, p: SampleParams) -> tuple[Tensor, Tensor]:
    probs, logs = z.softmax(0), z.log_softmax(0)
    entropy = -(probs * logs).sum()
    order = (-logs - entropy).abs().argsort(stable=True)
    keep = torch.zeros_like(z, dtype=torch.bool)
    keep[order[: max(_crossing(probs[order], rule.a), 1)]] = True
    return keep, z


def _dynamic(z: Tensor, ids: Tensor, rule: Rule, p: SampleParams) -> tuple[Tensor, Tensor]:
    entropy = -(z.softmax(0) * z.log_softmax(0)).sum()
    temperature = rule.a + (rule.b - rule.a) * float(entropy / math.log(len(z))) ** rule.c
    return _all(z), z / max(temperature, COLDEST)


def _xtc(z: Tensor, ids: Tensor, rule: Rule, p: SampleParams) -> tuple[Tensor, Tensor]:
    probs = z.softmax(0)
    best = probs >= rule.b
    if p.spared is not None:
        best &= ~torch.isin(ids, p.spared)
    places = best.nonzero().flatten()
    best[places[-1:]] = False  # the least likely of the best stays
    mass, others = float(probs[best].sum()), float(probs[~best].sum())
    if mass == 0.0 or others < XTC_LEAST:
        return _all(z), z
    rest = (others + rule.a * mass) / others
    return _all(z), (probs * torch.where(best, 1 - rule.a, rest)).log()


def _adaptive(z: Tensor, ids: Tensor, rule: Rule, p: SampleParams) -> tuple[Tensor, Tensor]:
    far = (z.softmax(0) - rule.a).abs() / 0.3
    return _all(z), -10 * far * far / (1 + far)


# z: log-weights [m] f64, the largest first and 0 -> what stays, and the new log-weights.
_STAGES = {
    "top_n_sigma": lambda z, ids, rule, p: (z >= -rule.a * z.std(correction=0), z),
    "smoothing": lambda z, ids, rule, p: (_all(z), -rule.a * z * z),
    "temperature": lambda z, ids, rule, p: (_all(z), z / rule.a),
    "top_k": lambda z, ids, rule, p: (_head(z, int(rule.a)), z),
    "top_p": lambda z, ids, rule, p: (_head(z, _crossing(z.softmax(0), rule.a)), z),
    "top_a": lambda z, ids, rule, p: ((z.softmax(0) >= rule.a * z.softmax(0)[0] ** 2) | _head(z, 1), z),
    "min_p": lambda z, ids, rule, p: (z.softmax(0) >= rule.a * z.softmax(0)[0], z),
    "tfs": _tail_free,
    "typical": _typical,
    "mirostat": lambda z, ids, rule, p: ((z.softmax(0) >= 2.0**-rule.a) | _head(z, 1), z),
    "dynamic_temperature": _dynamic,
    "xtc": _xtc,
    "adaptive": _adaptive,
    "skew": lambda z, ids, rule, p: (_all(z), z),  # it moves the point
}


def _draw(logits: Tensor, p: SampleParams) -> tuple[float, float, float]:
    ids, probs, prior = distribution(logits, p)
    if not len(ids):
        return EXCLUDED, 0.0, 0.0
    skew = next((rule.a for rule in p.rules if rule.stage == "skew"), 0.0)
    point = p.point ** math.exp(-skew)
    index = min(int(torch.searchsorted(probs.cumsum(0), torch.tensor(point, dtype=torch.float64), right=True)), len(ids) - 1)
    return float(ids[index]), float(probs[index]), float(prior[index])


def broken() -> None:
    """Raise ModelError: what the model computed is no number."""
    raise ModelError(
        "the model computed a logit that is no finite number", "its weights may be damaged: exltui doctor --check names the operation"
    )


@functools.lru_cache(maxsize=4096)
def packed(rules: tuple[Rule, ...]) -> Tensor:
    """[rules, 4] f64: each rule as csrc/cpu/sample.h reads it."""
    return torch.tensor([[STAGES.index(rule.stage), rule.a, rule.b, rule.c] for rule in rules], dtype=torch.float64).reshape(-1, 4)


def sample_on_gpu(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """``sample`` for logits on a GPU: rows that want the likeliest token alone are decided there, others on the CPU."""
    expect("sample", "params", len(params), logits.shape[0])
    if all(p.plainly_greedy for p in params):
        return _likeliest(logits, params)
    op = OPS["sample"]
    return op.impls.get("cpu", op.reference)(logits.cpu(), params)


def _likeliest(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """The lowest id of the largest logit of each row; NaN counts as the largest."""
    narrow = {p.width for p in params}
    parts = (
        [logits[:, : narrow.pop() or None]] if len(narrow) == 1 else [logits[i : i + 1, : p.width or None] for i, p in enumerate(params)]
    )
    found = [part.max(dim=1) for part in parts]
    values, ids = (torch.cat(pieces).double() for pieces in zip(*found, strict=True))
    largest, tokens = torch.stack((values, ids)).cpu()
    if bool(largest.isnan().any()) or bool((largest == math.inf).any()):
        broken()
    excluded = largest == -math.inf
    ones = (~excluded).double()
    return torch.stack((tokens.masked_fill(excluded, EXCLUDED), ones, ones), dim=1)


register_native("cuda", "sample", sample_on_gpu)
