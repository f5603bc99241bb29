"""From messages to a job: template, context fitting and token count. Slow enough for a thread of its own, and without widgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from exltui.chat import thinking
from exltui.chat.bias import bias_tokens
from exltui.chat.budget import Budget, shares
from exltui.chat.fit import Fitted, alternating, fit
from exltui.chat.template import Template, load_template
from exltui.chat.tree import Message, Turn
from exltui.chat.variables import template_values
from exltui.errors import ContextError, TemplateError
from exltui.protocol import JobSpec, Sampling
from exltui.tokenizer import Tokenizer

NEXT_WORDS = "exltui looks for these words."
RESERVE = 128  # tokens that stay free for the reply when older messages are left out


@dataclass(frozen=True)
class Order:
    """What a reply is made from. ``turns``: what goes to the model, the system prompt among it. ``start``: how the reply begins.

    ``options`` are the chat's (see ``Conversation``).
    """

    job: str
    turns: tuple[Turn, ...]
    model_dir: str
    context: int  # tokens that the cache holds
    sampling: Sampling
    max_new_tokens: int | None = None
    start: str = ""
    options: dict[str, str] = field(default_factory=dict)
    adapters: tuple[tuple[str, float], ...] | None = None  # None: those that are loaded
    keep: bool = False  # whether the engine is to keep the logits for the inspector
    session: str = ""  # the chat, if its pages are to be found again


@dataclass(frozen=True)
class Prepared:
    """A job that can be sent. ``dropped``: how many of the oldest messages did not fit and are not in it.

    ``note`` is what a person should know about the template, in a sentence, or "". ``opening`` is the mark of thoughts that the
    template wrote at the end of the prompt, which belongs to the reply.
    """

    job: JobSpec
    dropped: int = 0
    note: str = ""
    opening: str = ""


@dataclass(frozen=True)
class _Tools:
    """The tokenizer and the template of one model and format."""

    key: tuple[str, str]
    tokenizer: Tokenizer
    template: Template
    count: Callable[[str], int]


class Preparer:
    """Turns orders into jobs. The tokenizer and the template of the last model stay at hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tools: _Tools | None = None

    def prepare(self, order: Order) -> Prepared:
        """The job for ``order``. Raises TemplateError, ContextError, ModelError or SamplingError."""
        tools = self._tools_for(order)
        fitted = self._fit(tools, order)
        opening = thinking.opened(fitted.prompt)
        biases, bans = bias_tokens(order.options.get("bias", ""), tools.tokenizer.encode)
        start = order.start.removeprefix(opening) if opening else order.start
        job = JobSpec(
            order.job,
            prompt=fitted.prompt + start,
            add_bos=False,  # the template has written it
            sampling=order.sampling,
            max_new_tokens=order.max_new_tokens,
            stop_strings=tools.template.stop_strings,
            logit_bias=biases,
            banned_tokens=bans,
            adapters=order.adapters,
            keep=order.keep,
            session=order.session,
        )
        return Prepared(job, fitted.dropped, tools.template.note, "" if order.start else opening)

    def prepare_as_person(self, order: Order) -> Prepared:
        """The job that writes what the person says next: the prompt ends where their words would begin. Raises as ``prepare`` does."""
        tools = self._tools_for(order)
        prompt = _renderer(tools, order)([*_messages(order), {"role": "user", "content": NEXT_WORDS}])
        before, found, _ = prompt.rpartition(NEXT_WORDS)
        tokens = tools.count(before)
        if not found:
            raise TemplateError("the template does not take another message of yours", "write it yourself, or choose a /format")
        if tokens + RESERVE > order.context:
            raise ContextError(f"the chat is {tokens:,} tokens long; the context holds {order.context:,}", "write the message yourself")
        job = JobSpec(
            order.job, prompt=before, add_bos=False, sampling=order.sampling, max_new_tokens=order.max_new_tokens,
            stop_strings=tools.template.stop_strings,
        )  # fmt: skip
        return Prepared(job)

    def budget(self, order: Order, path: tuple[Message, ...], draft: str) -> Budget:
        """What of the messages in ``path`` and of what is typed would go to the model. ``order`` has the turns with the draft."""
        tools = self._tools_for(order)
        reserve = min(order.max_new_tokens or RESERVE, order.context // 2)
        cut: set[str] = set()
        tokens, problem = 0, ""
        try:
            fitted = self._fit(tools, order)
        except ContextError as error:
            problem = f"{error}: {error.hint}"
        else:
            tokens = fitted.prompt_tokens
            cut = {id for place in fitted.left_out if (id := order.turns[place].id) is not None}
        system = order.turns[0].content if order.turns and order.turns[0].role == "system" else ""
        keep = order.options.get("thoughts") == "keep"
        found = shares(system, path, draft, cut, tools.count, keep_thoughts=keep)
        if problem:
            tokens = sum(share.tokens for share in found if share.fate in ("sent", "pinned"))
        return Budget(found, tokens, order.context, reserve, problem)

    def tokenizer(self, order: Order) -> Tokenizer:
        """The tokenizer of the order's model."""
        return self._tools_for(order).tokenizer

    def tokens(self, order: Order) -> tuple[int, ...]:
        """The prompt of ``order`` as the engine reads it. Raises TemplateError, ContextError or ModelError."""
        tools = self._tools_for(order)
        return tuple(tools.tokenizer.encode(self._fit(tools, order).prompt))

    def doctor(self, order: Order) -> tuple[str, Tokenizer, Template, tuple[str, ...]]:
        """The prompt that ``order`` makes, with what made it and the texts of the messages in it, for a person to look at."""
        tools = self._tools_for(order)
        fitted = self._fit(tools, order)
        texts = tuple(message["content"] for message in fitted.messages)
        return fitted.prompt + order.start, tools.tokenizer, tools.template, texts

    def template(self, order: Order) -> Template:
        """The template of the order's model and format."""
        return self._tools_for(order).template

    def _fit(self, tools: _Tools, order: Order) -> Fitted:
        pinned = {place for place, turn in enumerate(order.turns) if turn.pinned}
        room = order.context - tools.count(order.start) if order.start else order.context
        reserve = order.max_new_tokens or RESERVE
        return fit(_messages(order), _renderer(tools, order), tools.count, room, reserve, pinned)

    def _tools_for(self, order: Order) -> _Tools:
        key = (order.model_dir, order.options.get("format", ""))
        with self._lock:
            if self._tools is None or self._tools.key != key:
                known = self._tools.tokenizer if self._tools is not None and self._tools.key[0] == key[0] else None
                tokenizer = known or Tokenizer(Path(order.model_dir))

                @lru_cache(512)
                def count(text: str) -> int:
                    return len(tokenizer.encode(text))

                self._tools = _Tools(key, tokenizer, load_template(tokenizer, key[1]), count)
            return self._tools


def _messages(order: Order) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in order.turns]


def _renderer(tools: _Tools, order: Order) -> Callable[[Sequence[dict[str, str]]], str]:
    """What makes a prompt of messages, with what the chat tells its template."""
    variables = template_values(order.options)
    return lambda messages: tools.template.prompt(alternating(messages), **variables)
