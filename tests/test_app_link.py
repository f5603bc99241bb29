"""Terminals that can little: slow ones, those without Unicode or colour, and screen readers."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from app_stage import Speaker, Stage
from rich.cells import cell_len
from textual.drivers.headless_driver import HeadlessDriver
from textual.widget import Widget

from exltui.app.linear import LinearChat
from exltui.app.link import QUESTION, WatchedFile, plain_sign, wants_plain_signs, watched
from exltui.app.widgets.slowly import CELLS

TIDES = "Why are there tides?"


class SlowFile:
    """A terminal that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None: ...


def test_what_the_terminal_has_not_taken_is_known():
    file = WatchedFile(SlowFile())
    assert not file.waiting
    file.write("frame")
    assert file.waiting
    file.flush()
    assert not file.waiting
    assert file.written == "frame"


class Line:
    """A terminal at the end of a line of so many bytes a second, whose time is counted and not waited for."""

    def __init__(self, rate: float, away: float = 0.0) -> None:
        self.now, self._free = 0.0, 0.0
        self._rate, self._away = rate, away
        self._answers: deque[float] = deque()
        self.file = WatchedFile(self, lambda: self.now)

    def write(self, text: str) -> None:
        self._free = max(self.now, self._free) + len(text.encode()) / self._rate
        self._answers += [self._free + self._away] * text.count(QUESTION)

    def flush(self) -> None: ...

    def send(self, size: int) -> None:
        self.file.write("x" * size)
        self.file.flush()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self._answers and self._answers[0] <= end:
            self.now = max(self.now, self._answers.popleft())
            self.file.answered()
        self.now = end

    @property
    def delay(self) -> float:
        """Seconds until the terminal would show something that is sent now."""
        return max(0.0, self._free - self.now)


def test_a_slow_line_is_known_by_the_answers_and_nothing_is_sent_ahead_of_it():
    line = Line(960)
    line.send(len(QUESTION))
    line.file.write(QUESTION)  # as Textual asks at the start
    line.send(4000)
    assert not line.file.slow
    line.wait(6)
    late = []
    for _ in range(600):  # half a minute of frames
        line.wait(0.05)
        if not line.file.waiting:
            line.send(200)
        late.append(line.delay)
    assert line.file.slow
    assert max(late[100:]) < 0.5
    assert min(late[100:]) == 0 or sum(late[100:]) / 500 < 0.4, "the line is not left idle for long"


@pytest.mark.parametrize("away", [0.0, 0.3])
def test_a_fast_line_is_never_slow_however_far_away_its_end_is(away):
    line = Line(1e6, away)
    line.file.write(QUESTION)
    line.send(8000)
    line.wait(1)
    sent = 0
    for _ in range(200):
        line.wait(0.05)
        if not line.file.waiting:
            line.send(200)
            sent += 1
        assert not line.file.slow
    assert sent > 150, "frames do not wait for the answer of the one before"


def test_a_terminal_that_never_answers_is_asked_no_more_and_never_waited_for():
    line = Line(1e6)
    file = WatchedFile(SlowFile(), lambda: line.now)
    file.write(QUESTION)
    for _ in range(100):
        line.now += 0.1
        file.write("frame")
        file.flush()
        assert not file.waiting
    assert file._file.written.count(QUESTION) == 1


async def test_on_a_slow_line_a_page_comes_in_parts_and_comes_whole():
    stage = Stage(client=Speaker(["word " * 900]))
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        stage.app._link = WatchedFile(SlowFile())
        stage.app._link._rate = 960.0
        await stage.say(pilot, TIDES)
        talk = stage.app.main.talk
        await stage.until(pilot, lambda: talk.scroll_offset.y > 0)
        assert len(talk._owed) > 10, "a page was turned, and its rows wait"
        painted, owed = [], set(talk._owed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Widget, "refresh", lambda self, *regions, **_: painted.extend(regions) or self)
            while talk._owed:
                before = sum(region.area for region in painted)
                talk._pay()
                assert sum(region.area for region in painted) - before <= CELLS + 80
        assert {region.y for region in painted} == owed


def test_a_driver_without_a_terminal_stays_as_it_is():
    assert issubclass(watched(HeadlessDriver, lambda file: pytest.fail("there is no file")), HeadlessDriver)


async def test_no_frame_is_drawn_while_the_last_one_waits_and_nothing_is_lost():
    stage = Stage(client=Speaker(["word " * 60]))
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        stage.app._link = WatchedFile(SlowFile())
        await stage.say(pilot, TIDES)
        stage.app._link.write("a frame")
        talk = stage.app.main.talk
        rows = talk._tops[-1]
        await stage.until(pilot, lambda: len(stage.texts[-1][1]) > 100)
        assert talk._tops[-1] == rows, "the reply grows, the screen waits"
        stage.app._link.flush()
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert talk._tops[-1] > rows


@pytest.mark.parametrize("char", "─│╭█▇▁●▸◂…✂é日ß\u0301")
def test_a_plain_sign_is_ascii_of_the_same_width(char):
    assert plain_sign(char).isascii()
    assert cell_len(plain_sign(char)) == cell_len(char)


async def test_every_line_is_ascii_where_the_terminal_has_no_unicode():
    stage = Stage("markdown", signs="ascii")
    async with stage.app.run_test(size=(100, 30)) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        strips = stage.app.screen._compositor.render_strips()
        text = "\n".join(strip.text for strip in strips)
        assert text.isascii(), sorted({char for char in text if not char.isascii()})
        assert "+-" in text


def test_signs_follow_the_locale_unless_the_settings_say(monkeypatch):
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert not wants_plain_signs("auto"), "nothing is known"
    monkeypatch.setenv("LANG", "C")
    assert wants_plain_signs("auto")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert not wants_plain_signs("auto")
    assert wants_plain_signs("ascii")


async def test_without_colour_the_focus_is_still_seen(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stage = Stage()
    async with stage.app.run_test(size=(160, 45)) as pilot:
        await stage.load(pilot)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert stage.app.no_color
        title = next(
            segment for strip in stage.app.screen._compositor.render_strips()[:1] for segment in strip if "Sampler" in segment.text
        )
        assert title.style.bold, "the pane with the focus has a bold title"


# ── line by line ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def linear(lines: list[str], replies: list[str]) -> str:
    """What is said when these lines are typed."""
    stage = Stage(client=Speaker(replies))
    stage.library.resolve = lambda name: stage.library.models[0].path
    clock = itertools.count()
    stage.app.parts.clock = stage.client.clock = lambda: float(next(clock))
    said: list[str] = []
    typed = iter(lines)

    def ask(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    assert LinearChat(stage.app.parts, ask, said.append).run() == 0
    return "".join(said)


def test_a_chat_line_by_line_is_said_in_order_and_without_control_characters():
    text = linear([TIDES, "/regenerate", "/previous", "/delete", "/undo", "/chats", "/open 1", "/quit"], ["The \x1b[31mMoon.", "The Sun."])
    assert text.startswith("Loading smollm2-135m.\nsmollm2-135m is loaded on cpu")
    assert "smollm2-135m: The Moon.\n" in text
    assert text.index("The Moon.") < text.index("The Sun.") < text.rindex("The Moon.")
    assert "1: Why are there tides?" in text
    assert "\x1b" not in text


def test_a_command_that_needs_the_screen_says_so():
    text = linear(["/tree", "/help", "/open 7"], [])
    assert "/tree needs the screen" in text
    assert "/regenerate: " in text
    assert "Say the number of a chat" in text
