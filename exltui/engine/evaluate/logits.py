"""Logits of given tokens: what the command line's evaluations and the parity tests read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from exltui.engine.model.loading import Model
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache
from exltui.engine.run.step import Sequence as Run
from exltui.engine.run.step import Step
from exltui.errors import ContextError, ModelError

CHUNK = 256  # tokens in a step
Progress = Callable[[int, int], None]  # tokens done, tokens in all


def logits(
    model: Model, ids: Sequence[int], *, bits: tuple[int, int] = (16, 16), chunk: int = CHUNK, progress: Progress | None = None
) -> Tensor:
    """The logits after each of ``ids`` -> [t, v] f32 on the CPU. Raises ContextError and ModelError as ``logit_chunks`` does."""
    check_ids(model, ids)
    found, done = torch.empty(len(ids), model.spec.vocab), 0
    for part in logit_chunks(model, ids, bits=bits, chunk=chunk):
        found[done : done + len(part)] = part
        done += len(part)
        if progress is not None:
            progress(done, len(ids))
    return found


def logit_chunks(model: Model, ids: Sequence[int], *, bits: tuple[int, int] = (16, 16), chunk: int = CHUNK) -> Iterator[Tensor]:
    """The same, in chunks of at most ``chunk`` rows on the model's device. ``bits`` are those of the cache's keys and values.

    Raises ContextError if ``ids`` are more than the context that was loaded, and ModelError if one is not in the vocabulary.
    """
    check_ids(model, ids)
    if chunk < 1:
        raise ModelError(f"chunks of {chunk} tokens are impossible", "give --chunk-size a positive number, or leave it out")
    if len(ids) > model.context:
        raise ContextError(
            f"{len(ids):,} tokens do not fit into the context of {model.context:,}", "load with a larger --length, or give less"
        )
    pages = range(-(-len(ids) // PAGE))
    cache, adapters = KVCache(model.spec, len(pages), bits, model.device), model.decoder.adapters
    for start in range(0, len(ids), chunk):
        run = Run(ids[start : start + chunk], start, pages, "all", adapters.mix(None))
        # Straight through the decoder: a graph for one use is not worth its capture.
        yield Step.build([run], model.device).through(model.decoder, cache.layers)


def check_ids(model: Model, ids: Sequence[int]) -> None:
    """Raise ModelError unless ``ids`` are one or more numbers from the vocabulary."""
    if not ids:
        raise ModelError("there are no tokens to evaluate", "give at least one")
    for position, token in enumerate(ids):
        if not 0 <= token < model.spec.vocab:
            raise ModelError(
                f"token {token} at position {position} is not in the vocabulary of {model.spec.vocab:,}",
                "the ids come from another model's tokenizer",
            )
