"""Pictures of states that a user reaches by keys, from recorded events. ``pytest --snapshot-update`` draws them anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from app_stage import BIG, BROKEN, STARTER, Speaker, Stage
from textual.pilot import Pilot

from exltui.app.library import Transfer
from exltui.app.prepare import Preparer
from exltui.chat.template import ChatTemplate

SIZES = ((160, 45), (100, 30), (80, 24))
THEMES = ("dark", "light", "high-contrast")
LOOKS = [(size, "dark") for size in SIZES] + [((160, 45), theme) for theme in THEMES[1:]] + [((80, 24), "high-contrast")]
TIDES = "Why are there two tides a day?"
Compare = Callable[..., bool]


def named(look: tuple[tuple[int, int], str]) -> str:
    (width, height), theme = look
    return f"{width}x{height}-{theme}"


def compare(snap_compare: Compare, stage: Stage, size: tuple[int, int], act: Callable[[Pilot], Awaitable[None]]) -> bool:
    async def run(pilot: Pilot) -> None:
        await stage.settle(pilot)
        await act(pilot)
        await stage.settle(pilot)

    return snap_compare(stage.app, terminal_size=size, run_before=run)


@pytest.mark.parametrize("look", LOOKS, ids=named)
class TestConversation:
    def test_reply_with_table_and_code_is_complete(self, snap_compare, look):
        stage = Stage("markdown", theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)

        assert compare(snap_compare, stage, look[0], act)

    def test_reply_of_the_real_starter_model(self, snap_compare, look):
        stage = Stage(theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, "What is the capital of France?")
            await stage.ask(pilot, "Write a Python function that adds two numbers, with a short example.")

        assert compare(snap_compare, stage, look[0], act)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
class TestPanes:
    def test_engine_is_starting(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.settle(pilot)

        assert compare(snap_compare, stage, size, act)

    def test_reply_is_streaming(self, snap_compare, size):
        stage = Stage("markdown")

        async def act(pilot):
            await stage.load(pilot)
            await stage.say(pilot, TIDES)
            await stage.play(pilot, 1.5)

        assert compare(snap_compare, stage, size, act)

    def test_sampler_has_the_focus_and_a_changed_value(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.load(pilot)
            await pilot.press("ctrl+s", "down", "right")

        assert compare(snap_compare, stage, size, act)

    def test_devices_have_the_focus(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await pilot.press("ctrl+d")

        assert compare(snap_compare, stage, size, act)

    def test_sessions_have_the_focus(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            stage.wall.now += 7300
            await pilot.press("ctrl+n")
            await stage.ask(pilot, "Tell me about the borrow checker of Rust, and why it is strict.")
            await pilot.press("ctrl+o", "down")

        assert compare(snap_compare, stage, size, act)

    def test_message_cursor_is_on_a_message_with_versions(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await pilot.press("alt+up", "r")
            await stage.until(pilot, lambda: not stage.app.dialogue.busy)
            await pilot.press("alt+up")

        assert compare(snap_compare, stage, size, act)

    def test_help_for_the_prompt(self, snap_compare, size):
        stage = Stage()

        async def act(pilot):
            await stage.load(pilot)
            await pilot.press("f1")

        assert compare(snap_compare, stage, size, act)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
class TestLoader:
    def test_models_are_listed_with_details(self, snap_compare, size):
        stage = Stage(models=[BIG, STARTER, BROKEN])

        async def act(pilot):
            await stage.settle(pilot)
            await pilot.press("down")

        assert compare(snap_compare, stage, size, act)

    def test_the_starter_is_offered_when_there_is_no_model(self, snap_compare, size):
        stage = Stage(models=[])

        async def act(pilot):
            await stage.settle(pilot)

        assert compare(snap_compare, stage, size, act)

    def test_a_download_shows_its_progress(self, snap_compare, size):
        stage = Stage(models=[])

        async def act(pilot):
            await stage.settle(pilot)
            transfer = Transfer("smollm2-135m", stage.clock)
            transfer.advance("downloading", 0, 92_871_040)
            stage.clock.now += 4
            transfer.advance("downloading", 41_000_000, 92_871_040)
            stage.app.screen.show_transfer(transfer)

        assert compare(snap_compare, stage, size, act)


@pytest.mark.parametrize("look", [((160, 45), "dark"), ((100, 30), "light"), ((80, 24), "high-contrast")], ids=named)
class TestScreens:
    def test_branches_of_a_chat(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon.", "The Moon and the Sun.", "They are small."]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await pilot.press("alt+up", "r")
            await stage.until(pilot, lambda: not stage.app.dialogue.busy)
            await stage.ask(pilot, "And on Mars?")
            await pilot.press("ctrl+t")

        assert compare(snap_compare, stage, look[0], act)

    def test_three_replies_side_by_side(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon.", "One **moon**.", "Two `moons`.", "> Three."]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await stage.say(pilot, "/candidates 3")
            await stage.until(pilot, lambda: not stage.app.dialogue.busy)
            await pilot.press("right")

        assert compare(snap_compare, stage, look[0], act)

    def test_the_context_is_too_small_for_all(self, snap_compare, look):
        stage = Stage(client=Speaker(["word " * 60, "word " * 40]), theme=look[1])
        stage.preparer.context = 100

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await stage.ask(pilot, "And on Mars?")
            await pilot.press(*"Why?", "f6")

        assert compare(snap_compare, stage, look[0], act)

    def test_tokens_of_a_reply(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon pulls"]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await pilot.press("alt+up", "i")
            await stage.play(pilot, 0.5)
            await pilot.press("right")
            await stage.play(pilot, 0.3)

        assert compare(snap_compare, stage, look[0], act)

    def test_slash_commands_are_offered(self, snap_compare, look):
        stage = Stage(theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await pilot.press("slash", "t")

        assert compare(snap_compare, stage, look[0], act)

    def test_chats_with_tags_are_found(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon.", "Owners."]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            stage.wall.now += 7300
            await pilot.press("ctrl+n")
            await stage.ask(pilot, "Tell me about the borrow checker.")
            await pilot.press("ctrl+o", "t", *"rust", "enter")
            await stage.settle(pilot)
            await pilot.press("slash", *"#rust")

        assert compare(snap_compare, stage, look[0], act)


FORMS = [((160, 45), "dark"), ((80, 24), "light")]


@pytest.mark.parametrize("look", FORMS, ids=named)
class TestForms:
    def test_settings_on_a_form(self, snap_compare, look, monkeypatch):
        monkeypatch.setattr("exltui.paths.settings_file", lambda: Path("/home/you/.config/exltui/settings.toml"))
        stage = Stage(theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await pilot.press("f9", "down", "down", "right")

        assert compare(snap_compare, stage, look[0], act)

    def test_options_of_a_load(self, snap_compare, look):
        stage = Stage(models=[BIG, STARTER, BROKEN], theme=look[1])

        async def act(pilot):
            await stage.settle(pilot)
            await pilot.press("o", "down", "right", "right")

        assert compare(snap_compare, stage, look[0], act)

    def test_the_template_is_examined(self, snap_compare, look, starter_model):
        stage = Stage(theme=look[1])
        stage.preparer.doctor = lambda order: Preparer().doctor(replace(order, model_dir=str(starter_model)))

        async def act(pilot):
            await stage.load(pilot)
            await stage.say(pilot, "/system Be terse.")
            await pilot.press(*"Why? <|im_end|>", "f8")

        assert compare(snap_compare, stage, look[0], act)

    def test_what_the_template_reads(self, snap_compare, look):
        stage = Stage(theme=look[1])
        stage.preparer.template = lambda order: ChatTemplate("{{ tools }}{{ enable_thinking }}{{ date_string }}{{ reasoning_effort }}")

        async def act(pilot):
            await stage.load(pilot)
            await pilot.press("ctrl+g")
            await stage.settle(pilot)
            await pilot.press("right", "down", "enter", *"2026-11-25", "enter", "down", "down", "enter", *"high", "enter")

        assert compare(snap_compare, stage, look[0], act)

    def test_characters_are_listed(self, snap_compare, look, tmp_path):
        (tmp_path / "Tutor.md").write_text('+++\ngreeting = "Hello."\n[variables]\nthinking = false\n+++\nYou are a patient teacher.')
        (tmp_path / "terse.toml").write_text('system = "Be terse."')
        stage = Stage(theme=look[1], characters_dir=tmp_path)

        async def act(pilot):
            await stage.load(pilot)
            await stage.say(pilot, "/characters tutor")
            await stage.say(pilot, "/characters")

        assert compare(snap_compare, stage, look[0], act)

    def test_a_message_in_full(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon."]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.say(pilot, "/set min_p 0.1")
            await stage.ask(pilot, TIDES)
            await pilot.press("alt+up", "o")

        assert compare(snap_compare, stage, look[0], act)

    def test_the_sampler_under_the_microscope(self, snap_compare, look):
        stage = Stage(client=Speaker(["The Moon pulls"]), theme=look[1])

        async def act(pilot):
            await stage.load(pilot)
            await stage.ask(pilot, TIDES)
            await pilot.press("alt+up", "i")
            await stage.play(pilot, 0.3)
            await pilot.press("right", "enter")
            await stage.play(pilot, 0.3)
            await pilot.press("down", "1", "enter")
            await stage.play(pilot, 0.3)

        assert compare(snap_compare, stage, look[0], act)
