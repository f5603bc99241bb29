"""What can be done to messages, by the keys that a person presses: versions, thoughts, continuation, branches, several replies."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from app_stage import Speaker, Stage
from textual import events

from exltui import protocol
from exltui.app.screens.candidates import CandidatesScreen
from exltui.app.screens.pick import PickScreen

WIDE = (160, 45)
TIDES = "Why are there tides?"


def shown(stage: Stage) -> str:
    """The text of the transcript's rows, as they are drawn."""
    talk = stage.app.main.talk
    return "\n".join(talk.render_line(y).text for y in range(talk.size.height))


def prompts(stage: Stage) -> list[str]:
    """The prompts of all jobs that were sent."""
    return [command.job.prompt for command in stage.client.sent if isinstance(command, protocol.Submit)]


async def test_any_message_can_be_edited_and_a_reply_is_not_answered_then():
    stage = Stage(client=Speaker(["The Moon pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press(*"half a thought")
        await pilot.press("alt+up", "e")
        assert stage.app.main.prompt.text == "The Moon pulls."
        await stage.say(pilot, "The Sun pulls too.")
        await stage.settle(pilot)
        assert stage.texts == [("user", TIDES), ("assistant", "The Sun pulls too.")]
        assert len(prompts(stage)) == 1
        assert stage.app.main.prompt.text == "half a thought", "what was typed before is back"


async def test_escape_leaves_an_edit_and_brings_the_draft_back():
    stage = Stage(client=Speaker(["The Moon pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press(*"draft", "alt+up", "e", *"xyz", "escape")
        assert stage.app.main.prompt.text == "draft"
        assert stage.texts[-1][1] == "The Moon pulls."


async def test_a_reply_is_continued_where_it_ends():
    stage = Stage(client=Speaker(["The Moon pulls", " at the near side."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "c")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[-1][1] == "The Moon pulls at the near side."
        assert prompts(stage)[1].endswith("\nThe Moon pulls")
        assert "at the near side" in shown(stage)


async def test_a_reply_can_be_begun_for_the_model():
    stage = Stage(client=Speaker([" the Moon.", "Anything."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/prefill Because of")
        await stage.ask(pilot, TIDES)
        assert stage.texts[-1][1] == "Because of the Moon."
        assert prompts(stage)[0].endswith("\nBecause of")
        await stage.ask(pilot, "And more?")
        assert stage.texts[-1][1] == "Anything.", "it counts for one reply"


async def test_thoughts_are_folded_with_their_length_and_unfold():
    stage = Stage(client=Speaker(["<think>\nThe Moon is near.\n</think>\n\nThe Moon pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, TIDES)
        await stage.play(pilot, 0.3)
        assert "▸ thinking" in shown(stage)
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert "▸ thought for 6 tokens" in shown(stage)
        assert "The Moon is near." not in shown(stage)
        await pilot.press("alt+up", "t")
        await stage.settle(pilot)
        assert "┊ The Moon is near." in shown(stage)
        await stage.ask(pilot, "And the Sun?")
        assert "The Moon is near" not in prompts(stage)[1], "thoughts are not sent again"
        await stage.say(pilot, "/thoughts keep")
        await stage.ask(pilot, "Well?")
        assert "The Moon is near" in prompts(stage)[2]


async def test_thoughts_that_the_template_opens_are_thoughts():
    stage = Stage(client=Speaker(["Hm. </think> The Moon."]))
    stage.preparer.opening = "<think>\n"
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        assert "▸ thought for" in shown(stage)
        assert stage.texts[-1][1] == "<think>\nHm. </think> The Moon."


async def test_the_outline_shows_all_branches_and_goes_to_one():
    stage = Stage(client=Speaker(["First.", "Second.", "More."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "r")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        await stage.ask(pilot, "Go on")
        await pilot.press("ctrl+t")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, PickScreen)
        rows = [choice.text for choice in stage.app.screen._choices]
        assert rows == [TIDES, "├ First.", "└ Second.", "  Go on", "  More."]
        await pilot.press(*"first", "enter")
        await stage.settle(pilot)
        assert stage.texts == [("user", TIDES), ("assistant", "First.")]


async def test_several_replies_are_written_at_once_and_all_are_kept():
    stage = Stage(client=Speaker(["One moon." + " More." * 20, "Two moons." + " More." * 20, "Three moons." + " More." * 20]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        stage.client.replies.appendleft("Zero moons.")
        await stage.ask(pilot, TIDES)
        await stage.say(pilot, "/candidates 3")
        await stage.play(pilot, 0.2)
        assert isinstance(stage.app.screen, CandidatesScreen)
        assert len(stage.app.observed.running) == 3, "they run together"
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        columns = [stage.app.screen._talk(number).text(stage.app.screen._columns[number][1].id) for number in range(3)]
        assert [column[:9] for column in columns] == ["One moon.", "Two moons", "Three moo"]
        await pilot.press("2")
        await stage.settle(pilot)
        assert stage.texts[-1][1].startswith("Two moons.")
        assert len(stage.app.dialogue.conversation.siblings(stage.app.dialogue.conversation.head)) == 4


async def test_two_presets_are_compared_with_their_own_settings():
    stage = Stage(client=Speaker(["x", "Cold.", "Hot."]), presets={"cold": protocol.Sampling(temperature=0.0)})
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        stage.app.parts.presets = {"cold": protocol.Sampling(temperature=0.0)}
        await stage.say(pilot, "/compare cold default")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        jobs = [command.job for command in stage.client.sent if isinstance(command, protocol.Submit)]
        assert [job.sampling.temperature for job in jobs[1:]] == [0.0, 0.8]
        assert [frame.border_title for frame in stage.app.screen.query(".column")] == ["cold", "default"]


async def test_the_system_prompt_is_changed_and_sent():
    stage = Stage(client=Speaker(["Arr."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/system You are a pirate.")
        await stage.ask(pilot, TIDES)
        assert prompts(stage)[0].startswith("system: You are a pirate.\n")
        await stage.say(pilot, "/system")
        assert stage.app.main.prompt.text == "You are a pirate."
        await pilot.press("escape")
        assert stage.app.main.prompt.text == ""


async def test_earlier_prompts_of_all_chats_are_found():
    stage = Stage(client=Speaker(["a", "b"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("ctrl+n")
        await stage.ask(pilot, "Something else")
        await pilot.press("ctrl+r")
        await stage.settle(pilot)
        await pilot.press(*"tides", "enter")
        await stage.settle(pilot)
        assert stage.app.main.prompt.text == TIDES


async def test_a_message_is_found_by_its_words():
    stage = Stage(client=Speaker(["The Moon pulls.\n\nTwice a day.", "b"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await stage.ask(pilot, "Something else")
        await pilot.press("ctrl+f", *"twice", "enter")
        await stage.settle(pilot)
        assert stage.app.main.talk.current == stage.app.dialogue.conversation.path()[1].id


async def test_commands_are_completed_and_unknown_ones_are_not_sent():
    stage = Stage(client=Speaker(["a"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await pilot.press(*"/tre")
        await pilot.pause()
        assert stage.app.main.query_one("#commands").display
        await pilot.press("tab")
        assert stage.app.main.prompt.text == "/tree"
        await pilot.press("escape")
        assert not stage.app.main.query_one("#commands").display
        stage.app.main.prompt.put("")
        await stage.say(pilot, "/nonsense")
        assert stage.app.main.prompt.text == "/nonsense"
        assert stage.texts == []
        await stage.ask(pilot, "/usr/bin is a folder")
        assert stage.texts[0] == ("user", "/usr/bin is a folder")


async def test_a_long_copy_goes_to_a_file_where_no_clipboard_takes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("exltui.app.app.copy_with_tool", lambda text: "")
    stage = Stage(client=Speaker(["word " * 20_000]))
    copied: list[str] = []
    monkeypatch.setattr(stage.app, "copy_to_clipboard", copied.append)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        message = stage.app.dialogue.conversation.add("user", "y" * 100_000)
        stage.app.dialogue.show()
        stage.app.copy(message.text)
        await stage.settle(pilot)
        assert not copied
        assert (tmp_path / "exltui" / "copied.txt").read_text() == "y" * 100_000


async def test_a_message_is_read_in_the_pager_and_edited_in_the_editor(monkeypatch, tmp_path):
    stage = Stage(client=Speaker(["The Moon pulls."]))
    seen: list[str] = []
    monkeypatch.setattr(stage.app.messages, "_outside", lambda run: run())
    monkeypatch.setattr("exltui.app.messages.page_text", seen.append)
    monkeypatch.setattr("exltui.app.messages.edit_text", lambda text: text + " Twice.")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "v")
        assert seen == ["The Moon pulls."]
        await pilot.press("ctrl+e")
        await stage.settle(pilot)
        assert stage.texts[-1][1] == "The Moon pulls. Twice."


@pytest.mark.parametrize("size", [(80, 24), (40, 12)], ids=str)
async def test_a_paste_of_a_megabyte_is_a_mark_and_is_sent_whole(size):
    stage = Stage(client=Speaker(["Long."]))
    text = "line of text\n" * 80_000
    async with stage.app.run_test(size=size) as pilot:
        await stage.load(pilot)
        stage.app.main.prompt.take_in(text)
        await pilot.pause()
        assert stage.app.main.prompt.text == "[paste 1: 80,001 lines]"
        await pilot.press("enter")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[0] == ("user", text)


async def test_a_command_typed_at_once_on_a_message_goes_to_the_prompt():
    stage = Stage(client=Speaker(["The Moon pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up")
        for key in ("slash", *"lora"):  # in one packet, as a terminal sends what is typed quickly
            stage.app.post_message(events.Key(key, "/" if key == "slash" else key))
        await stage.settle(pilot)
        assert stage.app.main.prompt.text == "/lora"
        assert len(prompts(stage)) == 1, "the r of it wrote no other reply"


async def test_the_branches_are_there_before_the_engine_has_said_what_is_cached():
    class Deaf(Speaker):
        def send(self, command: protocol.Command) -> None:
            if not isinstance(command, protocol.Peek):
                super().send(command)

    stage = Stage(client=Deaf(["The Moon pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("ctrl+t")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, PickScreen)
        assert [choice.text for choice in stage.app.screen._choices] == [TIDES, "The Moon pulls."]


async def test_the_model_writes_what_the_person_could_say_next():
    stage = Stage(client=Speaker(["The Moon pulls.", "And on Mars?"]))
    stage.preparer.prepare_as_person = stage.preparer.prepare
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/impersonate")
        assert "no reply yet" in "".join(notice.message for notice in stage.app._notifications)
        await stage.ask(pilot, TIDES)
        await stage.say(pilot, "/impersonate")
        await stage.until(pilot, lambda: not stage.app.errands.busy)
        assert stage.app.main.prompt.text == "And on Mars?"
        assert len(stage.texts) == 2, "it is not sent before the person does"


async def test_a_reply_goes_on_by_one_token_or_by_as_many_as_are_said():
    stage = Stage(client=Speaker(["The Moon", " pulls", " at"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "n")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[-1][1] == "The Moon pulls"
        assert stage.preparer.orders[-1].max_new_tokens == 1
        await stage.say(pilot, "/continue 20")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.preparer.orders[-1].max_new_tokens == 20
        await stage.say(pilot, "/continue all")
        assert "all is no number of tokens" in "".join(notice.message for notice in stage.app._notifications)


async def test_page_keys_in_the_prompt_read_back_while_a_reply_comes():
    stage = Stage(client=Speaker(["Tides.\n\n" * 60]))
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why?")
        await stage.play(pilot, 5)
        talk = stage.app.main.talk
        end = talk.scroll_y
        await pilot.press("pageup")
        await pilot.pause()
        assert stage.app.main.prompt.has_focus
        assert talk.scroll_y < end
        where = talk.scroll_y
        await stage.play(pilot, 0.5)
        assert talk.scroll_y == where, "nothing jumps under a reader's eyes"
        for _ in range(9):
            await pilot.press("pagedown")
        assert talk.following
        stage.app.main.prompt.put("words\n" * 90)
        await pilot.pause()
        await pilot.press("pageup")
        await pilot.pause()
        assert talk.following, "the keys are the prompt's where it does not show all that is written"


@pytest.mark.parametrize("size", [(80, 24), (100, 30)])
async def test_what_does_not_fit_is_said_above_or_below_the_prompt_before_it_is_sent(size):
    stage = Stage(client=Speaker(["The Moon pulls"]))
    async with stage.app.run_test(size=size) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, "word " * 20)
        stage.preparer.context = 24
        stage.app.main.prompt.put("word " * 10)
        await stage.settle(pilot)
        asking = stage.app.main.query_one("#asking")
        shown = asking.border_title if size == (80, 24) else asking.border_subtitle
        assert "F6" in str(shown)
        assert "Enter sends" not in str(shown)
        stage.preparer.context = 512
        stage.app.main.prompt.put("word")
        await stage.settle(pilot)
        assert not asking.border_title


async def test_an_editor_that_is_not_there_gives_the_terminal_back(monkeypatch):
    monkeypatch.setenv("VISUAL", "no-such-editor")
    stage, back = Stage(), []

    @contextmanager
    def suspend():
        yield
        back.append("taken back")  # as in Textual: not where the block fails

    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        stage.app.suspend = suspend
        await pilot.press("ctrl+e")
        await stage.settle(pilot)
        assert back
        assert any("'no-such-editor' did not work" in notice.message for notice in stage.app._notifications)


async def test_a_reply_can_be_chosen_while_the_others_are_still_written():
    stage = Stage(client=Speaker(["One short.", "Two " + "long " * 30]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        stage.app.dialogue.conversation.add("user", TIDES)
        await stage.say(pilot, "/candidates 2")
        await stage.play(pilot, 0.6)
        assert stage.app.dialogue.busy
        await pilot.press("1")
        await stage.settle(pilot)
        assert stage.texts[-1] == ("assistant", "One short.")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[-1] == ("assistant", "One short."), "what was chosen stays on the screen"
        versions = stage.app.dialogue.conversation.siblings(stage.app.dialogue.conversation.head)
        assert [version.state for version in versions] == ["done", "done"]
        assert versions[1].text.count("long") == 30
