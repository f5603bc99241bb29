"""A stage for the app in tests: recorded events, a clock that stands still, models and chats that are the same everywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from exltui import paths
from exltui.app.app import ExltuiApp
from exltui.app.library import Library
from exltui.app.parts import Parts
from exltui.app.prepare import Order, Prepared, Preparer
from exltui.app.records import Records
from exltui.app.themes import find_themes
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


class PlainPreparer(Preparer):
    """Makes jobs without a tokenizer. ``orders`` holds what was asked for; ``error`` is raised if it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.error: Exception | None = None

    def prepare(self, order: Order) -> Prepared:
        self.orders.append(order)
        if self.error is not None:
            raise self.error
        return Prepared(JobSpec(order.job, prompt=str(order.turns), sampling=order.sampling))


class Stage:
    """The app with everything around it. ``act`` gives what was put in."""

    def __init__(self, log: str = "two_turns", models: list[ModelInfo] | None = None, chats: Path | None = None, **parts: object) -> None:
        os.environ["TZ"] = "UTC"
        time.tzset()
        self.clock = Clock()
        self.wall = Clock(NOON)
        self.client = ReplayClient(EVENTS / f"{log}.jsonl", self.clock)
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
        self.app.draw_status()
        await pilot.pause()

    async def _work_done(self, pilot: Pilot) -> None:
        """Wait for the threads beside the screen and for what they hand over, which may start others."""
        while True:
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
