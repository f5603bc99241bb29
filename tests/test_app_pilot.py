"""The app by its keys: every test types what a person types and looks at what a person sees."""

from __future__ import annotations

import threading

import pytest
from app_stage import BIG, BROKEN, STARTER, Stage
from textual import events

from exltui import protocol
from exltui.app import start
from exltui.app.screens.loader import LoaderScreen
from exltui.app.screens.sheet import SheetScreen
from exltui.cli.options import AppOptions
from exltui.errors import ContextError, DownloadError, StoreError

WIDE = (160, 45)
FRANCE = "What is the capital of France?"


async def test_a_message_is_answered_and_both_are_shown():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        assert stage.texts == [("user", FRANCE), ("assistant", "The capital of France is Paris.")]
        entry = stage.app.dialogue.entries()[-1]
        assert entry.name == "smollm2-135m"
        assert entry.meta.startswith("7 tok")
        assert stage.app.main.prompt.text == ""
        assert [(turn.role, turn.content) for turn in stage.preparer.orders[0].turns] == [("user", FRANCE)]


async def test_a_message_that_is_sent_before_the_model_is_there_waits_for_it():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        await stage.say(pilot, FRANCE)
        assert stage.app.dialogue.busy
        assert not any(isinstance(command, protocol.Submit) for command in stage.client.sent)
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[-1][1] == "The capital of France is Paris."


async def test_escape_stops_a_reply_and_keeps_its_text():
    stage = Stage("markdown")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there tides?")
        await stage.until(pilot, lambda: len(stage.texts[-1][1]) > 40)
        await pilot.press("escape")
        cancelled = [command for command in stage.client.sent if isinstance(command, protocol.Cancel)]
        submitted = [command for command in stage.client.sent if isinstance(command, protocol.Submit)]
        assert [command.id for command in cancelled] == [submitted[0].job.id]


async def test_keys_that_come_in_one_packet_are_taken_in_order():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        for key in ["a", "b", "backspace", "c", "left", "d", "home", "e", "delete", "end", "f"]:
            stage.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await pilot.pause()
        assert stage.app.main.prompt.text == "edcf"


async def test_a_message_that_is_sent_before_the_chats_are_open_is_no_error():
    stage = Stage()
    opened = threading.Event()
    open_file = stage.records.open
    stage.records.open = lambda: (opened.wait(10), open_file())[1]
    async with stage.app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press(*"Hi", "enter")
        await pilot.pause()
        assert not [notice for notice in stage.app._notifications if notice.severity == "error"]
        opened.set()
        await stage.settle(pilot)
        assert [row.title for row in stage.app.main.sessions.rows] == ["Hi"]


async def test_what_was_typed_while_a_reply_is_written_is_not_lost():
    stage = Stage("markdown")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there tides?")
        await stage.play(pilot, 0.5)
        await stage.say(pilot, "and another thing")
        assert stage.app.main.prompt.text == "and another thing"
        assert len(stage.texts) == 2


async def test_the_chat_is_there_again_after_a_restart(tmp_path):
    chats = tmp_path / "sessions.db"
    stage = Stage(chats=chats)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
    again = Stage(chats=chats)
    async with again.app.run_test(size=WIDE) as pilot:
        await again.settle(pilot)
        assert again.texts == [("user", FRANCE), ("assistant", "The capital of France is Paris.")]
        assert again.app.main.talk.text(again.app.dialogue.conversation.head) == "The capital of France is Paris."


async def test_a_draft_is_there_again_after_a_restart(tmp_path):
    chats = tmp_path / "sessions.db"
    stage = Stage(chats=chats)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        await pilot.press(*"half a")
        await stage.settle(pilot)
    again = Stage(chats=chats)
    async with again.app.run_test(size=WIDE) as pilot:
        await again.settle(pilot)
        assert again.app.main.prompt.text == "half a"


