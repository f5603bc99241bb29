"""A stage for the app in tests: recorded events, a clock that stands still, models and chats that are the same everywhere."""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from exltui import paths, protocol
from exltui.app.app import ExltuiApp
from exltui.app.library import Library
from exltui.app.parts import Parts
from exltui.app.prepare import Order, Prepared, Preparer
from exltui.app.records import Records
from exltui.app.themes import find_themes
from exltui.chat.budget import Budget, shares
from exltui.chat.tree import Message
from exltui.client import ReplayClient
from exltui.models.catalog import ModelInfo
from exltui.protocol import JobSpec

EVENTS = Path(__file__).parent / "data" / "events"
NOON = 1_796_083_200.0  # 1 December 2026, 12:00 UTC
STARTER = ModelInfo(
    "smollm2-135m", Path("/models/smollm2-135m"), "LlamaForCausalLM", "f16", 16.0, 271_000_000, 8192, 134_515_008, has_template=True
)
BIG = ModelInfo("llama-3.1-8b-exl2", Path("/models/llama"), "LlamaForCausalLM", "exl2", 4.0, 4_500_000_000, 131_072, 8_030_261_248, True)
BROKEN = ModelInfo("unfinished", Path("/models/unfinished"), problem="unfinished: there is no tokenizer.json")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FixedLibrary(Library):
    """A models folder that is the same on every machine. ``fetched`` holds the names that were asked for."""

    def __init__(self, models: list[ModelInfo]) -> None:
        super().__init__([Path("/models")])
        self.models = models
        self.fetched: list[str] = []

    def scan(self) -> list[ModelInfo]:
        return self.models

    def branches(self, name: str) -> list[tuple[str, int]]:
        return [("4.0bpw", 4_500_000_000), ("6.0bpw", 6_500_000_000)]


class WordTokenizer:
    """A vocabulary of a few words, and of those that were asked for; a token's id is its place."""

    WORDS: ClassVar = ["The", " Moon", " Sun", " pulls", "."]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.WORDS[id] for id in ids)

    def piece(self, id: int) -> str:
        return self.WORDS[id]

    @classmethod
    def number(cls, word: str) -> int:
        if word not in cls.WORDS:
            cls.WORDS.append(word)
        return cls.WORDS.index(word)


