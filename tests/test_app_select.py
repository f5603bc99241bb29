"""Selecting by keys, the settings form with every setting, when a model was used last."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from app_stage import BIG, NOON, STARTER, Speaker, Stage

from exltui.app.actions import COMMANDS
from exltui.app.keymap import places
from exltui.app.library import Library
from exltui.app.screens.form import FormScreen
from exltui.app.screens.loader import LoaderScreen
from exltui.models.usage import last_uses, note_use
from exltui.protocol import LoadOptions
from exltui.sampling import SETTINGS
from exltui.settings import Settings

WIDE = (160, 45)
REPLY = "The Moon pulls at the sea.\n\nThe Sun pulls too."


def told(stage: Stage) -> str:
    return "\n".join(notice.message for notice in stage.app._notifications)


async def selecting(stage: Stage, pilot, *keys: str) -> list[str]:
    """What is copied when these keys are pressed on the last reply."""
    copied: list[str] = []
    stage.app.copy = copied.append  # type: ignore[method-assign]
    await stage.load(pilot)
    await stage.ask(pilot, "Why?")
    await pilot.press("alt+up", "s")
    await stage.settle(pilot)
    assert stage.app.main.talk.caret.active
    await pilot.press(*keys)
    await stage.settle(pilot)
    return copied


async def test_a_part_of_a_line_is_selected_and_copied_by_keys():
    stage = Stage(client=Speaker([REPLY]))
    async with stage.app.run_test(size=WIDE) as pilot:
        copied = await selecting(stage, pilot, *["right"] * 4, "space", *["right"] * 3, "y")
        assert copied == ["Moon"]
        assert not stage.app.main.talk.caret.active
        assert "Space marks" in told(stage)


async def test_shift_and_an_arrow_select_over_several_lines():
    stage = Stage(client=Speaker([REPLY]))
    async with stage.app.run_test(size=WIDE) as pilot:
        copied = await selecting(stage, pilot, "shift+down", "shift+end", "enter")
        assert copied == [REPLY]


async def test_ctrl_c_copies_what_is_selected_and_escape_leaves():
    stage = Stage(client=Speaker([REPLY]))
    async with stage.app.run_test(size=(80, 24)) as pilot:
        copied = await selecting(stage, pilot, "end", "shift+home", "ctrl+c")
        assert copied == ["The Moon pulls at the sea."]
        await pilot.press("escape")
        assert not stage.app.main.talk.caret.active
        assert not stage.app.screen.selections
        await pilot.press("s", "x")
        await stage.settle(pilot)
        assert stage.texts[-1][1] == REPLY, "another key leaves the selection and does nothing else"


async def test_the_settings_form_has_every_setting_of_the_file():
    stage = Stage(client=Speaker([]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("f9")
        form = stage.app.screen
        assert isinstance(form, FormScreen)
        keys = {row.key for row in form._rows}
        wanted = {field.name for field in dataclasses.fields(Settings)} - {"last_model", "sampling", "load", "keys"}
        wanted |= {field.name for field in dataclasses.fields(LoadOptions)}
        wanted |= {f"sampling.{setting.name}" for setting in SETTINGS if setting.group != "guidance"}
        wanted |= {f"keys.{id}" for _, id, _ in places()}
        assert keys >= wanted, f"missing: {sorted(wanted - keys)}"
        assert all(row.help for row in form._rows)


async def test_a_key_a_sampler_value_and_a_name_can_be_set_there():
    stage = Stage(client=Speaker([]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("f9")
        form = stage.app.screen
        rows = {row.key: row for row in form._rows}
        form._set(rows["keys.chat.find"], "f11")
        form._set(rows["sampling.top_k"], 7)
        form._set(rows["you"], "Ada")
        form._set(rows["models_dirs"], ("/data/models",))
        await stage.settle(pilot)
        assert stage.app.dialogue.sampling.top_k == 7
        stage.app._save_settings()
        assert stage.remembered["keys"] == {"chat.find": "f11"}
        assert stage.remembered["you"] == stage.app.dialogue.you == "Ada"
        assert stage.remembered["models_dirs"] == ("/data/models",)
        form._set(rows["keys.chat.find"], "f1")
        await stage.settle(pilot)
        assert "F1 is given to both" in told(stage)
        await pilot.press("escape")


async def test_the_loader_tells_when_a_model_was_used_and_offers_smaller_ones_as_drafts():
    big = replace(BIG, used=NOON - 7200)
    stage = Stage(client=Speaker([]), models=[big, STARTER])
    used: list[Path] = []
    stage.library.used = lambda path, when: used.append(path)  # type: ignore[method-assign]
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        screen = stage.app.screen
        assert isinstance(screen, LoaderScreen)
        lines = [screen._line(model, 70).plain for model in (big, STARTER)]
        assert lines[0].rstrip().endswith("2 h")
        assert len(lines[0]) == len(lines[1])
        assert "last used     2 h" in screen.query_one("#details-text").render().plain
        await pilot.press("o")
        await stage.settle(pilot)
        row = next(row for row in stage.app.screen._rows if row.key == "draft_model")
        assert row.choices == (None, str(STARTER.path)), "what is smaller than the model itself"
        await pilot.press("escape", "enter")
        await stage.load(pilot)
        assert used == [big.path]


async def test_switching_models_keeps_the_chat():
    stage = Stage(client=Speaker(["The Moon pulls.", "The Sun pulls."]), models=[BIG, STARTER])
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        await pilot.press("enter")
        await stage.load(pilot)
        await stage.ask(pilot, "Why?")
        stage.app.desk._load_path(STARTER.path)
        await stage.play(pilot, 0.3)
        assert [text for _, text in stage.texts] == ["Why?", "The Moon pulls."]
        await stage.ask(pilot, "And?")
        assert len(stage.texts) == 4
        assert stage.preparer.orders[-1].model_dir == str(STARTER.path)


def test_last_uses_are_kept_in_a_file(tmp_path):
    file = tmp_path / "folder" / "used.json"
    assert last_uses(file) == {}
    note_use(Path("/models/a"), 5.0, file)
    note_use(Path("/models/b"), 6.0, file)
    note_use(Path("/models/a"), 7.0, file)
    assert last_uses(file) == {"/models/a": 7.0, "/models/b": 6.0}
    file.write_text("{broken")
    assert last_uses(file) == {}
    note_use(Path("/models/a"), 8.0, file)
    assert last_uses(file) == {"/models/a": 8.0}


def test_the_library_tells_them(tmp_path):
    library = Library([tmp_path])
    library.used(tmp_path / "none", 5.0)
    assert last_uses()[str(tmp_path / "none")] == 5.0
    assert library.scan() == []


@pytest.mark.parametrize("command", ["settings", "models", "context", "theme", "help"])
async def test_a_screen_that_is_closed_before_it_was_drawn_ends_quietly(command):
    stage = Stage(client=Speaker([]), models=[STARTER])
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        stage.app.perform(COMMANDS[command])
        assert stage.app.screen is not stage.app.main
        stage.app.to_main()
        await stage.settle(pilot)
        assert stage.app.is_running
        assert stage.app.screen is stage.app.main


async def test_the_palette_opens_again_while_it_is_being_closed():
    stage = Stage(client=Speaker([]), models=[STARTER])
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        for _ in range(2):
            stage.app.action_command_palette()
            stage.app.action_command_palette()
            assert len(stage.app.screen_stack) == 2
            stage.app.to_main()
        await stage.settle(pilot)
        assert stage.app.screen is stage.app.main


async def test_what_a_screen_is_at_ends_before_its_parts_go():
    stage = Stage(client=Speaker([]), models=[STARTER])
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+p")
        search = stage.app.screen.run_worker(partial(asyncio.sleep, 60))
        stage.app.to_main()
        assert search.is_cancelled, "the palette's search goes on in parts that are gone"
        await pilot.pause()
        assert stage.app.screen is stage.app.main
