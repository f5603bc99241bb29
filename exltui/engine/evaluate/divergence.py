"""How far a model's distributions lie from another's, or from its own with an f16 cache, over the tokens of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.evaluate.logits import CHUNK, check_ids, logit_chunks
from exltui.engine.evaluate.perplexity import windows
from exltui.engine.model.loading import Model
from exltui.errors import ContextError, ModelError

Progress = Callable[[int, int], None]  # tokens compared, tokens to compare in all


@dataclass(frozen=True, slots=True)
class Divergence:
    """``kl`` is the mean of KL(base || model) in nats, ``same`` the share of places with the same likeliest token."""

    kl: float
    same: float
    perplexity: float
    base_perplexity: float
    tokens: int


def divergence(
    model: Model,
    base: Model,
    ids: Sequence[int],
    length: int = 2048,
    *,
    bits: tuple[int, int] = (16, 16),
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Divergence:
    """Compare ``model``, with a cache of ``bits``, with ``base`` and an f16 cache, at each token but the first of windows of ``length``.

    Raises ModelError for vocabularies of different sizes or too few tokens, ContextError for a window longer than a context.
    """
    check_ids(base, ids)
    check_ids(model, ids)
    if length < 2 or len(ids) < 2:
        raise ModelError(
            f"{len(ids)} tokens in windows of {length} cannot be compared", "give at least 2 tokens, and windows of at least 2"
        )
    if min(length, len(ids)) > min(model.context, base.context):
        raise ContextError(f"a window of {min(length, len(ids)):,} tokens does not fit into the context", "load with a larger --length")
    if model.spec.vocab != base.spec.vocab:
        raise ModelError(
            f"{model.name} has {model.spec.vocab:,} tokens, {base.name} {base.spec.vocab:,}", "compare models of one tokenizer"
        )
    spans = list(windows(len(ids), length, length))
    total, found = sum(end - first for _, first, end in spans), torch.zeros(4, dtype=torch.float64)
    done = 0
    for begin, _, end in spans:
        here, start = ids[begin:end], 0
        pairs = zip(logit_chunks(model, here, bits=bits, chunk=chunk), logit_chunks(base, here, chunk=chunk), strict=True)
        for ours, theirs in pairs:
            count = min(len(ours), len(here) - 1 - start)
            found += _compared(ours[:count], theirs[:count], here[start + 1 : start + 1 + count])
            start += len(ours)
            done += count
            if progress is not None:
                progress(done, total)
    kl, same, ours_nll, theirs_nll = (found / total).tolist()
    return Divergence(kl, same, math.exp(ours_nll), math.exp(theirs_nll), total)


def _compared(ours: Tensor, theirs: Tensor, targets: Sequence[int]) -> Tensor:
    """[4] f64: sums of the divergence, of equal likeliest tokens, and of both losses."""
    p, q = theirs.double().log_softmax(-1).cpu(), ours.double().log_softmax(-1).cpu()
    index = torch.tensor(list(targets), dtype=torch.int64).unsqueeze(1)
    same = (p.argmax(-1) == q.argmax(-1)).sum()
    return torch.stack(((p.exp() * (p - q)).sum(), same.double(), -q.gather(1, index).sum(), -p.gather(1, index).sum()))
