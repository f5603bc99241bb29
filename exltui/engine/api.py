"""The Python API: from a directory to text in a few lines.

::

    from exltui import Engine

    with Engine.open("models/smollm2-135m") as engine:
        for piece in engine.stream("The capital of France is", max_new_tokens=16):
            print(piece, end="", flush=True)

The same without streaming: ``engine.generate("The capital of France is").text``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from exltui.engine.session import Session, open_session
from exltui.errors import ExltuiError
from exltui.protocol import Done, Failed, JobSpec, LoadOptions, Sampling, Stats, Text


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation: its text, its token ids (the stop token is not among them), and its figures."""

    text: str
    token_ids: tuple[int, ...]
    stats: Stats


class Engine:
    """A model, loaded in this thread. Not safe for several threads at once; open one engine for each."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ids = (f"job-{i}" for i in itertools.count())

    @classmethod
    def open(cls, directory: str | Path, options: LoadOptions | None = None) -> Engine:
        """Load the model in ``directory``. Raises ModelError, CheckpointError or DeviceError."""
        return cls(open_session(Path(directory), options or LoadOptions(), _silent, lambda: False))

    @property
    def session(self) -> Session:
        return self._session

    def stream(self, prompt: str | list[int], sampling: Sampling | None = None, **job: Any) -> Iterator[str]:
        """Text as it becomes certain. ``job`` takes the fields of JobSpec: max_new_tokens, stop_strings, stop_token_ids, add_bos."""
        for event in self._events(prompt, sampling, job):
            if isinstance(event, Text) and event.text:
                yield event.text

    def generate(self, prompt: str | list[int], sampling: Sampling | None = None, **job: Any) -> Completion:
        """The whole completion. Raises ContextError for a prompt that does not fit, SamplingError for a bad setting."""
        text = []
        for event in self._events(prompt, sampling, job):
            if isinstance(event, Text):
                text.append(event.text)
            elif isinstance(event, Done):
                return Completion("".join(text), event.token_ids, event.stats)
        raise ExltuiError("the generation ended without a result")

    def _events(self, prompt: str | list[int], sampling: Sampling | None, job: dict[str, Any]) -> Iterator[Text | Done]:
        given = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
        spec = JobSpec(next(self._ids), sampling=sampling or Sampling(), **given, **job)
        generator = self._session.generator
        generator.submit(spec)
        try:
            while generator.busy:
                for event in generator.advance():
                    if isinstance(event, Failed):
                        raise ExltuiError(event.error, event.hint)
                    if isinstance(event, (Text, Done)):
                        yield event
        finally:
            generator.cancel(spec.id)  # the caller may have stopped listening

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _silent(stage: str, done: int, total: int, unit: str = "B") -> None:
    """Progress that nobody watches."""