class PlainPreparer(Preparer):
    """Makes jobs without a tokenizer. ``orders`` holds what was asked for; ``error`` is raised if it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.error: Exception | None = None
        self.opening = ""  # what the template leaves open at the end of the prompt
        self.context = 512

    def prepare(self, order: Order) -> Prepared:
        self.orders.append(order)
        if self.error is not None:
            raise self.error
        prompt = "\n".join(f"{turn.role}: {turn.content}" for turn in order.turns)
        return Prepared(
            JobSpec(order.job, prompt=f"{prompt}\n{order.start}", sampling=order.sampling, keep=order.keep, adapters=order.adapters),
            opening=self.opening,
        )

    def tokens(self, order: Order) -> tuple[int, ...]:
        """A word is a token here too; equal words have equal ids."""
        text = " ".join(f"{turn.role}: {turn.content}" for turn in order.turns)
        return tuple(zlib.crc32(word.encode()) for word in text.split())

    def tokenizer(self, order: Order) -> WordTokenizer:
        return WordTokenizer()

    def budget(self, order: Order, path: tuple[Message, ...], draft: str) -> Budget:
        """A word is a token, and the oldest messages are cut where the context is too small."""
        system = order.turns[0].content if order.turns and order.turns[0].role == "system" else ""
        cut: set[str] = set()
        while True:
            found = shares(system, path, draft, cut, lambda text: len(text.split()), keep_thoughts=False)
            tokens = 4 + sum(share.tokens for share in found if share.fate in ("sent", "pinned"))
            movable = [share.id for share in found if share.fate == "sent" and share.id]
            if tokens <= self.context or not movable:
                return Budget(found, tokens, self.context, 16)
            cut.add(movable[0])


def likely(token: int) -> tuple[tuple[int, float], ...]:
    """What could have stood where ``token`` does, with probabilities: the Moon and the Sun for one another."""
    return ((1, 0.7), (2, 0.2)) if token in (1, 2) else ((token, 0.9),)


class Speaker:
    """An engine that says what it is given: one of ``replies`` for each job, a word every tenth of a second of ``clock``."""

    def __init__(self, replies: list[str]) -> None:
        self.replies = deque(replies)
        self.sent: list[protocol.Command] = []
        self._events: deque[protocol.Event] = deque([protocol.HostUp("2.13.0", ("cpu",), native=True)])
        self._jobs: dict[str, deque[str]] = {}
        self._said: dict[str, int] = {}
        self._next: dict[str, float] = {}  # when each job says its next word
        self.clock = Clock()
        self.spoken: dict[str, list[str]] = {}  # words by job, which are tokens of ``WordTokenizer`` where they are inspected

    def start(self) -> None: ...

    def send(self, command: protocol.Command) -> None:
        self.sent.append(command)
        if isinstance(command, protocol.Load):
            self._events.append(
                protocol.Loaded(
                    command.id, command.model_dir, "smollm2-135m", "LlamaForCausalLM", "f16", 16.0, 134_515_008, 512, 8192, "cpu",
                    269_030_016, 11_796_480, 0.5,
                )
            )  # fmt: skip
        elif isinstance(command, protocol.Submit):
            words = re.findall(r"\s*\S+", self.replies.popleft() if self.replies else "Nothing more.")
            self._jobs[command.job.id], self._said[command.job.id] = deque(words), 0
            self._next[command.job.id] = self.clock() + 0.05
            self._events += [protocol.Queued(command.job.id, 20), protocol.Prefill(command.job.id, 20, 20, 8)]
        elif isinstance(command, protocol.Cancel) and command.id in self._jobs:
            self._finish(command.id, "cancelled")
        elif isinstance(command, protocol.LoadAdapter):
            name = command.name or Path(command.adapter_dir).name
            self._events.append(protocol.AdapterLoaded(command.id, name, command.scale, 8, ("q_proj",), 4_000_000))
        elif isinstance(command, protocol.DropAdapter):
            self._events.append(protocol.AdapterDropped(command.id, command.name))
        elif isinstance(command, protocol.Peek):
            self._events.append(protocol.Peeked(command.id, tuple(len(prompt) // 2 for prompt in command.prompts)))
        elif isinstance(command, protocol.Inspect):
            self._inspect(command)
        elif isinstance(command, protocol.Explain):
            self._explain(command)

    def _inspect(self, query: protocol.Inspect) -> None:
        if query.job not in self.spoken:
            self._events.append(protocol.QueryFailed(query.id, "the logits of this reply are no longer kept", "write it again"))
            return
        tokens = [WordTokenizer.number(word) for word in self.spoken[query.job]]
        scores = tuple(
            protocol.Scores(query.job, 20 + place, token, 0.8, dict(likely(token))[token], raw_top=likely(token))
            for place, token in enumerate(tokens)
        )
        self._events.append(protocol.Inspected(query.id, query.job, scores))

    def _explain(self, query: protocol.Explain) -> None:
        """A sampler that knows top-k alone."""
        token = WordTokenizer.number(self.spoken[query.job][query.position - 20])
        raw = likely(token)
        ids, probabilities = tuple(id for id, _ in raw), tuple(p for _, p in raw)
        top_k = query.sampling.top_k if query.sampling else 50
        kept = tuple(p if place < top_k else 0.0 for place, p in enumerate(probabilities))
        cut = protocol.StageOf("top_k", min(5, top_k), 1 - sum(kept), tuple(p / sum(kept) for p in kept))
        stages = (protocol.StageOf("raw", 5, 0.0, probabilities), cut)
        self._events.append(protocol.Explained(query.id, query.job, query.position, token, ids, stages))

    def _finish(self, id: str, reason: str) -> None:
        del self._jobs[id]
        self._events.append(protocol.Done(id, protocol.Stats(reason, 20, 8, self._said[id], 0.1, 0.1 * self._said[id], 7), ()))

    def poll(self) -> list[protocol.Event]:
        for id, words in list(self._jobs.items()):
            while words and self._next[id] <= self.clock():
                self._said[id] += 1
                self._next[id] += 0.1
                word = words.popleft()
                self._events.append(protocol.Text(id, word, 1))
                self.spoken.setdefault(id, []).append(word)
            if not words and self._next[id] <= self.clock():
                self._finish(id, "stop_token")
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None: ...


class Stage:
    """The app with everything around it. ``act`` gives what was put in."""

    def __init__(
        self,
        log: str = "two_turns",
        models: list[ModelInfo] | None = None,
        chats: Path | None = None,
        client: Speaker | None = None,
        **parts: object,
    ) -> None:
        os.environ["TZ"] = "UTC"
        time.tzset()
        self.clock = Clock()
        self.wall = Clock(NOON)
        if client is not None:
            client.clock = self.clock
        self.client = client or ReplayClient(EVENTS / f"{log}.jsonl", self.clock)
        self.library = FixedLibrary([STARTER] if models is None else models)
        self.preparer = PlainPreparer()
        self.records = Records(chats, self.wall)
        self.remembered: dict[str, object] = {}
        themes, _ = find_themes(paths.themes_dir())
        self.app = ExltuiApp(
            Parts(
                self.client,
                self.records,
                self.library,
                self.preparer,
                themes=themes,
                remember=self.remembered.__setitem__,
                clock=self.clock,
                now=self.wall,
                **parts,  # type: ignore[arg-type]
            )
        )

    async def settle(self, pilot: Pilot) -> None:
        """Wait until nothing runs beside the screen and everything is drawn."""
        while not (self.app.main.query("#prompt") and self.app.main.query("#devices") and self.app.main.query("#sessions-list")):
            await pilot.pause(0.02)
        self.app.main.prompt.cursor_blink = False
        await self._work_done(pilot)
        self.app.context.count()  # as the app does when the keys have been quiet for a moment, which no test waits for
        await self._work_done(pilot)
        self.app.draw_status()
        await pilot.pause()

    async def _work_done(self, pilot: Pilot) -> None:
        """Wait for the threads beside the screen and for what they hand over, which may start others."""
        while True:
            with contextlib.suppress(WorkerCancelled):  # of a screen that was closed
                await self.app.workers.wait_for_complete()
            await pilot.pause(0)
            if all(worker.is_finished for worker in self.app.workers):
                return

    async def play(self, pilot: Pilot, seconds: float) -> None:
        """Let time pass in steps of a tenth of a second."""
        await self._pass(pilot, seconds)
        await self.settle(pilot)

    async def _pass(self, pilot: Pilot, seconds: float) -> None:
        await self._work_done(pilot)
        for _ in range(round(seconds * 10)):
            self.clock.now += 0.1
            self.app.pump()
            self.app.main.talk._draw_grown()  # the next frame, without waiting for its time
        await self._work_done(pilot)

    async def load(self, pilot: Pilot) -> None:
        """Play until the model of the log is loaded."""
        await self.settle(pilot)
        await self.until(pilot, lambda: self.app.observed.loaded is not None)

    async def until(self, pilot: Pilot, met: Callable[[], bool], seconds: float = 60.0) -> None:
        """Play until something is true, at most so many seconds of the log."""
        for _ in range(round(seconds * 2)):
            await self._pass(pilot, 0.5)
            if met():
                await self.settle(pilot)
                return
        raise AssertionError(f"not met within {seconds} s of the log")

    async def say(self, pilot: Pilot, text: str) -> None:
        """Type a message and send it."""
        self.app.main.prompt.focus()
        self.app.main.prompt.put(text)
        await pilot.press("enter")
        await self.settle(pilot)

    async def ask(self, pilot: Pilot, text: str) -> None:
        """Send a message and play until its reply is complete."""
        await self.say(pilot, text)
        await self.until(pilot, lambda: not self.app.dialogue.busy)
        await self.play(pilot, 0.2)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Role and text of the messages on the screen."""
        return [(entry.role, entry.text) for entry in self.app.dialogue.entries()]
