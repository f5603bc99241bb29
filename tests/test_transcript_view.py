"""The transcript as a person meets it: following, scrolling, the message cursor, copying, and how much is repainted."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Offset, Region
from textual.pilot import Pilot
from textual.selection import Selection

from exltui.app.transcript import Entry, Transcript
from exltui.app.transcript.view import KEPT_ROWS
from exltui.app.widgets.prompt import PromptBox

ANSWER = (Path(__file__).parent / "data" / "answer.md").read_text(encoding="utf-8")


class Counting(Transcript):
    """A transcript that counts the cells and rows it asks the terminal to repaint, and its layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = self.rows = self.layouts = self.full = 0

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False):
        if layout:
            self.layouts += 1
        if repaint and not layout:
            page = self.size.region if self.size else Region()
            for region in regions or (page,):
                shown = region.intersection(page)
                self.cells += shown.area
                self.rows += shown.height
                self.full += shown == page
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def restart(self) -> None:
        self.cells = self.rows = self.layouts = self.full = 0


class Stage(App[None]):
    CSS = "Counting { height: 1fr; } PromptBox { border: none; }"

    def __init__(self) -> None:
        super().__init__()
        self.selected: list[str | None] = []

    def compose(self) -> ComposeResult:
        yield Counting()
        yield PromptBox()

    @property
    def talk(self) -> Counting:
        return self.query_one(Counting)

    def on_transcript_selected(self, event: Transcript.Selected) -> None:
        self.selected.append(event.id)

    def shown(self) -> list[str]:
        return [self.talk.render_line(y).text.rstrip() for y in range(self.talk.size.height)]


def chat(messages: int) -> list[Entry]:
    return [
        Entry(f"m{number}", "assistant", "llama", f"{ANSWER}\n\nThis was reply {number}.", "412 tok")
        if number % 2
        else Entry(f"m{number}", "user", "you", f"Question {number}?")
        for number in range(messages)
    ]


async def stream(pilot: Pilot[None], talk: Transcript, text: str, size: int = 20, id: str = "r") -> None:
    """Feed ``text`` in portions, one drawn frame for each."""
    for at in range(0, len(text), size):
        talk.feed(id, text[at : at + size])
        talk._draw_grown()
        if at % (size * 20) == 0:
            await pilot.pause()
    await pilot.pause()


async def test_a_reply_is_followed_to_its_end() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show([Entry("q", "user", "you", "Why?")])
        app.talk.add(Entry("r", "assistant", "llama", "", "", "streaming"))
        await pilot.pause()
        assert any("…" in line for line in app.shown()), "an empty reply shows that it is on its way"
        await stream(pilot, app.talk, ANSWER)
        app.talk.finish("r", "1,300 tok 3.1 s")
        await pilot.pause()
        assert app.talk.following
        assert any("derivation." in line for line in app.shown())
        app.talk.select("r")
        await pilot.pause()
        assert "1,300 tok 3.1 s" in app.shown()[0]


async def test_scrolling_up_stops_following_and_end_resumes_it() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(4))
        app.talk.add(Entry("r", "assistant", "llama", "Start.\n\n", "", "streaming"))
        await pilot.pause()
        app.talk.focus()
        await pilot.press("pageup")
        await pilot.pause()
        before = app.shown()
        app.talk.restart()
        await stream(pilot, app.talk, ANSWER)
        assert not app.talk.following
        assert app.shown() == before, "nothing moves under the reader's eyes"
        assert app.talk.cells == 0, "nothing is sent for what is out of view"
        await pilot.press("end")
        await pilot.pause()
        assert app.talk.following
        assert any("derivation." in line for line in app.shown())


async def test_the_wheel_back_to_the_end_follows_again() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(4))
        await pilot.pause()
        app.talk.scroll_relative(y=-10)
        await pilot.pause()
        assert not app.talk.following
        app.talk.scroll_relative(y=10)
        await pilot.pause()
        assert app.talk.following


