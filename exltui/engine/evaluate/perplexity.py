"""Perplexity: e to the mean of the negative log-likelihood of each token, given those before it in its window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.evaluate.logits import CHUNK, check_ids, logit_chunks
from exltui.engine.model.loading import Model
from exltui.errors import ContextError, ModelError

Progress = Callable[[int, int], None]  # tokens scored, tokens to score in all


@dataclass(frozen=True, slots=True)
class Perplexity:
    """``nll`` is the mean in nats over the ``tokens`` that were scored, in ``windows`` windows."""

    perplexity: float
    nll: float
    tokens: int
    windows: int


def perplexity(
    model: Model,
    ids: Sequence[int],
    length: int = 2048,
    stride: int | None = None,
    *,
    bits: tuple[int, int] = (16, 16),
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Perplexity:
    """Score ``ids`` in windows of ``length`` tokens that begin every ``stride`` tokens (``length`` if None: no overlap).

    Each token is scored once, in the first window that holds it and at least one token before it. Raises ModelError for impossible
    numbers and ContextError for a window longer than the context.
    """
    stride = length if stride is None else stride
    check_ids(model, ids)
    if not 1 <= stride <= length or length < 2 or len(ids) < 2:
        raise ModelError(
            f"{len(ids)} tokens in windows of {length} every {stride} tokens cannot be scored",
            "a window has 2 tokens or more, and the stride is from 1 to its length",
        )
    if min(length, len(ids)) > model.context:
        raise ContextError(
            f"a window of {length:,} tokens does not fit into the context of {model.context:,}", "load with a larger --length"
        )
    spans = list(windows(len(ids), length, stride))
    total = sum(end - first for _, first, end in spans)
    summed, scored = 0.0, 0
    for begin, first, end in spans:
        for losses in _losses(model, ids[begin:end], first - begin, bits, chunk):
            summed += float(losses.double().sum())
            scored += len(losses)
            if progress is not None:
                progress(scored, total)
    mean = summed / scored
    return Perplexity(math.exp(mean) if mean < 700 else math.inf, mean, scored, len(spans))


def windows(count: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first token to score, end) of each window over ``count`` tokens. Windows that would score nothing are left out."""
    scored = 1  # nothing comes before the first token
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        first = max(scored, begin + 1)
        if first < end:
            yield begin, first, end
            scored = end
        if end == count:
            return


def _losses(model: Model, ids: Sequence[int], first: int, bits: tuple[int, int], chunk: int) -> Iterator[Tensor]:
    """The negative log-likelihoods [.] f32 of ``ids[first:]``, a chunk at a time."""
    start = 0
    for rows in logit_chunks(model, ids, bits=bits, chunk=chunk):
        begin, end = max(first - 1, start), min(start + len(rows), len(ids) - 1)  # row i scores token i + 1
        if begin < end:
            chosen = rows[begin - start : end - start]
            targets = torch.tensor(ids[begin + 1 : end + 1], dtype=torch.int64, device=rows.device)
            yield torch.logsumexp(chosen, dim=-1) - chosen.gather(1, targets.unsqueeze(1)).squeeze(1)
        start += len(rows)
