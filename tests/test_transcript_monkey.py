"""Random use of the transcript: whatever is done in whatever order, every row in view is there and every height is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection

from exltui.app.transcript import Entry, Transcript
from exltui.app.widgets.prompt import PromptBox

ANSWER = (Path(__file__).parent / "data" / "answer.md").read_text(encoding="utf-8")
STEPS = 150


class Stage(App[None]):
    CSS = "Transcript { height: 1fr; }"

    def compose(self) -> ComposeResult:
        yield Transcript()
        yield PromptBox()


class Monkey:
    """Does one random thing at a time to a transcript."""

    def __init__(self, app: Stage, seed: int) -> None:
        self.random = random.Random(seed)
        self.app = app
        self.talk = app.query_one(Transcript)
        self.number = 0
        self.open: list[str] = []
        self.resized: tuple[int, int] | None = None

    def act(self) -> None:
        name = self.random.choice("add begin feed feed feed finish resize theme scroll cursor follow show meta select".split())
        getattr(self, name)()

    def add(self) -> None:
        self.number += 1
        role = self.random.choice(["user", "assistant"])
        self.talk.add(Entry(f"e{self.number}", role, "x", ANSWER[: self.random.randrange(3000)]))

    def begin(self) -> None:
        self.number += 1
        self.open.append(f"e{self.number}")
        self.talk.add(Entry(f"e{self.number}", "assistant", "x", "", "", "streaming"))

    def show(self) -> None:
        if self.random.random() < 0.2:
            self.number += 1
            self.open = [f"e{self.number}d"]
            entries = [Entry(f"e{self.number}{letter}", "assistant", "x", ANSWER * self.random.randrange(3)) for letter in "abcde"]
            entries[3].state = "streaming"
            self.talk.show(entries)

    def feed(self) -> None:
        if self.open:
            at = self.random.randrange(4000)
            self.talk.feed(self.random.choice(self.open), ANSWER[at : at + self.random.randrange(400)])

    def finish(self) -> None:
        if self.open:
            id = self.open.pop(self.random.randrange(len(self.open)))
            self.talk.finish(id, "meta", self.random.choice(["done", "stopped", "failed"]), "why")

    def resize(self) -> None:
        self.resized = (self.random.choice([3, 10, 20, 79, 80, 130, 200]), self.random.choice([1, 2, 3, 5, 24, 45]))

    def theme(self) -> None:
        self.app.theme = self.random.choice(["nord", "textual-light", "textual-dark"])

    def scroll(self) -> None:
        self.talk.scroll_relative(y=self.random.randrange(-60, 60))

    def cursor(self) -> None:
        self.talk.move_cursor(self.random.choice([-3, -1, 1]))

    def follow(self) -> None:
        self.talk.follow()

    def meta(self) -> None:
        self.talk.set_meta(f"e{self.random.randrange(self.number + 1)}", "m" * self.random.randrange(30))

    def select(self) -> None:
        self.talk.get_selection(Selection(Offset(0, 0), Offset(5, self.talk._tops[-1])))

    def check(self) -> None:
        talk = self.talk
        if talk._grown or talk._laid_out != talk.size.width:
            return
        assert talk._tops[-1] == sum(item.height for item in talk._items)
        for y in range(talk.size.height):
            row = talk.scroll_offset.y + y
            assert (talk.row(row) is not None) == (row < talk._tops[-1]), f"row {row} in view is not drawn"
            assert talk.render_line(y).cell_length == talk.size.width


@pytest.mark.parametrize("seed", [1, 12, 2026])
async def test_random_use(seed: int) -> None:
    app = Stage()
    async with app.run_test(size=(100, 30)) as pilot:
        monkey = Monkey(app, seed)
        for _ in range(STEPS):
            monkey.act()
            if monkey.resized:
                await pilot.resize_terminal(*monkey.resized)
                await pilot.pause()
                monkey.resized = None
            if monkey.random.random() < 0.5:
                await pilot.pause()
            monkey.check()
