"""From what was asked for to a job that can run, or a sentence on why it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exltui.engine.generate.constraint import constraint
from exltui.engine.generate.guard import Guard
from exltui.engine.generate.job import Job
from exltui.engine.generate.room import Track
from exltui.engine.generate.sampling import Sampler
from exltui.engine.generate.stream import REPLACEMENT, TextStreamer
from exltui.errors import ContextError, SamplingError
from exltui.protocol import JobSpec
from exltui.tokenizer import Tokenizer

TAIL = 4  # ids of the prompt before which the reply's text is decoded


def prepare(spec: JobSpec, tokenizer: Tokenizer, vocabulary: int, context: int) -> Job:
    """The job of ``spec``. Raises ContextError, SamplingError or GrammarError."""
    ids = _ids(spec, spec.prompt, spec.prompt_ids, tokenizer)
    _check_prompt(ids, "the prompt", vocabulary, context)
    _check_numbers(spec)
    guide = None
    if spec.sampling.cfg_scale != 1.0:
        if spec.negative_prompt is None and spec.negative_prompt_ids is None:
            raise SamplingError(f"cfg_scale is {spec.sampling.cfg_scale} without a negative prompt", "give one, or leave cfg_scale at 1")
        negative = _ids(spec, spec.negative_prompt, spec.negative_prompt_ids, tokenizer)
        _check_prompt(negative, "the negative prompt", vocabulary, context)
        guide = Track(negative)
    width = min(tokenizer.size, vocabulary)
    sampler = sampler_of(spec, tokenizer, width)
    healing = _healing(ids, tokenizer, width) if spec.token_healing else None
    if healing is not None:
        ids = ids[:-1]
    return Job(
        spec,
        len(ids),
        Track(ids),
        context,
        stop_ids=tokenizer.eos_ids | frozenset(spec.stop_token_ids),
        sampler=sampler,
        streamer=TextStreamer(tokenizer.decode, spec.stop_strings, ids[-TAIL:]),
        guide=guide,
        guard=Guard(spec.banned_strings) if any(spec.banned_strings) else None,
        healing=healing,
        constraint=constraint(spec, tokenizer, width),
    )


def _ids(spec: JobSpec, text: str | None, ids: Sequence[int] | None, tokenizer: Tokenizer) -> list[int]:
    if ids is not None:
        return list(ids)
    add_bos = tokenizer.adds_bos if spec.add_bos is None else spec.add_bos
    return tokenizer.encode(text or "", parse_special=spec.parse_special, add_bos=add_bos)


def _check_prompt(ids: list[int], what: str, vocabulary: int, context: int) -> None:
    if not ids:
        raise ContextError(f"{what} is empty", "say something")
    if strange := next((i for i in (max(ids), min(ids)) if not 0 <= i < vocabulary), None):
        sentence = f"{what} holds the token id {strange}, the model knows 0 to {vocabulary - 1}"
        raise ContextError(sentence, "the ids come from another model's tokenizer")
    if len(ids) >= context:
        raise ContextError(
            f"{what} has {len(ids):,} tokens, the context holds {context:,}", "shorten it, or load the model with a larger --length"
        )


def _check_numbers(spec: JobSpec) -> None:
    if spec.max_new_tokens is not None and spec.max_new_tokens < 1:
        raise SamplingError(f"max_new_tokens is {spec.max_new_tokens}, it must be at least 1", "leave it out for no limit")
    if spec.min_new_tokens < 0:
        raise SamplingError(f"min_new_tokens is {spec.min_new_tokens}, it must be at least 0", "leave it out for no minimum")
    if spec.loop_window < 0 or spec.loop_repeats < 2:
        raise SamplingError(
            f"a loop of {spec.loop_repeats} repeats in {spec.loop_window} tokens cannot be looked for",
            "loop_repeats is at least 2, loop_window at least 0",
        )


def sampler_of(spec: JobSpec, tokenizer: Tokenizer, width: int) -> Sampler:
    """The sampler of a job; the first ``width`` ids exist. Raises SamplingError."""
    named = [*(token for token, _ in spec.logit_bias), *spec.banned_tokens, *(spec.allowed_tokens or ())]
    if strange := [token for token in named if not 0 <= token < width]:
        raise SamplingError(f"the token id {strange[0]} does not exist", f"the tokenizer has ids 0 to {width - 1}")
    if wild := next((value for _, value in spec.logit_bias if not math.isfinite(value)), None):
        raise SamplingError(f"a logit bias is {wild}, it must be a finite number", "banned_tokens excludes tokens")
    bias = {**dict(spec.logit_bias), **dict.fromkeys(spec.banned_tokens, -math.inf)}
    return Sampler(spec.sampling, tokenizer.ids_with, bias=bias, allowed=spec.allowed_tokens, width=width)


def _healing(ids: list[int], tokenizer: Tokenizer, width: int) -> tuple[str, frozenset[int]] | None:
    """The text of the last id and the ids whose text begins with it; None where there is nothing to heal."""
    last = ids[-1]
    if len(ids) < 2 or last in tokenizer.special_ids or last >= width:
        return None
    text = tokenizer.texts[last]
    if not text or REPLACEMENT in text:
        return None
    return text, frozenset(i for i, other in enumerate(tokenizer.texts[:width]) if other.startswith(text)) - tokenizer.special_ids
