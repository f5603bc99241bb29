"""What commands print: one JSON object, progress lines on a terminal, sizes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

INTERVAL = 0.2  # seconds between two repaints of the progress line
QUIET_INTERVAL = 10.0  # and between two lines where standard error is no terminal


def print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False))


def size(count: float) -> str:
    """Bytes in the unit that people read: 269 MB, 1.4 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            value = count / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{count:.0f} B"


class ProgressLine:
    """One line on standard error that is painted over, with MB/s; now and then a line of its own where that is no terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._stage = ""
        self._began = self._shown = 0.0
        self._first = 0  # bytes that were there when the stage began
        self._painted = False

    def __call__(self, stage: str, done: int, total: int, unit: str = "B") -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.end()
            self._stage, self._began, self._shown, self._first = stage, now, 0.0 if self._terminal else now, done
        if now - self._shown < (INTERVAL if self._terminal else QUIET_INTERVAL) and not (self._painted and done == total):
            return
        self._shown = now
        text = self._text(done, total, unit, now - self._began)
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{text}")
            self._painted = True
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _text(self, done: int, total: int, unit: str, passed: float) -> str:
        if unit != "B":
            return f"{self._stage} {done} of {total} {unit}"
        share = f"{100 * done // total:3d} %  {size(done)} of {size(total)}" if total else "..."
        rate = f"  {(done - self._first) / passed / 1e6:.1f} MB/s" if passed > 1 and done > self._first else ""
        return f"{self._stage} {share}{rate}"

    def end(self) -> None:
        """Leave the last state on its own line."""
        if self._painted:
            sys.stderr.write("\n")
            self._painted = False
