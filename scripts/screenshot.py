"""Draw the README's picture of the app from a recorded event log: ``python scripts/screenshot.py [FILE.svg] [COLUMNSxROWS] [THEME]``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from app_stage import Stage  # noqa: E402 - it lies in tests/


async def draw(target: Path, size: tuple[int, int], theme: str) -> None:
    """Ask one question, play the recorded reply, and keep the screen as SVG."""
    stage = Stage("markdown", theme=theme)
    async with stage.app.run_test(size=size) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, "Why are there two tides a day?")
        target.write_text(stage.app.export_screenshot(title="exltui"), encoding="utf-8")


def main() -> int:
    target, size, theme = (*sys.argv[1:4], *("docs/exltui.svg", "160x45", "dark")[len(sys.argv) - 1 :])
    columns, _, rows = size.partition("x")
    asyncio.run(draw(Path(target), (int(columns), int(rows)), theme))
    return 0


if __name__ == "__main__":
    sys.exit(main())
