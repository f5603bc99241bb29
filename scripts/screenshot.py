"""Draw the pictures of the README's tour from recorded events, as keys bring them up: ``python scripts/screenshot.py [NAME ...]``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from app_stage import BIG, BROKEN, STARTER, Speaker, Stage  # noqa: E402 - it lies in tests/
from textual.pilot import Pilot  # noqa: E402

from exltui.protocol import Sampling  # noqa: E402

TIDES = "Why are there two tides a day?"
COLD = (
    "The Moon pulls the near side of the Earth more than its centre, and the centre more than the far side.\n\n"
    "1. **Near side**: the water is pulled ahead.\n2. **Far side**: the water stays behind.\n\nThe Earth turns under both once a day."
)
WARM = (
    "Picture the Earth as a ball in a stretched cloth: it bulges *towards* the Moon and *away* from it.\n\n"
    "> Two bulges, one turn a day: two high waters.\n\nThe Sun does the same, with about half the strength."
)
RUST = "A value has **one owner** at a time. A borrow lends it: many readers, or one writer.\n\n```rust\nlet name = &user.name;\n```"
PIEROGI = "For the dough: 500 g of flour, 250 ml of hot water, some oil.\n\n| Filling | Cook |\n|---|---|\n| potato and curd | 4 min |"
MARS = "Mars has two small moons, whose tides are tiny."
Act = Callable[[Stage, Pilot], Awaitable[None]]


async def conversation(stage: Stage, pilot: Pilot) -> None:
    await stage.ask(pilot, TIDES)


async def compare(stage: Stage, pilot: Pilot) -> None:
    await stage.ask(pilot, TIDES)
    stage.app.parts.presets = {"precise": Sampling(temperature=0.0), "creative": Sampling(temperature=1.2)}
    await stage.say(pilot, "/compare precise creative")
    await stage.until(pilot, lambda: not stage.app.dialogue.busy)


async def inspector(stage: Stage, pilot: Pilot) -> None:
    await stage.ask(pilot, TIDES)
    await pilot.press("alt+up", "i")
    await stage.play(pilot, 0.5)
    await pilot.press("right")
    await stage.play(pilot, 0.3)


async def microscope(stage: Stage, pilot: Pilot) -> None:
    await inspector(stage, pilot)
    await pilot.press("m")
    await stage.play(pilot, 0.5)


async def loader(stage: Stage, pilot: Pilot) -> None:
    await pilot.press("ctrl+l", "down")


async def sessions(stage: Stage, pilot: Pilot) -> None:
    for text, tag in ((TIDES, "physics"), ("Explain the borrow checker of Rust.", "rust"), ("A recipe for pierogi, please.", "kitchen")):
        await stage.ask(pilot, text)
        await pilot.press("ctrl+o", "t", *tag, "enter")
        await stage.settle(pilot)
        stage.wall.now += 7300
        if tag != "kitchen":
            await pilot.press("ctrl+n")
    await pilot.press("ctrl+o", "down", "p")


async def branches(stage: Stage, pilot: Pilot) -> None:
    await stage.ask(pilot, TIDES)
    await pilot.press("alt+up", "r")
    await stage.until(pilot, lambda: not stage.app.dialogue.busy)
    await stage.ask(pilot, "And on Mars?")
    await pilot.press("ctrl+t")


PICTURES: dict[str, tuple[tuple[int, int], str, Callable[[], Stage], Act]] = {
    "exltui": ((160, 45), "dark", lambda: Stage("markdown"), conversation),
    "compare": ((120, 30), "dark", lambda: Stage(client=Speaker([COLD, COLD, WARM])), compare),
    "inspector": ((100, 24), "dark", lambda: Stage(client=Speaker(["The Moon pulls"])), inspector),
    "microscope": ((110, 26), "dark", lambda: Stage(client=Speaker(["The Moon pulls"])), microscope),
    "loader": ((120, 30), "light", lambda: Stage(models=[BIG, STARTER, BROKEN]), loader),
    "sessions": ((140, 36), "dark", lambda: Stage(client=Speaker([COLD, RUST, PIEROGI])), sessions),
    "branches": (
        (100, 30),
        "dark",
        lambda: Stage(client=Speaker([COLD, WARM, MARS])),
        branches,
    ),
    "narrow": ((80, 24), "high-contrast", lambda: Stage("markdown"), conversation),
}


async def draw(name: str) -> None:
    """Act, and keep the screen as SVG in docs/."""
    size, theme, make, act = PICTURES[name]
    stage = make()
    async with stage.app.run_test(size=size) as pilot:
        stage.app.theme = theme
        if len(stage.library.models) == 1:
            await stage.load(pilot)
        await stage.settle(pilot)
        await act(stage, pilot)
        await stage.settle(pilot)
        (ROOT / "docs" / f"{name}.svg").write_text(stage.app.export_screenshot(title="exltui"), encoding="utf-8")


def main() -> int:
    if unknown := set(sys.argv[1:]) - set(PICTURES):
        sys.stderr.write(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}\n")
        return 2
    for name in sys.argv[1:] or PICTURES:
        asyncio.run(draw(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
