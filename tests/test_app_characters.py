"""System prompts, characters and the template's variables, by menu and by command."""

from __future__ import annotations

from pathlib import Path

from app_stage import Speaker, Stage

from exltui.app.screens.form import FormScreen
from exltui.app.screens.pick import PickScreen
from exltui.chat.template import ChatTemplate, NamedTemplate
from exltui.chat.variables import template_values

WIDE = (160, 45)
TIDES = "Why are there tides?"
PIRATE = '+++\ngreeting = "Ahoy {{user}}!"\n[variables]\nthinking = "off"\n+++\nYou are {{char}}, a pirate.\n'


def told(stage: Stage) -> str:
    return "\n".join(notice.message for notice in stage.app._notifications)


def picked(stage: Stage) -> list[str]:
    assert isinstance(stage.app.screen, PickScreen)
    return [choice.text for choice in stage.app.screen._choices]


def stage_with(folder: Path, *replies: str) -> Stage:
    (folder / "Jack.md").write_text(PIRATE)
    (folder / "terse.md").write_text("Be terse.")
    return Stage(client=Speaker(list(replies)), characters_dir=folder)


async def test_a_character_begins_a_chat_by_menu_and_speaks_under_its_name(tmp_path):
    stage = stage_with(tmp_path, "Arr.")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        stage.app.dialogue.you = "Ada"
        stage.app.parts.you = "Ada"
        await stage.say(pilot, "/characters")
        assert picked(stage)[:2] == ["Jack", "terse"]
        await pilot.press(*"jack", "enter")
        await stage.settle(pilot)
        assert stage.texts == [("assistant", "Ahoy Ada!")]
        assert stage.app.dialogue.conversation.options == {"thinking": "off", "character": "Jack"}
        await stage.ask(pilot, TIDES)
        assert [(entry.name, entry.text) for entry in stage.app.dialogue.entries()] == [
            ("Jack", "Ahoy Ada!"), ("Ada", TIDES), ("Jack", "Arr."),
        ]  # fmt: skip
        turns = stage.preparer.orders[-1].turns
        assert [(turn.role, turn.content) for turn in turns] == [
            ("system", "You are Jack, a pirate."), ("assistant", "Ahoy Ada!"), ("user", TIDES),
        ]  # fmt: skip
        assert template_values(stage.preparer.orders[-1].options)["enable_thinking"] is False
        await pilot.press("alt+up", "alt+up", "alt+up", "r")
        assert "it answers nothing" in told(stage)
        await stage.say(pilot, "/characters TERSE")
        assert stage.app.dialogue.conversation.system == "Be terse."
        assert len(stage.texts) == 3, "a chat that has begun stays as it is"


async def test_a_chat_is_saved_as_a_character_deleted_and_brought_back(tmp_path):
    stage = Stage(client=Speaker(["Arr."]), characters_dir=tmp_path)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/save-character nothing")
        assert "neither a system prompt nor" in told(stage)
        await stage.say(pilot, "/system You are a pirate.")
        await stage.say(pilot, "/save-character pirate")
        assert (tmp_path / "pirate.md").read_text() == "You are a pirate.\n"
        await stage.say(pilot, "/system You are a sailor.")
        await stage.say(pilot, "/characters")
        await pilot.press(*"save", "enter")
        await stage.settle(pilot)
        await pilot.press("enter")
        await stage.settle(pilot)
        assert (tmp_path / "pirate.md").read_text() == "You are a sailor.\n"
        await stage.say(pilot, "/characters")
        await pilot.press("ctrl+z")
        await stage.settle(pilot)
        assert (tmp_path / "pirate.md").read_text() == "You are a pirate.\n", "what was there before is back"
        await stage.say(pilot, "/delete-character pirate")
        assert not (tmp_path / "pirate.md").exists()
        await stage.say(pilot, "/characters")
        await pilot.press("ctrl+z")
        await stage.settle(pilot)
        assert (tmp_path / "pirate.md").read_text() == "You are a pirate.\n"
        await stage.say(pilot, "/characters")
        await pilot.press("home", "ctrl+n")
        await stage.settle(pilot)
        assert stage.app.dialogue.conversation.system == "You are a pirate."


async def test_a_character_is_written_in_the_editor_and_a_bad_file_is_told_and_kept(tmp_path):
    stage = stage_with(tmp_path)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        written = ["+++\ngreeting = 3\n+++\nYou are Jack.", '+++\ngreeting = "Hi"\n+++\nYou are Jack.']
        seen: list[str] = []
        stage.app.messages.outside_text = lambda text, suffix: seen.append(text) or written.pop(0)  # type: ignore[method-assign,func-returns-value]
        await stage.say(pilot, "/edit-character jack")
        assert seen == [PIRATE]
        assert f"{tmp_path / 'Jack.md'}: line 2: greeting must be a text in quotes" in told(stage)
        assert "greeting = 3" in (tmp_path / "Jack.md").read_text(), "what was written is kept"
        await stage.say(pilot, "/characters")
        assert "Jack.md" in picked(stage)
        await pilot.press(*"jack", "ctrl+e")
        await stage.settle(pilot)
        assert "greeting = 3" in seen[-1]
        await stage.say(pilot, "/characters jack")
        assert stage.texts == [("assistant", "Hi")]


async def test_what_the_template_reads_is_set_on_a_form_and_kept_with_the_chat(tmp_path):
    stage = stage_with(tmp_path)
    source = "{{ tools }}{{ enable_thinking }}{{ date_string }}{{ reasoning_effort }}{{ messages[0].content }}"
    stage.preparer.template = lambda order: ChatTemplate(source)  # type: ignore[method-assign]
    file = tmp_path / "tools.json"
    file.write_text('[{"type": "function", "function": {"name": "weather"}}]')
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+g")
        await stage.settle(pilot)
        form = stage.app.screen
        assert isinstance(form, FormScreen)
        assert [row.label for row in form._rows] == ["thinking", "date", "tools", "reasoning_effort"]
        await pilot.press("right", "down", "enter", *"2026-11-25", "enter", "down", "enter", *str(file), "enter", "down")
        await pilot.press("enter", *"high", "enter")
        await stage.settle(pilot)
        options = stage.app.dialogue.conversation.options
        assert options["thinking"] == "on"
        assert options["date"] == "2026-11-25"
        values = template_values(options)
        assert values["tools"][0]["function"]["name"] == "weather"
        assert values["reasoning_effort"] == "high"
        await pilot.press("delete", "escape")
        assert "variables" not in stage.app.dialogue.conversation.options
        stage.preparer.template = lambda order: NamedTemplate("plain")  # type: ignore[method-assign]
        await stage.say(pilot, "/variables")
        assert "reads nothing but the messages" in told(stage)