async def test_streaming_repaints_little_and_never_lays_out() -> None:
    """The budget behind the bytes a token: counted cells, so that a slow machine changes nothing. Measured: 44 cells a token."""
    app = Stage()
    async with app.run_test(size=(160, 45)) as pilot:
        app.talk.show(chat(40))
        app.talk.add(Entry("r", "assistant", "llama", "", "", "streaming"))
        await pilot.pause()
        app.talk.restart()
        await stream(pilot, app.talk, ANSWER, size=18)  # about five tokens a frame, as at 50 tokens/s
        tokens = len(ANSWER) / 3.6
        assert app.talk.layouts == 0
        assert app.talk.full <= 12, "a page is turned, rows are not scrolled one by one"
        assert app.talk.cells / tokens < 80


async def test_the_cost_of_a_frame_does_not_grow_with_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines drawn for 20,000 tokens with 30 code blocks: the last tenth costs what the second tenth did."""
    from exltui.app.transcript import body, fence

    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.add(Entry("r", "assistant", "llama", "", "", "streaming"))
        await pilot.pause()
        drawn = [0]
        wrapped, coded = body.draw_markdown, fence.draw_code_line
        monkeypatch.setattr(body, "draw_markdown", lambda drawing, width: drawn.__setitem__(0, drawn[0] + 1) or wrapped(drawing, width))
        monkeypatch.setattr(fence, "draw_code_line", lambda *given: drawn.__setitem__(0, drawn[0] + 1) or coded(*given))
        costs = []
        for _ in range(15):
            drawn[0] = 0
            await stream(pilot, app.talk, ANSWER + "\n\n", size=40)
            costs.append(drawn[0])
        assert len(app.talk.code_blocks("r")) == 45
        assert costs[-1] <= costs[1] * 1.05


async def test_a_thousand_messages_open_without_drawing_them() -> None:
    app = Stage()
    async with app.run_test(size=(120, 45)) as pilot:
        app.talk.show(chat(1000))
        await pilot.pause()
        drawn = [item for item in app.talk._items if item.drawn]
        assert len(drawn) <= 6
        assert any("This was reply 999." in line for line in app.shown())


async def test_scrolling_through_unmeasured_messages_shows_every_row_once() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(12))
        await pilot.pause()
        app.talk.focus()
        page = app.talk.size.height
        seen = app.shown()
        for _ in range(200):
            if app.talk.scroll_offset.y == 0:
                break
            top = seen[0]
            app.talk.scroll_relative(y=-(page - 1))
            await pilot.pause()
            shown = app.shown()
            if app.talk.scroll_offset.y > 0:
                assert shown[-1] == top, "the view moved by one page less a row, whatever was measured on the way"
            seen = shown
        assert "you" in app.shown()[0]
        rows = [app.talk.row(row).text.strip() for row in range(app.talk._tops[-1])]
        assert [row for row in rows if row.startswith("This was reply")] == [f"This was reply {n}." for n in range(1, 12, 2)]


async def test_memory_of_far_rows_is_given_back() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(200))
        await pilot.pause()
        for index in range(0, 200, 2):
            app.talk.select(f"m{index}")
            await pilot.pause()
        assert sum(item.height for item in app.talk._items if item.drawn) < KEPT_ROWS + 500


async def test_resize_keeps_the_place() -> None:
    app = Stage()
    async with app.run_test(size=(120, 30)) as pilot:
        app.talk.show(chat(20))
        await pilot.pause()
        app.talk.select("m10")
        await pilot.pause()
        assert any("Question 10?" in line for line in app.shown())
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert any("Question 10?" in line for line in app.shown())
        assert not app.talk.following


async def test_resize_keeps_following_the_end() -> None:
    app = Stage()
    async with app.run_test(size=(60, 15)) as pilot:
        app.talk.show(chat(2))
        await pilot.pause()
        for width, height in ((160, 200), (60, 15), (60, 30), (60, 12), (60, 300), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            assert app.talk.following, (width, height)
            assert any("This was reply 1." in line for line in app.shown()), (width, height)


async def test_another_theme_redraws_only_what_is_near() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(100))
        await pilot.pause()
        app.talk.select("m50")
        await pilot.pause()
        before = app.shown()
        old = app.talk._palette
        app.theme = "textual-light"
        await pilot.pause()
        assert app.talk._palette != old
        assert app.shown() == before
        near = [item for item in app.talk._items if item._palette is app.talk._palette]
        assert 0 < len(near) < 10
        segments = [segment for y in range(5) for segment in app.talk.render_line(y)]
        colours = {segment.style.color.name for segment in segments if segment.style and segment.style.color}
        assert app.talk.rich_style.color.name in colours, "text has the colour of the new theme"
        assert app.talk.get_component_rich_style("transcript--user").color.name in colours, "names have theirs"
        grounds = {segment.style.bgcolor.name for segment in segments if segment.style and segment.style.bgcolor}
        assert grounds == {app.talk.rich_style.bgcolor.name}


async def test_the_message_cursor_goes_from_message_to_message() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show([*chat(3), Entry("n", "system", "", "A notice.", state="notice"), Entry("last", "user", "you", "Bye")])
        await pilot.pause()
        assert app.talk.current is None
        assert [app.talk.move_cursor(-1) for _ in range(3)] == ["last", "m2", "m1"]
        await pilot.pause()
        assert app.shown()[0].startswith("▌llama")
        assert all(line.startswith("▌") for line in app.shown())
        assert [app.talk.move_cursor(1) for _ in range(3)] == ["m2", "last", None]
        await pilot.pause()
        assert app.talk.following
        assert not any(line.startswith("▌") for line in app.shown())
        assert app.selected == ["last", "m2", "m1", "m2", "last", None]


async def test_the_cursor_repaints_its_column_only() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show([Entry("a", "user", "you", "One"), Entry("b", "assistant", "llama", "Two")])
        await pilot.pause()
        app.talk.restart()
        app.talk.select("a")
        app.talk.select("b")
        await pilot.pause()
        assert 0 < app.talk.cells <= 12


async def test_a_click_puts_the_cursor_on_a_message() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show([Entry("a", "user", "you", "One"), Entry("b", "assistant", "llama", "Two")])
        await pilot.pause()
        await pilot.click(Counting, offset=(5, 4))
        await pilot.pause()
        assert app.talk.current == "b"


async def test_code_blocks_are_copied_by_their_number() -> None:
    app = Stage()
    async with app.run_test(size=(100, 60)) as pilot:
        text = "Say:\n\n```python\nprint('a')\n\n\tx\n```\n\n1. Then\n   ```\n   b\n   ```\n\n   indented\n"
        app.talk.show([Entry("a", "assistant", "llama", text), Entry("u", "user", "you", "Mine:\n```sh\nls\n```")])
        await pilot.pause()
        assert app.talk.code_blocks("a") == ["print('a')\n\n\tx", "b"]
        assert app.talk.code_blocks("u") == ["ls"]
        shown = "\n".join(app.shown())
        assert "[1]" in shown
        assert "[2]" in shown


async def test_selected_text_is_what_was_written() -> None:
    app = Stage()
    async with app.run_test(size=(40, 30)) as pilot:
        text = "A sentence that is longer than one row of this narrow view is.\n\n- an item\n\n> quoted\n\n```\ncode = 1\n```"
        app.talk.show([Entry("a", "assistant", "llama", text)])
        await pilot.pause()
        last = app.talk._tops[-1] - 1
        copied = app.talk.get_selection(Selection(Offset(0, 1), Offset(200, last)))
        assert copied is not None
        expected = "A sentence that is longer than one row of this narrow view is.\n\n• an item\n\nquoted\n\n\ncode = 1"
        assert copied[0] == expected
        part = app.talk.get_selection(Selection(Offset(3, 1), Offset(11, 1)))
        assert part is not None
        assert part[0] == "sentence"
        everything = app.talk.get_selection(Selection(None, None))
        assert everything is not None
        assert everything[0] == text


async def test_a_selection_by_mouse_is_shown() -> None:
    app = Stage()
    async with app.run_test(size=(60, 30)) as pilot:
        app.talk.show([Entry("a", "assistant", "llama", "Some words to select.")])
        await pilot.pause()
        await pilot.mouse_down(Counting, offset=(1, 1))
        await pilot.hover(Counting, offset=(11, 1))
        await pilot.mouse_up(Counting, offset=(11, 1))
        await pilot.pause()
        assert app.screen.get_selected_text() == "Some words"
        grounds = {segment.style.bgcolor for segment in app.talk.render_line(1) if segment.style}
        assert len(grounds) > 1


async def test_showing_the_same_chat_again_keeps_the_place_and_the_drawing() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show(chat(10))
        await pilot.pause()
        app.talk.select("m4")
        await pilot.pause()
        before, items = app.shown(), list(app.talk._items)
        app.talk.show([*chat(7), Entry("other", "assistant", "llama", "Another version.")])
        await pilot.pause()
        assert app.shown() == before
        assert app.talk._items[:7] == items[:7], "what did not change is not drawn again"
        app.talk.show([Entry("x", "user", "you", "A chat of its own.")])
        await pilot.pause()
        assert app.talk.following
        assert app.talk.current is None


async def test_a_reply_goes_on_when_its_chat_is_shown_again() -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        app.talk.show([Entry("r", "assistant", "llama", "One ", "", "streaming")])
        app.talk.feed("r", "two ")
        app.talk.show([Entry("other", "user", "you", "Elsewhere.")])
        app.talk.feed("r", "lost here, but the app has it ")
        app.talk.show([Entry("r", "assistant", "llama", "One two three ", "", "streaming")])
        app.talk.feed("r", "four")
        await pilot.pause(0.2)
        assert app.shown()[1].strip() == "One two three four"


async def test_feeding_what_is_not_shown_is_passed_over() -> None:
    app = Stage()
    async with app.run_test(size=(60, 20)) as pilot:
        app.talk.show([Entry("a", "assistant", "llama", "Here.")])
        app.talk.feed("gone", "text")
        app.talk.finish("gone", "meta")
        app.talk.set_meta("gone", "meta")
        await pilot.pause()
        assert app.talk.text("a") == "Here."


async def test_notices_errors_and_states_show_as_what_they_are() -> None:
    app = Stage()
    async with app.run_test(size=(80, 30)) as pilot:
        app.talk.show(
            [
                Entry("n", "system", "", "Loaded the model.", state="notice"),
                Entry("s", "assistant", "llama", "Half a", "12 tok", "stopped"),
                Entry("f", "assistant", "llama", "Some text", "", "failed", hint="The GPU ran out of memory."),
                Entry("e", "system", "", "No model\x1b[31m.", state="error", hint="Press Ctrl+L."),
            ]
        )
        await pilot.pause()
        shown = [line.strip() for line in app.shown()]
        assert shown[0] == "Loaded the model."
        assert shown[2].startswith("llama") and shown[2].endswith("12 tok · stopped")
        assert "┃ The GPU ran out of memory." in shown
        assert "┃ No model␛[31m." in shown
        assert "┃ Press Ctrl+L." in shown


async def test_nothing_runs_while_nothing_streams() -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        app.talk.show(chat(2))
        app.talk.add(Entry("r", "assistant", "llama", "", "", "streaming"))
        app.talk.feed("r", "words")
        await pilot.pause(0.3)
        assert any("words" in line for line in app.shown()), "the timer drew them"
        app.talk.finish("r", "")
        await pilot.pause(0.3)
        assert app.talk._timer is not None
        assert not app.talk._timer._active.is_set()


async def test_a_streaming_reply_above_other_entries_keeps_the_view() -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        app.talk.show(chat(2))
        app.talk.add(Entry("r", "assistant", "llama", "", "", "streaming"))
        for number in range(30):
            app.talk.add(Entry(f"n{number}", "system", "", f"Notice {number}.", state="notice"))
        await pilot.pause()
        app.talk.scroll_relative(y=-10)
        await pilot.pause()
        before = app.shown()
        await stream(pilot, app.talk, "One line.\n\nAnother line.\n\nA third.\n\n")
        assert app.shown() == before
        assert "Another line." in app.talk.text("r")


async def test_a_message_of_a_person_is_shown_letter_by_letter() -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        app.talk.show([Entry("u", "user", "you", "# no heading\n  **not bold**\n    indented")])
        await pilot.pause()
        shown = app.shown()
        assert [line.strip() for line in shown[1:4]] == ["# no heading", "**not bold**", "indented"]


async def test_a_very_long_message_of_a_person_is_cut_for_the_screen_only() -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        text = "word " * 200_000
        app.talk.show([Entry("u", "user", "you", text)])
        await pilot.pause()
        assert any("more characters" in line for line in app.shown())
        assert app.talk.text("u") == text


async def test_to_show_nothing_empties_the_view() -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        app.talk.show(chat(4))
        app.talk.select("m1")
        await pilot.pause()
        app.talk.show([])
        await pilot.pause()
        assert not any(app.shown())
        assert app.talk.current is None
        assert app.talk.scroll_offset.y == 0
