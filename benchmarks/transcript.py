"""What a streamed reply costs: bytes to the terminal, CPU, frames, and how long a key takes to show, in a pseudo-terminal.

    python benchmarks/transcript.py                      # 160x45 and 80x24, 50 tokens/s
    python benchmarks/transcript.py --rate 200 --history 400 --long 20000

A child process runs a small app around the transcript and the prompt box and feeds a recorded answer; this process plays the terminal.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ANSWER = ROOT / "tests" / "data" / "answer.md"
BARS = {"160x45": 400, "80x24": 250}  # bytes a token, at 10 frames/s or more
LETTERS = "абвгдежзиклмнопрстуфхцчшщэюя"  # none of them in the answer
TOKEN = re.compile(r" ?[A-Za-z]{1,12}|\s+|\d{1,3}|[^\w\s]{1,3}|.")


def tokens_of(text: str) -> list[str]:
    """Pieces about as long as a model's tokens."""
    return TOKEN.findall(text)


@dataclass
class Child:
    """What the app process is told."""

    rate: float
    history: int
    long: int
    report: int


def run_child(options: Child) -> None:
    """Run the app in this process; the report pipe gets one JSON line when streaming begins and one when it has ended."""
    from textual.app import App, ComposeResult

    from exltui import paths
    from exltui.app.themes import read_theme
    from exltui.app.transcript import Entry, Transcript
    from exltui.app.widgets.prompt import PromptBox

    answer = ANSWER.read_text(encoding="utf-8")
    pieces = tokens_of(answer)
    if options.long:
        pieces = (pieces * (options.long // len(pieces) + 1))[: options.long]

    class Bench(App[None]):
        CSS = "Transcript { height: 1fr; } PromptBox { border: none; max-height: 50%; }"

        def compose(self) -> ComposeResult:
            yield Transcript()
            yield PromptBox()

        def on_mount(self) -> None:
            theme = read_theme(paths.themes_dir() / "dark.toml")
            self.register_theme(theme)
            self.theme = theme.name
            self.fed = 0
            talk = self.query_one(Transcript)
            entries = [Entry("u0", "user", "you", "Why are there two tides a day?")]
            for number in range(options.history):
                entries.append(Entry(f"h{number}", "assistant" if number % 2 else "user", "llama", answer if number % 2 else "And why?"))
            talk.show(entries)
            self.query_one(PromptBox).focus()
            self.set_timer(1.0, self.begin)

        def begin(self) -> None:
            self.query_one(Transcript).add(Entry("reply", "assistant", "llama", "", "", "streaming"))
            self.report("begin")
            self.started = time.perf_counter()
            self.clock = self.set_interval(1 / 30, self.feed)

        def feed(self) -> None:
            """Events come as the engine sends them: at most 30 a second, each with what was generated since the last."""
            due = min(len(pieces), int((time.perf_counter() - self.started) * options.rate))
            if due > self.fed:
                self.query_one(Transcript).feed("reply", "".join(pieces[self.fed : due]))
                self.fed = due
            if due == len(pieces):
                self.clock.stop()
                self.query_one(Transcript).finish("reply", f"{due} tok")
                self.set_timer(0.3, self.done)

        def done(self) -> None:
            self.report("end")
            self.exit()

        def report(self, what: str) -> None:
            line = {"what": what, "tokens": len(pieces), "cpu": time.process_time(), "time": time.perf_counter()}
            os.write(options.report, (json.dumps(line) + "\n").encode())

    Bench().run()


@dataclass
class Measured:
    """One run."""

    size: str
    tokens: int = 0
    sent: int = 0
    frames: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    echoes: list[float] = field(default_factory=list)

    def report(self) -> dict[str, float | str]:
        cut = statistics.quantiles(self.echoes, n=100) if len(self.echoes) > 1 else [0.0] * 99
        return {
            "size": self.size,
            "tokens": self.tokens,
            "bytes_per_token": round(self.sent / max(1, self.tokens), 1),
            "bytes_per_second": round(self.sent / max(self.seconds, 1e-9)),
            "frames_per_second": round((self.frames - len(self.echoes)) / max(self.seconds, 1e-9), 1),
            "cpu_share": round(self.cpu / max(self.seconds, 1e-9), 3),
            "echo_ms_p50": round(1000 * cut[49], 1),
            "echo_ms_p90": round(1000 * cut[89], 1),
            "echo_ms_p99": round(1000 * cut[98], 1),
        }


class Terminal:
    """The other end of the pseudo-terminal: takes what the app writes, types letters, and answers the question for synchronised output."""

    def __init__(self, size: str, arguments: list[str]) -> None:
        columns, rows = (int(part) for part in size.split("x"))
        self.measured = Measured(size)
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.reports, report = os.pipe()
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "COLUMNS": str(columns),
            "LINES": str(rows),
        }
        environment.pop("SSH_CONNECTION", None)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", str(report), *arguments]
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=environment, cwd=ROOT, pass_fds=[report], start_new_session=True
        )
        os.close(side)
        os.close(report)
        self.streaming = False
        self.waiting: tuple[bytes, float] | None = None  # the letter that was typed, and when
        self.typed = 0
        self.begin: dict[str, float] = {}

    def run(self) -> Measured:
        """Play the terminal until the app ends."""
        next_key = time.perf_counter()
        while self.process.poll() is None:
            ready, _, _ = select.select([self.main, self.reports], [], [], 0.02)
            if self.reports in ready:
                self._report()
            if self.main in ready and not self._output():
                break
            if self.streaming and self.waiting is None and time.perf_counter() >= next_key:
                self._type()
                next_key = time.perf_counter() + 0.15
        self.process.wait()
        return self.measured

    def _type(self) -> None:
        letter = LETTERS[self.typed % len(LETTERS)]
        if self.typed and self.typed % len(LETTERS) == 0:
            os.write(self.main, b"\r")  # sends the line: the box is empty again
        self.typed += 1
        self.waiting = (letter.encode(), time.perf_counter())
        os.write(self.main, letter.encode())

    def _output(self) -> bool:
        try:
            data = os.read(self.main, 1 << 16)
        except OSError:
            return False
        now = time.perf_counter()
        if b"\x1b[?2026$p" in data:
            os.write(self.main, b"\x1b[?2026;2$y")
        if self.streaming:
            self.measured.sent += len(data)
            self.measured.frames += data.count(b"\x1b[?2026h")
        if self.waiting is not None and self.waiting[0] in data:
            self.measured.echoes.append(now - self.waiting[1])
            self.waiting = None
        return True

    def _report(self) -> None:
        for line in os.read(self.reports, 4096).decode().splitlines():
            report = json.loads(line)
            self.streaming = report["what"] == "begin"
            if self.streaming:
                self.begin = report
            else:
                self.measured.tokens = report["tokens"]
                self.measured.cpu = report["cpu"] - self.begin["cpu"]
                self.measured.seconds = report["time"] - self.begin["time"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="columns x rows, may be repeated")
    parser.add_argument("--rate", type=float, default=50, help="tokens a second")
    parser.add_argument("--history", type=int, default=0, help="messages before the reply")
    parser.add_argument("--long", type=int, default=0, help="tokens of the reply (the answer repeated), instead of the answer once")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(Child(options.rate, options.history, options.long, options.child))
        return 0
    failed = False
    passed_on = ["--rate", str(options.rate), "--history", str(options.history), "--long", str(options.long)]
    for size in options.size or list(BARS):
        report = Terminal(size, passed_on).run().report()
        over = size in BARS and (float(report["bytes_per_token"]) > BARS[size] or float(report["frames_per_second"]) < 9.5)
        failed = failed or over
        if options.json:
            print(json.dumps(report), flush=True)
        else:
            print("  ".join(f"{key} {value}" for key, value in report.items()), f"  (bar {BARS.get(size, '-')} bytes)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