async def test_what_is_typed_before_the_last_chat_is_there_stays(tmp_path):
    chats = tmp_path / "sessions.db"
    stage = Stage(chats=chats)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
    again = Stage(chats=chats)
    open_file = again.records.open
    gate = threading.Event()
    again.records.open = lambda: (gate.wait(30), open_file())[1]
    async with again.app.run_test(size=WIDE) as pilot:
        await pilot.press(*"early")
        assert again.texts == []
        gate.set()
        await again.settle(pilot)
        assert again.texts[0] == ("user", FRANCE)
        assert again.app.main.prompt.text == "early"
        assert len(again.app.main.sessions.rows) == 1


async def test_a_reply_goes_on_while_another_chat_is_read():
    stage = Stage("markdown")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there tides?")
        first = stage.app.dialogue.conversation
        await stage.play(pilot, 0.5)
        await pilot.press("ctrl+n")
        assert stage.texts == []
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert first.path()[-1].state == "done"
        assert first.path()[-1].text.startswith("The Moon pulls")
        await pilot.press("ctrl+o", "enter")
        await stage.settle(pilot)
        assert stage.texts[-1][1] == first.path()[-1].text


async def test_a_corrupt_database_is_kept_aside_and_said(tmp_path):
    chats = tmp_path / "sessions.db"
    chats.write_bytes(b"this is no database" * 100)
    stage = Stage(chats=chats)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        assert any("damaged" in notice.message for notice in stage.app._notifications)
        await stage.ask(pilot, FRANCE)
    assert len(list(tmp_path.glob("*corrupt*"))) >= 1


async def test_a_database_that_cannot_be_opened_leaves_a_usable_app(tmp_path):
    stage = Stage(chats=tmp_path)  # a folder where the file should be
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        assert stage.texts[-1][1] == "The capital of France is Paris."
        assert "not saved" in stage.records.warning


async def test_a_full_disk_is_said_and_nothing_is_lost():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        stage.records.on_problem(StoreError("/chats.db: the disk is full", "free some space"))
        await stage.settle(pilot)
        assert any("the disk is full\nfree some space" in notice.message for notice in stage.app._notifications)


def test_leaving_with_something_unsaved_says_so(monkeypatch):
    stage = Stage()
    monkeypatch.setattr(start, "assemble", lambda options: stage.app.parts)
    monkeypatch.setattr(start.ExltuiApp, "run", lambda app: None)
    assert start.start_app(AppOptions()) == 0
    monkeypatch.setattr(stage.records, "close", lambda: False)
    with pytest.raises(StoreError, match="could not be saved"):
        start.start_app(AppOptions())


async def test_a_prompt_that_is_too_long_fails_with_its_numbers_and_stays():
    stage = Stage()
    stage.preparer.error = ContextError("the last message is 9,000 tokens long; the context holds 8,192", "shorten it")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "a very long text")
        entry = stage.app.dialogue.entries()[-1]
        assert entry.state == "failed"
        assert entry.hint.startswith("the last message is 9,000 tokens long; the context holds 8,192\n/edit changes the message")
        rows = [stage.app.main.talk.render_line(y).text.strip() for y in range(stage.app.main.talk.size.height)]
        assert any(row.startswith("┃ /edit changes the message, /delete") for row in rows), "what to do stands on a line of its own"
        assert stage.texts[0] == ("user", "a very long text")
        assert ("/edit", "change it") in stage.app.hints()
        await stage.say(pilot, "/edit")
        assert stage.app.main.prompt.text == "a very long text"
        await pilot.press("escape")
        await stage.say(pilot, "/delete")
        assert stage.texts == [], "the message goes with the reply that failed"
        await stage.say(pilot, "/undo")
        assert stage.texts[0] == ("user", "a very long text")


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reply_can_be_written_again_and_both_versions_stay():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        await pilot.press("alt+up", "r")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert len(stage.texts) == 2
        assert "def add_two_numbers" in stage.texts[1][1]
        assert "◂ 2/2 ▸" in stage.app.dialogue.entries()[1].meta
        await pilot.press("alt+left")
        assert stage.texts[1][1] == "The capital of France is Paris."
        await pilot.press("alt+right")
        assert "def add_two_numbers" in stage.texts[1][1]


