"""The other end of a pseudo-terminal, for measuring programs that draw on one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LETTERS = "абвгдежзиклмнопрстуфхцчшщэюя"  # for keys whose echo is looked for: they are in no answer
QUESTION, ANSWER = b"\x1b[?2026$p", b"\x1b[?2026;2$y"  # whether synchronised output is there, as xterm and others are asked
SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class Terminal:
    """Runs ``command`` in a terminal of ``size`` and answers its questions for synchronised output.

    ``takes`` is how many bytes a second the line carries; None: as many as there are. ``received`` counts bytes.
    """

    def __init__(
        self, command: Sequence[str], size: str, environment: Mapping[str, str], *, fds: Sequence[int] = (), takes: float | None = None
    ) -> None:
        columns, rows = (int(part) for part in size.split("x"))
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        told = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(columns), "LINES": str(rows), "PYTHONPATH": str(ROOT)}
        whole = {**os.environ, **told, **environment}
        whole.pop("SSH_CONNECTION", None)
        self.process = subprocess.Popen(
            list(command), stdin=side, stdout=side, stderr=side, env=whole, cwd=ROOT, pass_fds=fds, start_new_session=True
        )
        os.close(side)
        self.received = 0
        self.screen = b""  # what came since the last ``press``
        self._takes = takes
        self._due = time.perf_counter()  # when the line is free again
        self._tail = b""  # may hold the beginning of a question

    def press(self, keys: str) -> None:
        self.screen = b""
        os.write(self.main, keys.encode())

    def read(self, seconds: float) -> bytes:
        """What comes within so many seconds; returns with the first bytes."""
        wait = self._due - time.perf_counter()
        if wait > 0:
            time.sleep(min(wait, seconds))
            if wait > seconds:
                return b""
        if not select.select([self.main], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.main, 1 << 16 if self._takes is None else 16)
        except OSError:  # the program has ended
            data = b""
        if not data:
            time.sleep(min(seconds, 0.05))
            return b""
        if self._takes is not None:
            self._due = max(self._due, time.perf_counter()) + len(data) / self._takes
        self.received += len(data)
        self.screen += data
        asked = self._tail + data
        for _ in range(asked.count(QUESTION)):
            os.write(self.main, ANSWER)
        self._tail = asked.rpartition(QUESTION)[2][-len(QUESTION) + 1 :]
        return data

    def until(self, text: str, seconds: float) -> float:
        """Wait for ``text``; the time (``perf_counter``) when it was there."""
        end = time.perf_counter() + seconds
        while text.encode() not in SEQUENCE.sub(b"", self.screen):
            if time.perf_counter() > end or (self.process.poll() is not None and not self.read(0)):
                raise TimeoutError(f"{text!r} did not come within {seconds} s; last: {SEQUENCE.sub(b'', self.screen)[-2000:]!r}")
            self.read(0.05)
        return time.perf_counter()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.main)
