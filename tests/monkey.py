"""A monkey in front of the app: random keys, pastes and sizes. What was sent stays, and nothing raises or hangs.

python tests/monkey.py [KEYS] [SEED]          # 20,000 keys unless told otherwise
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from app_stage import BIG, STARTER, Speaker, Stage  # noqa: E402 - it lies beside this file
from textual import events  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

from exltui.app.transcript import Transcript  # noqa: E402
from exltui.chat.tree import Conversation  # noqa: E402

KEYS = (
    "ctrl+n ctrl+o ctrl+s ctrl+d ctrl+l ctrl+p f1 f2 f3 f4 f5 f6 f7 f8 f9 escape escape escape enter enter tab shift+tab "
    "up up down down left right alt+up alt+down alt+left alt+right pageup pagedown home end ctrl+j ctrl+c backspace delete "
    "slash question_mark left_square_bracket right_square_bracket minus plus space ctrl+r ctrl+f ctrl+t ctrl+e ctrl+u ctrl+w "
    "a b c d e f g h i j k l m n o p r s t u v w x y 0 1 2 3 R A G N"
).split()
NAMES = {
    "slash": "/",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "minus": "-",
    "plus": "+",
    "space": " ",
}
PASTES = (
    "/regenerate",
    "/candidates 2",
    "/compare",
    "/title x",
    "/tree",
    "words and\nlines\n" * 200,
    "日本語 👩‍👩‍👧 e\u0301",
    "\x1b[2J",
    "|a|b|\n|-|-|\n",
)
SIZES = ((80, 24), (100, 30), (60, 18), (30, 8), (10, 3), (131, 29), (80, 24))
TOGETHER = 30  # keys that come in one packet, at most
SAID = [
    "A **word**, `code`.\n\n```python\nprint(1)\n```\n",
    "<think>Well.</think>The Moon pulls.",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "No.",
]


class Monkey:
    """Presses keys and keeps what it sent: every message of a chat that it saw must still be somewhere."""

    def __init__(self, stage: Stage, pilot: Pilot, seed: int) -> None:
        self.stage, self.pilot, self.chance = stage, pilot, random.Random(seed)
        self.pressed = 0
        self.sent: dict[str, tuple[Conversation, str]] = {}  # id of each message of a person -> its chat and text

    async def act(self) -> None:
        """One packet of keys, or something rarer."""
        app, chance = self.stage.app, self.chance
        self.stage.clock.now += 1.1  # Ctrl+C twice within a second quits
        for key in dict.fromkeys(chance.choices(KEYS, k=chance.randint(1, TOGETHER))):
            app.post_message(events.Key(key, NAMES.get(key, key if len(key) == 1 else None)))
            self.pressed += 1
        what = chance.random()
        if what < 0.04:
            app.post_message(events.Paste(chance.choice(PASTES)))
        elif what < 0.06:
            await self.pilot.resize_terminal(*chance.choice(SIZES))
        if what < 0.3:
            self.stage.clock.now += chance.choice((0.1, 0.3, 2.0))
            app.pump()
        await self.pilot.pause(0)
        self.look()

    def look(self) -> None:
        """Keep what is new in the chat on the screen."""
        conversation = self.stage.app.dialogue.conversation
        for message in conversation:
            if message.role == "user":
                self.sent.setdefault(message.id, (conversation, message.text))

    def check(self) -> None:
        """Nothing that was sent is lost, and every row in view is there."""
        assert self.stage.app.is_running
        for id, (conversation, text) in self.sent.items():
            deleted = {message.id: message for deletion in conversation._deleted for message in deletion.messages}
            kept = conversation[id] if id in conversation else deleted.get(id)
            assert kept is not None, f"{text!r} is gone"
            assert kept.text == text
        for talk in self.stage.app.screen.query(Transcript):
            assert all(talk.render_line(y).cell_length == talk.size.width for y in range(talk.size.height))


async def play(keys: int, seed: int) -> Monkey:
    """Let a monkey press so many keys."""
    stage = Stage(client=Speaker(SAID * (keys // 4 + 1)), models=[STARTER, BIG], model="smollm2-135m")
    stage.library.resolve = lambda name: STARTER.path
    stage.library.fetch = lambda transfer, cancelled: STARTER.path
    stage.app.copy_to_clipboard = lambda text: None
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there two tides a day?")
        monkey = Monkey(stage, pilot, seed)
        while monkey.pressed < keys:
            await monkey.act()
            if monkey.chance.random() < 0.05:
                monkey.check()
        await stage.settle(pilot)
        monkey.check()
    return monkey


def main() -> int:
    keys, seed = (*(int(word) for word in sys.argv[1:3]), *(20_000, 7)[len(sys.argv) - 1 :])
    began, used = time.perf_counter(), time.process_time()
    monkey = asyncio.run(play(keys, seed))
    spent = f"{time.perf_counter() - began:.0f} s, {time.process_time() - used:.0f} s of one core"
    sys.stdout.write(f"{monkey.pressed:,} keys, {len(monkey.sent):,} messages sent, none lost, nothing raised; {spent}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
