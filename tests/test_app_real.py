"""The app with the real engine and the real starter model: typed in, read off the screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from exltui.app.app import ExltuiApp
from exltui.app.library import Library
from exltui.app.parts import Parts
from exltui.app.records import Records
from exltui.client import Client
from exltui.protocol import LoadOptions, Sampling

GREEDY = Sampling(temperature=0.0)


def real_app(models: Path, chats: Path) -> ExltuiApp:
    return ExltuiApp(
        Parts(Client(), Records(chats), Library([models]), sampling=GREEDY, options=LoadOptions(length=2048), model="smollm2-135m")
    )


async def until(pilot: Pilot, met: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait for the engine. The first load may build the native extension."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "the engine did not get there in time"
        await pilot.pause(0.05)


def shown(app: ExltuiApp) -> str:
    """The text of the transcript's rows, as they are drawn."""
    talk = app.main.talk
    return "\n".join(talk.render_line(y).text for y in range(talk.size.height))


@pytest.mark.usefixtures("starter_model")
async def test_paris_is_read_off_the_screen_and_is_there_after_a_restart(starter_models_dir, tmp_path):
    chats = tmp_path / "sessions.db"
    app = real_app(starter_models_dir, chats)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.observed.loaded is not None or app.observed.load_failed is not None)
        assert app.observed.load_failed is None
        await pilot.press(*"Name the capital of France.", "enter")
        await until(pilot, lambda: not app.dialogue.busy)
        await pilot.pause(0.3)
        assert "Paris" in shown(app)
        first = app.observed.job
        assert first.stats.cached_tokens == 0

        await pilot.press(*"And of Italy?", "enter")
        await until(pilot, lambda: not app.dialogue.busy)
        second = app.observed.job
        # The second turn computes only what is new: the first prompt, and all of its reply but the last token, are in the cache.
        assert second.stats.cached_tokens >= first.stats.prompt_tokens + first.stats.new_tokens - 1

    again = real_app(starter_models_dir, chats)
    async with again.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: len(again.dialogue.conversation) == 4)
        await pilot.pause(0.3)
        assert "Paris" in shown(again)


@pytest.mark.usefixtures("starter_model")
async def test_escape_stops_the_real_engine_within_a_step(starter_models_dir, tmp_path):
    app = real_app(starter_models_dir, tmp_path / "sessions.db")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.observed.loaded is not None)
        await pilot.press(*"Write a long story about a dragon.", "enter")
        await until(pilot, lambda: bool(app.observed.job and app.observed.job.new_tokens > 5))
        await pilot.press("escape")
        await until(pilot, lambda: not app.dialogue.busy, seconds=10)
        reply = app.dialogue.conversation.path()[-1]
        assert reply.state == "stopped"
        assert reply.text
        assert reply.stats.stop_reason == "cancelled"
