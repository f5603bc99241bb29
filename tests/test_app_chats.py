"""The list of chats, the context, presets, settings and themes, by keys and commands."""

from __future__ import annotations

import json
import threading

import pytest
from app_stage import Speaker, Stage

from exltui import protocol
from exltui.app.chats import clean_title
from exltui.app.library import Library
from exltui.app.screens.context import ContextScreen
from exltui.app.screens.form import FormScreen
from exltui.app.screens.sheet import SheetScreen
from exltui.chat.export import from_json

WIDE = (160, 45)
TIDES = "Why are there tides?"


def told(stage: Stage) -> str:
    """All notices."""
    return "\n".join(notice.message for notice in stage.app._notifications)


def rows(stage: Stage) -> list[str]:
    """The titles in the list of chats."""
    return [row.title for row in stage.app.main.sessions.rows]


# ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_chats_are_pinned_tagged_archived_and_duplicated():
    stage = Stage(client=Speaker(["a", "b"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, "Old chat")
        stage.wall.now += 100
        await pilot.press("ctrl+n")
        await stage.ask(pilot, "New chat here")
        await pilot.press("ctrl+o", "down", "p")
        await stage.settle(pilot)
        assert rows(stage) == ["Old chat", "New chat here"]
        await pilot.press("t")
        await pilot.press(*"sea #moon", "enter")
        await stage.settle(pilot)
        assert stage.app.main.sessions.rows[0].tags == "sea moon"
        await pilot.press("slash", *"#sea")
        await stage.settle(pilot)
        assert rows(stage) == ["Old chat"]
        await pilot.press("escape")
        await stage.settle(pilot)
        await pilot.press("home", "a")
        await stage.settle(pilot)
        assert rows(stage) == ["New chat here"], "archived"
        await pilot.press("A")
        assert rows(stage) == ["New chat here", "Old chat"]
        await pilot.press("c")
        await stage.settle(pilot)
        assert stage.app.dialogue.conversation.title == "New chat here (copy)"


async def test_a_search_shows_where_it_found_the_words():
    stage = Stage(client=Speaker(["The Moon pulls at the near side more than at the far side."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("ctrl+o", "slash", *"far side")
        await stage.settle(pilot)
        assert "far side" in stage.app.main.sessions.rows[0].snippet


@pytest.mark.parametrize("ending", ["md", "html", "json"])
async def test_a_chat_is_exported(tmp_path, ending):
    stage = Stage(client=Speaker(["The Moon."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.say(pilot, f"/export {tmp_path}/chat.{ending}")
        await stage.settle(pilot)
        assert "The Moon." in (tmp_path / f"chat.{ending}").read_text()
        await stage.say(pilot, f"/export {tmp_path}/chat.doc")
        await stage.settle(pilot)
        assert "does not say how to write it" in told(stage)


async def test_an_exported_chat_is_imported(tmp_path):
    stage = Stage(client=Speaker(["The Moon."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.say(pilot, f"/export {tmp_path}/chat.json")
        await stage.settle(pilot)
        first = stage.app.dialogue.conversation.id
        await stage.say(pilot, f"/import {tmp_path}/chat.json")
        await stage.settle(pilot)
        assert stage.app.dialogue.conversation.id != first
        assert stage.texts[-1] == ("assistant", "The Moon.")
        (tmp_path / "chat.json").write_text(json.dumps({"format": "other"}))
        await stage.say(pilot, f"/import {tmp_path}/chat.json")
        await stage.settle(pilot)
        assert "no exported chat" in told(stage)
    with pytest.raises(Exception, match="not JSON"):
        from_json("rubbish")


async def test_the_model_gives_a_chat_its_title_once_and_the_person_has_the_last_word():
    stage = Stage(client=Speaker(["The Moon.", '"Moon and Tides"', "More."]), titles=True)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.until(pilot, lambda: stage.app.dialogue.conversation.title == "Moon and Tides")
        assert rows(stage) == ["Moon and Tides"]
        await stage.say(pilot, "/title My tides")
        await stage.ask(pilot, "More?")
        await stage.play(pilot, 1)
        assert stage.app.dialogue.conversation.title == "My tides"
        assert len([command for command in stage.client.sent if isinstance(command, protocol.Submit)]) == 3


def test_only_a_few_words_on_a_line_are_a_title():
    assert clean_title('Title: **"Tides"**.\n\nThis title...') == "Tides"
    assert clean_title("Sure! Here is a title for the conversation that you had with me about the tides") == ""
    assert clean_title("Here's a two-word title for the conversation:") == ""
    assert clean_title("") == ""


# ── the context ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_will_be_cut_is_said_before_it_is_sent():
    stage = Stage(client=Speaker(["word " * 30, "word " * 30]))
    stage.preparer.context = 60
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.ask(pilot, "And the Sun?")
        stage.app.context.count()
        await stage.settle(pilot)
        assert "oldest messages will not be sent" in stage.app.main.query_one("#asking").border_subtitle
        await pilot.press("f6")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, ContextScreen)
        fates = [share.fate for share in stage.app.screen._shares]
        assert fates[:2] == ["cut", "cut"]
        await pilot.press("up", "up", "up", "p")
        await stage.settle(pilot)
        assert stage.app.dialogue.conversation.path()[0].pinned
        assert stage.app.screen._shares[0].fate == "pinned"
        await pilot.press("down", "down", "x")
        await stage.settle(pilot)
        assert [message.dropped for message in stage.app.dialogue.conversation.path()] == [False, False, True, False]
        await pilot.press("escape")
        await stage.settle(pilot)
        assert "not sent" in stage.app.dialogue.entries()[2].meta


async def test_older_messages_are_summarised_into_the_note():
    stage = Stage(client=Speaker(["The Moon.", "The Sun too.", "They talked about tides.", "Yes."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.ask(pilot, "And the Sun?")
        await stage.say(pilot, "/summarise")
        await stage.until(pilot, lambda: "note" in stage.app.dialogue.conversation.options)
        assert [message.dropped for message in stage.app.dialogue.conversation.path()] == [True, True, False, False]
        await stage.ask(pilot, "Sure?")
        turns = stage.preparer.orders[-1].turns
        assert turns[0].content == "Summary of the earlier conversation: They talked about tides."
        assert TIDES not in " ".join(turn.content for turn in turns)


# ── the sampler ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_presets_are_saved_applied_with_their_difference_and_deleted():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/set top_k 7")
        assert stage.app.dialogue.sampling.top_k == 7
        await stage.say(pilot, "/save-preset seven")
        await stage.settle(pilot)
        await stage.say(pilot, "/preset default")
        assert stage.app.dialogue.sampling == protocol.Sampling()
        assert "top-k 7 → 50" in told(stage)
        await stage.say(pilot, "/preset")
        await pilot.press(*"seven", "enter")
        await stage.settle(pilot)
        assert stage.app.main.sampler.sampling.top_k == 7
        await stage.say(pilot, "/preset")
        await pilot.press(*"seven", "delete")
        await stage.settle(pilot)
        assert "seven" not in stage.app.presets.all


async def test_groups_of_the_sampler_unfold_and_every_kind_of_value_is_changed():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        pane = stage.app.main.sampler
        await pilot.press("ctrl+s")
        assert not any(field.name == "mirostat" for field in pane.lines() if not isinstance(field, str))
        pane._row = pane.lines().index("targets")
        await pilot.press("enter", "down", "right")
        assert pane.sampling.mirostat is True
        pane._row = pane.lines().index("DRY")
        await pilot.press("enter", *["down"] * 6, "enter", *["backspace"] * 30, *".!", "enter")
        assert pane.sampling.dry_sequence_breakers == ".!"
        pane._row = next(n for n, line in enumerate(pane.lines()) if getattr(line, "name", "") == "order")
        await pilot.press("enter")
        await pilot.pause()
        await pilot.press("space", "down", "right", "enter")
        await pilot.pause()
        assert pane.sampling.order.startswith("temperature,smoothing,top_k"), pane.sampling.order


# ── settings and looks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_theme_is_seen_while_it_is_chosen_and_escape_brings_the_old_one_back():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/theme")
        await pilot.press(*"light")
        await pilot.pause()
        assert stage.app.theme == "light"
        await pilot.press("escape")
        await pilot.pause()
        assert stage.app.theme == "dark"
        await stage.say(pilot, "/theme high-contrast")
        assert stage.app.theme == "high-contrast"


async def test_the_settings_form_changes_the_file_and_the_app():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("f9")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, FormScreen)
        await pilot.press("right")
        assert stage.app.theme != "dark"
        form = stage.app.screen
        form._list.highlighted = next(n for n, row in enumerate(form._lines) if row is not None and row.key == "chunk_size")
        await pilot.press("enter", *["backspace"] * 8, *"512", "enter")
        assert stage.app.parts.options.chunk_size == 512
        await pilot.press("enter", *"xyz", "enter")
        await pilot.pause()
        assert "not a whole number" in told(stage)
        await pilot.press("escape")
        stage.app._save_settings()
        assert stage.remembered["load"].chunk_size == 512


async def test_keys_of_the_settings_are_used_and_conflicts_are_told():
    stage = Stage(keymap={"chat.outline": "ctrl+g", "app.quit": "ctrl+n", "chat.nonsense": "x"})
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        assert "Ctrl+N is given to both chat.new and app.quit" in told(stage)
        assert "keys.chat.nonsense is not an action" in told(stage)
        await pilot.press("ctrl+g")
        await pilot.pause()
        assert "There is no message yet." in told(stage)


async def test_help_names_the_commands_and_a_persons_own_keys():
    stage = Stage(keymap={"chat.outline": "ctrl+g"})
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(stage.app.screen, SheetScreen)
        text = stage.app.screen.query_one("#sheet Static").render().plain
        assert "/export [FILE]" in text
        assert "Ctrl+G" in text
        assert threading.active_count() < 50


def test_a_model_that_was_named_by_its_path_is_in_the_list(starter_model, tmp_path):
    library = Library([tmp_path])
    assert library.scan() == []
    library.resolve(str(starter_model))
    (model,) = library.scan()
    assert (model.name, model.path) == (starter_model.name, starter_model)
