"""The prompt box under the fingers."""

from __future__ import annotations

import time

import pytest
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.events import Paste

from exltui.app.widgets.prompt import LONG_TEXT, PromptBox


class Desk(App[None]):
    CSS = "#half { height: auto; max-height: 50%; } PromptBox { border: none; max-height: 100%; }"

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="half"):
            yield PromptBox()

    @property
    def box(self) -> PromptBox:
        return self.query_one(PromptBox)

    def on_mount(self) -> None:
        self.box.focus()

    def on_prompt_box_submitted(self, event: PromptBox.Submitted) -> None:
        self.sent.append(event.text)


async def test_enter_sends_and_empties_the_box() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await pilot.press("h", "i", "enter")
        await pilot.pause()
        assert app.sent == ["hi"]
        assert app.box.text == ""


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter"])
async def test_new_line_keys(key: str) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await pilot.press("a", key, "b", "enter")
        await pilot.pause()
        assert app.sent == ["a\nb"]


async def test_blank_text_is_not_sent() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await pilot.press("space", "ctrl+j", "enter")
        await pilot.pause()
        assert app.sent == []
        assert app.box.text == " \n"


async def test_the_box_grows_to_half_of_the_room() -> None:
    app = Desk()
    async with app.run_test(size=(60, 20)) as pilot:
        assert app.box.size.height == 1
        for _ in range(4):
            await pilot.press("a", "ctrl+j")
        await pilot.pause()
        assert app.box.size.height == 5
        for _ in range(20):
            await pilot.press("a", "ctrl+j")
        await pilot.pause()
        assert app.box.size.height == 10


async def test_history_keeps_the_draft() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        app.box.set_history(["first", "second\nwith two lines", " "])
        await pilot.press("d", "r")
        await pilot.press("up")
        assert app.box.text == "second\nwith two lines"
        await pilot.press("up")
        assert app.box.text == "first"
        await pilot.press("up")
        assert app.box.text == "first", "the history ends here"
        await pilot.press("down")
        assert app.box.text == "second\nwith two lines"
        await pilot.press("down")
        assert app.box.text == "dr"
        await pilot.press("a", "f", "t")
        assert app.box.text == "draft"


async def test_up_and_down_move_within_several_rows_first() -> None:
    app = Desk()
    async with app.run_test(size=(30, 20)) as pilot:
        app.box.set_history(["old"])
        app.box.put("one\ntwo\nthree")
        await pilot.press("up", "up")
        assert app.box.text == "one\ntwo\nthree"
        assert app.box.cursor_location[0] == 0
        await pilot.press("up")
        assert app.box.text == "old"
        await pilot.press("down")
        assert app.box.text == "one\ntwo\nthree"
        app.box.put("word " * 20)  # wraps over several rows of one line
        await pilot.press("up")
        assert app.box.text == "word " * 20


async def test_what_was_sent_is_in_the_history() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await pilot.press("a", "enter", "b", "enter", "b", "enter", "up", "up")
        assert app.box.text == "a"


async def test_a_megabyte_is_pasted_without_a_freeze_and_sent_whole() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        paste = "line of text\r\n" * 75_000
        await pilot.press("s", "e", "e", "space")
        start = time.perf_counter()
        app.box.post_message(Paste(paste))
        await pilot.pause()
        assert time.perf_counter() - start < 1.0  # 0.02 s on the machine this was written on; inserted as text it takes many seconds
        assert app.box.text == "see [paste 1: 75,001 lines]"
        await pilot.press("enter")
        await pilot.pause()
        assert app.sent == ["see " + paste.replace("\r\n", "\n")]


async def test_a_mark_taken_out_takes_the_paste_out() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        app.box.post_message(Paste("x" * (LONG_TEXT + 1)))
        await pilot.pause()
        assert app.box.text == f"[paste 1: {LONG_TEXT + 1:,} characters]"
        await pilot.press("backspace", "enter")
        await pilot.pause()
        assert len(app.sent[0]) < 40


async def test_two_pastes_keep_their_places() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        for sign in "ab":
            app.box.post_message(Paste(sign * (LONG_TEXT + 1)))
            await pilot.pause()
            await pilot.press("space")
        assert app.box.full_text == "a" * (LONG_TEXT + 1) + " " + "b" * (LONG_TEXT + 1) + " "


async def test_a_short_paste_is_text_and_its_escapes_are_shown() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        app.box.post_message(Paste("a\r\nb\x1b[31m"))
        await pilot.pause()
        assert app.box.text == "a\nb␛[31m"


async def test_a_paste_replaces_the_selection() -> None:
    app = Desk()
    async with app.run_test() as pilot:
        app.box.put("one two")
        await pilot.press("shift+left", "shift+left", "shift+left")
        app.box.post_message(Paste("three"))
        await pilot.pause()
        assert app.box.text == "one three"
        await pilot.press("ctrl+z")
        assert app.box.text == "one two"


async def test_nothing_blinks() -> None:
    app = Desk()
    async with app.run_test():
        assert app.box.cursor_blink is False
        assert app.box.language is None
