"""Replies that must have a form: a JSON schema, a regular expression, a list of choices, a grammar. By llguidance.

The mask of the next token is computed on a thread of its own as soon as a token is known, while the model runs.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
import torch
from llguidance.gbnf_to_lark import gbnf_to_lark
from torch import Tensor

from exltui.errors import GrammarError
from exltui.protocol import JobSpec
from exltui.tokenizer import Tokenizer

_threads = ThreadPoolExecutor(2, thread_name_prefix="exltui-grammar")


def constraint(spec: JobSpec, tokenizer: Tokenizer, width: int) -> Constraint | None:
    """What ``spec`` asks for, if anything. Raises GrammarError."""
    named = [name for name in ("json_schema", "regex", "choices", "grammar") if getattr(spec, name)]
    if not named:
        return None
    if len(named) > 1:
        raise GrammarError(f"a reply cannot follow both {named[0]} and {named[1]}", "ask for one of them")
    try:
        source = _source(spec)
        words = tokenizer.grammar_words(lambda: _words(tokenizer, width))
    except ValueError as error:
        raise GrammarError(f"{named[0]}: {_first(error)}", "docs/generation.md shows what can be said") from error
    matcher = llguidance.LLMatcher(words, source, log_level=0)
    if matcher.is_error():
        raise GrammarError(f"{named[0]}: {_first(matcher.get_error())}", "docs/generation.md shows what can be said")
    return Constraint(matcher, width)


def _source(spec: JobSpec) -> str:
    """The grammar as llguidance reads it. Raises ValueError."""
    if spec.json_schema:
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(json.loads(spec.json_schema))))
    if spec.regex:
        return str(llguidance.LLMatcher.grammar_from_regex(spec.regex))
    if spec.choices:
        return str(llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in spec.choices)))
    grammar = spec.grammar or ""
    gbnf = re.search(r"^\s*root\s*::=", grammar, re.MULTILINE)
    return str(llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(grammar) if gbnf else grammar))


def _words(tokenizer: Tokenizer, width: int) -> Any:
    return llguidance.LLTokenizer(str(tokenizer.directory / "tokenizer.json"), n_vocab=width, eos_token=sorted(tokenizer.eos_ids))


def _first(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "it cannot be read"


class Constraint:
    """Where a reply stands in its grammar."""

    def __init__(self, matcher: Any, width: int) -> None:
        self._matcher = matcher
        self._words = -(-width // 32)
        self._mask: Future[Tensor] = _threads.submit(self._compute)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        self._mask.result()
        return bool(self._matcher.is_stopped())

    def mask(self) -> Tensor:
        """[w] i32: the bits of the ids that may follow, the end's where the reply may end. Raises GrammarError."""
        return self._mask.result()

    def accept(self, token: int) -> None:
        """A token of the reply. One that the grammar forbids leads to a mask without bits."""
        self._mask.result()
        self._matcher.consume_token(token)
        self._mask = _threads.submit(self._compute)

    def take_back(self, count: int) -> None:
        """The last ``count`` tokens are gone."""
        self._mask.result()
        self._matcher.rollback(count)
        self._mask = _threads.submit(self._compute)

    def _compute(self) -> Tensor:
        bits = np.zeros((1, self._words), dtype=np.int32)
        if not self._matcher.is_stopped() and not self._matcher.is_error():
            llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
        return torch.from_numpy(bits[0])