async def test_an_edited_message_is_a_version_of_its_own():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        await pilot.press("alt+up", "alt+up", "e")
        assert stage.app.main.prompt.text == FRANCE
        await stage.ask(pilot, "Write a function.")
        assert [role for role, _ in stage.texts] == ["user", "assistant"]
        assert stage.texts[0][1] == "Write a function."
        stage.app.dialogue.revision.step_sibling(None, -1)
        assert stage.texts[0][1] == FRANCE


async def test_a_deleted_message_comes_back():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        await pilot.press("alt+up", "d")
        assert stage.texts == [("user", FRANCE)]
        await pilot.press("u")
        assert stage.texts[-1][1] == "The capital of France is Paris."


async def test_a_message_and_a_code_block_are_copied(monkeypatch):
    copied: list[str] = []
    stage = Stage("markdown")
    monkeypatch.setattr(stage.app, "copy_to_clipboard", copied.append)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, "Why are there tides?")
        await pilot.press("alt+up", "y", "1", "y", "2", "y")
        await stage.settle(pilot)
    assert copied[0].startswith("The Moon pulls")
    assert copied[1].startswith("def tide(hours")
    assert len(copied) == 2, "there is no second block"


# ── panes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_sampler_is_changed_by_keys_and_the_next_message_uses_it():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+s", "right", "down", "delete", *"40", "enter", "down", "o", "escape")
        assert stage.app.main.prompt.has_focus
        await stage.ask(pilot, FRANCE)
        sampling = stage.preparer.orders[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.85, 40, 1.0)
    assert stage.remembered["sampling"] == sampling


async def test_a_wrong_sampler_value_is_refused_with_its_range():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("f2", *"999", "enter")
        assert stage.app.main.sampler.sampling.temperature == 0.8
        assert "outside 0 to 100" in " ".join(stage.app.main.sampler.render().plain.split())


async def test_chats_are_found_renamed_deleted_and_brought_back():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        await pilot.press("ctrl+o", "r")
        await pilot.press(*["backspace"] * 40, *"Geography", "enter")
        await stage.settle(pilot)
        assert [row.title for row in stage.app.main.sessions.rows] == ["Geography"]
        await pilot.press("slash", *"paris")
        await stage.settle(pilot)
        assert len(stage.app.main.sessions.rows) == 1
        await pilot.press(*"xyz")
        await stage.settle(pilot)
        assert stage.app.main.sessions.rows == []
        await pilot.press("escape")
        await stage.settle(pilot)
        await pilot.press("d")
        await stage.settle(pilot)
        assert stage.app.main.sessions.rows == []
        assert stage.texts == []
        await pilot.press("u")
        await stage.settle(pilot)
        assert [row.title for row in stage.app.main.sessions.rows] == ["Geography"]


@pytest.mark.parametrize("size", [(160, 45), (100, 30), (80, 24), (60, 15), (20, 6)], ids=str)
async def test_every_pane_can_be_reached_and_left_at_any_size(size):
    stage = Stage()
    async with stage.app.run_test(size=size) as pilot:
        await stage.load(pilot)
        for key, place in (("ctrl+o", "sessions-list"), ("ctrl+s", "sampler"), ("ctrl+d", "devices"), ("f2", "sampler")):
            await pilot.press(key)
            await pilot.pause()
            focused = stage.app.focused
            assert focused is not None
            assert focused.id == place
            assert focused.size.width > 0
            await pilot.press("escape")
            assert stage.app.main.prompt.has_focus
        await stage.ask(pilot, FRANCE)
        assert stage.texts[-1][1] == "The capital of France is Paris."


