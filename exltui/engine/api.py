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
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from exltui.engine.session import Session, open_session
from exltui.errors import ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, LoadOptions, Sampling, Stats, Text


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation: its text, its token ids (the stop token is not among them), and its figures."""

    text: str
    token_ids: tuple[int, ...]
    stats: Stats


class Engine:
    """A model, loaded in this thread. Not safe for several threads at once, but several streams may be read in turn: they share steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ids = (f"job-{i}" for i in itertools.count())
        self._inboxes: dict[str, deque[Event]] = {}  # what came for a stream while another one was read

    @classmethod
    def open(cls, directory: str | Path, options: LoadOptions | None = None) -> Engine:
        """Load the model in ``directory``. Raises ModelError, CheckpointError or DeviceError."""
        return cls(open_session(Path(directory), options or LoadOptions(), _silent, lambda: False))

    @property
    def session(self) -> Session:
        return self._session

    def stream(self, prompt: str | list[int], sampling: Sampling | None = None, **job: Any) -> Iterator[str]:
        """Text as it becomes certain. ``job`` takes the fields of JobSpec: max_new_tokens, stop_strings, stop_token_ids, add_bos.

        The work begins with the first piece that is asked for, and ends when the iterator is closed.
        """
        for event in self._events(prompt, sampling, job):
            if isinstance(event, Text) and event.text:
                yield event.text

    def generate(self, prompt: str | list[int], sampling: Sampling | None = None, **job: Any) -> Completion:
        """The whole completion. Raises ContextError for a prompt that does not fit, SamplingError for a bad setting."""
        *texts, done = self._events(prompt, sampling, job)
        assert isinstance(done, Done)  # it is always the last
        return Completion("".join(event.text for event in texts if isinstance(event, Text)), done.token_ids, done.stats)

    def _events(self, prompt: str | list[int], sampling: Sampling | None, job: dict[str, Any]) -> Iterator[Event]:
        given = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
        spec = JobSpec(next(self._ids), sampling=sampling or Sampling(), **given, **job)
        generator = self._session.generator
        generator.submit(spec)
        inbox = self._inboxes[spec.id] = deque()
        try:
            event: Event | None = None
            while not isinstance(event, Done):
                while not inbox:
                    if spec.id not in generator.job_ids:
                        raise ExltuiError("this stream was ended by a step that failed while another one was read")
                    self._step()
                event = inbox.popleft()
                if isinstance(event, Failed):
                    raise ExltuiError(event.error, event.hint)
                yield event
        finally:
            generator.cancel(spec.id)  # the caller may have stopped listening
            del self._inboxes[spec.id]

    def _step(self) -> None:
        """One step for all streams. One that fails ends them all."""
        try:
            events = self._session.generator.advance()
        except Exception:
            self._session.generator.abandon()
            raise
        for event in events:
            if isinstance(event, (Text, Done, Failed)):
                self._inboxes[event.id].append(event)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _silent(stage: str, done: int, total: int, unit: str = "B") -> None:
    """Progress that nobody watches."""
