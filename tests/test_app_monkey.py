"""Random keys and sizes: nothing may raise, and what was sent stays."""

from __future__ import annotations

import random

from app_stage import BIG, STARTER, Stage

KEYS = (
    "ctrl+n ctrl+o ctrl+s ctrl+d ctrl+l ctrl+p f1 f2 f3 f4 f5 escape enter tab shift+tab up down left right "
    "alt+up alt+down alt+left alt+right pageup pagedown home end ctrl+j ctrl+c backspace delete slash question_mark "
    "y e r d u c t v p x k j 1 2 o g n R a A s space ctrl+r ctrl+f ctrl+t ctrl+e f6 f7 f8 f9 left_square_bracket right_square_bracket"
).split()
SIZES = [(160, 45), (100, 30), (80, 24), (60, 18), (30, 8), (10, 3), (131, 29)]


async def test_six_hundred_random_keys_and_sizes_raise_nothing():
    stage = Stage("markdown", models=[STARTER, BIG], model="smollm2-135m")
    stage.library.resolve = lambda name: STARTER.path
    stage.library.fetch = lambda transfer, cancelled: STARTER.path
    stage.app.copy_to_clipboard = lambda text: None
    chance = random.Random(7)
    async with stage.app.run_test(size=(160, 45)) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "Why are there two tides a day?")
        first = stage.app.dialogue.conversation
        for number in range(600):
            key = chance.choice(KEYS)
            if key == "ctrl+c":
                stage.clock.now += 5  # never twice within a second: that quits
            await pilot.press(key)
            if number % 10 == 0:
                stage.clock.now += 0.3
                stage.app.pump()
            if number % 60 == 0:
                await pilot.resize_terminal(*chance.choice(SIZES))
        await stage.settle(pilot)
        texts = [message.text for message in first] + [m.text for deletion in first._deleted for m in deletion.messages]
        assert "Why are there two tides a day?" in texts
