"""The Python API: from a directory to text in a few lines.

::

    from exltui import Engine

    with Engine.open("models/smollm2-135m") as engine:
        for piece in engine.stream("The capital of France is", max_new_tokens=16):
            print(piece, end="", flush=True)

The same without streaming: ``engine.generate("The capital of France is").text``. Many at once: ``engine.batch(prompts)``. More:
docs/generation.md.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from exltui.engine.persist import keep, recall
from exltui.engine.session import Session, open_session
from exltui.errors import ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, LoadOptions, Rewound, Sampling, Scores, Stats, Text

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation: its text, its token ids (the stop token is not among them), and its figures.

    ``scores`` has one entry a token where the job asked for them; ``rewinds`` what was taken back for a banned string.
    """

    text: str
    token_ids: tuple[int, ...]
    stats: Stats
    scores: tuple[Scores, ...] = ()
    rewinds: tuple[Rewound, ...] = ()


class Engine:
    """A model, loaded in this thread. Not safe for several threads at once, but several streams may be read in turn: they share steps.

    ``job`` takes the fields of JobSpec wherever it is an argument: max_new_tokens, stop_strings, banned_strings, json_schema and so on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ids = (f"job-{i}" for i in itertools.count())
        self._inboxes: dict[str, deque[Event]] = {}  # what came for a stream while another one was read
        self._turn = asyncio.Lock()  # one step at a time

    @classmethod
    def open(cls, directory: str | Path, options: LoadOptions | None = None) -> Engine:
        """Load the model in ``directory``. Raises ModelError, CheckpointError or DeviceError."""
        return cls(open_session(Path(directory), options or LoadOptions(), _silent, lambda: False))

    @property
    def session(self) -> Session:
        return self._session

    def stream(self, prompt: Prompt, sampling: Sampling | None = None, **job: Any) -> Iterator[str]:
        """Text as it becomes certain. The work begins with the first piece that is asked for, and ends when the iterator is closed."""
        for event in self.events(prompt, sampling, **job):
            if isinstance(event, Text) and event.text:
                yield event.text

    def generate(self, prompt: Prompt, sampling: Sampling | None = None, **job: Any) -> Completion:
        """The whole completion. Raises ContextError for a prompt that does not fit, SamplingError for a bad setting."""
        return _complete(list(self.events(prompt, sampling, **job)))

    def batch(self, prompts: Sequence[Prompt], sampling: Sampling | None = None, **job: Any) -> list[Completion]:
        """The completions of many prompts, which run together. With a seed, prompt ``i`` draws with ``seed + i``.

        They read what they begin with in common once, so the same prompt several times gives several candidates for the price of one.
        """
        sampling = sampling or Sampling()
        settings = [sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + i) for i in range(len(prompts))]
        jobs = [self._submit(prompt, each, job) for prompt, each in zip(prompts, settings, strict=True)]
        try:
            return [_complete(list(self._of(name))) for name in jobs]
        finally:
            for name in jobs:
                self._forget(name)

    def events(self, prompt: Prompt, sampling: Sampling | None = None, **job: Any) -> Iterator[Event]:
        """Everything that happens to one job: Text, Scores and Rewound events, and Done at the end."""
        name = self._submit(prompt, sampling, job)
        try:
            yield from self._of(name)
        finally:
            self._forget(name)  # the caller may have stopped listening

    async def astream(self, prompt: Prompt, sampling: Sampling | None = None, **job: Any) -> AsyncIterator[str]:
        """``stream`` for asyncio: the steps run on a thread, and several streams share them."""
        async with self._turn:
            name = self._submit(prompt, sampling, job)
        try:
            event: Event | None = None
            while not isinstance(event, Done):
                while not self._inboxes[name]:
                    async with self._turn:
                        if not self._inboxes[name]:
                            await asyncio.to_thread(self._step, name)
                event = _checked(self._inboxes[name].popleft())
                if isinstance(event, Text) and event.text:
                    yield event.text
        finally:
            async with self._turn:
                self._forget(name)

    def keep(self, file: str | Path, tokens: Sequence[int]) -> int:
        """Write the keys and values of ``tokens`` (prompt and reply of a chat) to ``file``, as far as they are known, in pages of 256.

        -> the number of pages. ``recall`` in a later process goes on from there with no prefill. Raises OSError.
        """
        return len(keep(self._session, Path(file), tokens, self._session.runner.adapters.mix(None)))

    def recall(self, file: str | Path) -> int:
        """Take the pages of ``keep`` into host memory, where prompts find them -> their number.

        Raises ModelError, with the reason, if another model, cache mode, RoPE or adapter wrote them; CheckpointError for a damaged file.
        """
        return len(recall(self._session, Path(file)))

    @property
    def adapters(self) -> dict[str, float]:
        """Names and scales of the LoRA adapters that jobs use which name none in ``adapters=((NAME, SCALE), ..)``."""
        return {adapter.name: adapter.scale for adapter in self._session.runner.adapters.adapters.values()}

    def load_adapter(self, directory: str | Path, scale: float = 1.0, name: str = "") -> str:
        """Load a LoRA adapter beside the model -> its name (that of its directory, unless given). Jobs that run go on without it.

        Raises ModelError for one that does not fit the model, or that is not plain LoRA.
        """
        adapter = self._session.runner.adapters.load(Path(directory), name, scale)
        self._session.runner.adapters.settle(self._session.generator.slots)
        return adapter.name

    def rescale_adapter(self, name: str, scale: float) -> None:
        """Another scale for jobs to come. Raises ModelError for an unknown name."""
        self._session.runner.adapters.rescale(name, scale)

    def drop_adapter(self, name: str) -> None:
        """Jobs to come do not have it. Raises ModelError for an unknown name."""
        self._session.runner.adapters.drop(name)
        self._session.runner.adapters.settle(self._session.generator.slots)

    def _submit(self, prompt: Prompt, sampling: Sampling | None, job: dict[str, Any]) -> str:
        given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
        spec = JobSpec(next(self._ids), sampling=sampling or Sampling(), **given, **job)
        self._session.generator.submit(spec)
        self._inboxes[spec.id] = deque()
        return spec.id

    def _of(self, name: str) -> Iterator[Event]:
        """The events of a job until its Done."""
        event: Event | None = None
        inbox = self._inboxes[name]
        while not isinstance(event, Done):
            while not inbox:
                self._step(name)
            event = _checked(inbox.popleft())
            yield event

    def _forget(self, name: str) -> None:
        self._session.generator.cancel(name)
        self._inboxes.pop(name, None)

    def _step(self, name: str) -> None:
        """One step for all streams, asked for by that of ``name``. One that fails ends them all."""
        if name not in self._session.generator.job_ids:
            raise ExltuiError("this stream was ended by a step that failed while another one was read", "start it again")
        try:
            events = self._session.generator.advance()
        except Exception:
            self._session.generator.abandon()
            raise
        for event in events:
            if isinstance(event, (Text, Scores, Rewound, Done, Failed)) and event.id in self._inboxes:
                self._inboxes[event.id].append(event)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _checked(event: Event) -> Event:
    if isinstance(event, Failed):
        raise ExltuiError(event.error, event.hint)
    return event


def _complete(events: list[Event]) -> Completion:
    done = events[-1]
    assert isinstance(done, Done)  # it is always the last
    text = "".join(event.text for event in events if isinstance(event, Text))
    scores = tuple(event for event in events if isinstance(event, Scores))
    rewinds = tuple(event for event in events if isinstance(event, Rewound))
    return Completion(text, done.token_ids, done.stats, scores, rewinds)


def _silent(stage: str, done: int, total: int, unit: str = "B") -> None:
    """Progress that nobody watches."""