async def test_resizing_changes_the_layout_and_loses_nothing():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, FRANCE)
        for size in ((80, 24), (40, 10), (100, 30), (160, 45)):
            await pilot.resize_terminal(*size)
            await stage.settle(pilot)
            assert stage.app.main.sessions.display is (size[0] >= 130)
        assert stage.app.main.talk.text(stage.app.dialogue.conversation.head) == "The capital of France is Paris."


async def test_help_names_the_keys_of_the_focused_pane():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+s", "question_mark")
        assert isinstance(stage.app.screen, SheetScreen)
        text = stage.app.screen.query_one("#sheet Static").render().plain
        assert "Sampler" in text.splitlines()[0]
        assert "Switch off" in text
        await pilot.press("escape")
        assert stage.app.screen is stage.app.main


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_model_the_starter_is_offered_with_its_size_and_enter_gets_it(tmp_path):
    stage = Stage(models=[])

    def fetch(transfer, cancelled):
        transfer.advance("downloading", 40_000_000, 92_871_040)
        stage.library.fetched.append(transfer.name)
        stage.library.models = [STARTER]
        return STARTER.path

    stage.library.fetch = fetch
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, LoaderScreen)
        option = stage.app.screen.query_one("#model-list").highlighted_option
        assert "SmolLM2-135M-Instruct" in option.prompt.plain
        assert "93 MB" in option.prompt.plain
        await pilot.press("enter")
        await stage.load(pilot)
        assert stage.library.fetched == ["smollm2-135m"]
        assert stage.app.screen is stage.app.main


async def test_a_download_that_fails_says_so_in_the_loader():
    stage = Stage(models=[])

    def fetch(transfer, cancelled):
        raise DownloadError("no network", "check the cable")

    stage.library.fetch = fetch
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        await pilot.press("enter")
        await stage.settle(pilot)
        text = stage.app.screen.query_one("#transfer-text").render().plain
        assert "no network" in text
        assert "check the cable" in text


async def test_several_models_are_listed_and_the_chosen_one_is_loaded():
    stage = Stage(models=[BIG, STARTER, BROKEN])
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, LoaderScreen)
        await pilot.press("right", "right", "down", "enter")
        await stage.settle(pilot)
        loads = [command for command in stage.client.sent if isinstance(command, protocol.Load)]
        assert [(load.model_dir, load.options.length) for load in loads] == [("/models/smollm2-135m", 4096)]
        await stage.load(pilot)
        assert stage.app.screen is stage.app.main
        await stage.ask(pilot, FRANCE)


async def test_a_broken_model_is_not_loaded_but_explained():
    stage = Stage(models=[BROKEN, BIG, STARTER])
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.settle(pilot)
        await pilot.press("enter")
        assert "there is no tokenizer.json" in stage.app.screen.query_one("#details-text").render().plain
        assert not stage.client.sent


async def test_unloading_gives_the_memory_back():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+l", "u")
        await stage.settle(pilot)
        assert any(isinstance(command, protocol.Unload) for command in stage.client.sent)
        await pilot.press("escape")
        assert stage.app.screen is stage.app.main


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_control_c_quits_only_on_the_second_press():
    stage = Stage()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+c")
        assert stage.app.is_running
        stage.clock.now += 5
        await pilot.press("ctrl+c")
        assert stage.app._exit is False
        stage.clock.now += 0.5
        await pilot.press("ctrl+c")
        assert stage.app._exit is True


async def test_quitting_in_the_middle_of_a_reply_keeps_what_there_is(tmp_path):
    chats = tmp_path / "sessions.db"
    stage = Stage("markdown", chats=chats)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there tides?")
        await stage.until(pilot, lambda: len(stage.texts[-1][1]) > 40)
        written = stage.texts[-1][1]
        await pilot.press("ctrl+q")
    again = Stage(chats=chats)
    async with again.app.run_test(size=WIDE) as pilot:
        await again.settle(pilot)
        assert again.texts[-1][1].startswith(written)
        assert again.app.dialogue.entries()[-1].state == "stopped"
