"""From messages to a job: template, context fitting and token count. Slow enough for a thread of its own, and without widgets."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from exltui.chat.fit import fit
from exltui.chat.template import Template, load_template
from exltui.protocol import JobSpec, Sampling
from exltui.tokenizer import Tokenizer

RESERVE = 128  # tokens that stay free for the reply when older messages are left out


@dataclass(frozen=True)
class Order:
    """What a reply is made from. ``turns``: role and content of each message, the system prompt among them."""

    job: str
    turns: tuple[dict[str, str], ...]
    model_dir: str
    context: int  # tokens that the cache holds
    sampling: Sampling
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A job that can be sent. ``dropped``: how many of the oldest messages did not fit and are not in it.

    ``note`` is what a person should know about the template, in a sentence, or "".
    """

    job: JobSpec
    dropped: int = 0
    note: str = ""


class Preparer:
    """Turns orders into jobs. The tokenizer and the template of the last model stay at hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tools: tuple[str, Tokenizer, Template] | None = None

    def prepare(self, order: Order) -> Prepared:
        """The job for ``order``. Raises TemplateError, ContextError or ModelError."""
        tokenizer, template = self._tools_for(order.model_dir)
        fitted = fit(order.turns, template.prompt, lambda text: len(tokenizer.encode(text)), order.context, order.max_new_tokens or RESERVE)
        job = JobSpec(
            order.job,
            prompt=fitted.prompt,
            add_bos=False,  # the template has written it
            sampling=order.sampling,
            max_new_tokens=order.max_new_tokens,
            stop_strings=template.stop_strings,
        )
        return Prepared(job, fitted.dropped, template.note)

    def _tools_for(self, directory: str) -> tuple[Tokenizer, Template]:
        with self._lock:
            if self._tools is None or self._tools[0] != directory:
                tokenizer = Tokenizer(Path(directory))
                self._tools = (directory, tokenizer, load_template(tokenizer))
            return self._tools[1:]
