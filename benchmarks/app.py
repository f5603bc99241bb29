"""How fast the app is, in a pseudo-terminal, against the bars that it is held to.

    python benchmarks/app.py                        # all of it
    python benchmarks/app.py paint open keys        # only these
    python benchmarks/app.py engine --rounds 5      # needs the starter model: exltui models get smollm2-135m

paint   the program's start until the prompt is there
open    Enter on a chat of 1,000 messages until its last words are there
keys    a key until its echo, while 200 tokens a second come into a reply of 20,000 tokens with 30 code blocks
engine  the engine's decoding speed under the app over its speed in ``exltui generate``, measured by turns
slow    a key until its echo while 50 tokens a second come, on a line that carries 960 bytes a second (9,600 baud)

``keys`` and ``slow`` are the app as it is with a scripted engine in its place; the others are the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from terminal import LETTERS, Terminal  # noqa: E402 - it lies beside this file

BARS = {"paint": 1.0, "open": 0.3, "keys": 0.05, "engine": 0.97, "slow": 1.0}
READY = "Enter sends"  # stands in the frame of the prompt
LAST_WORDS = "messagenumber1000"
SHORT, LONG = 1_324, 20_000  # tokens of the replies
SETTLE = 5.0  # seconds after the first token until the first key: the screen of the question must have come over the slow line
STORY = "Write a long story about a dragon, a lighthouse and a clockmaker."


def pieces(count: int) -> list[str]:
    """A reply of ``count`` pieces about as long as tokens: the recorded answer over and over, which has 3 code blocks in 2,000 of them."""
    from transcript import tokens_of

    answer = tokens_of((ROOT / "tests" / "data" / "answer.md").read_text(encoding="utf-8") + "\n\n")
    return (answer * (count // len(answer) + 1))[:count]


# ── the app with a scripted engine ───────────────────────────────────────────────────────────────────────────────────────────────


class ScriptedEngine:
    """Loads at once and answers with ``reply``: the first ``burst`` pieces within seconds, then ``rate`` a second in 30 events."""

    def __init__(self, reply: list[str], burst: int, rate: float, report: int) -> None:
        from exltui import protocol

        self._protocol = protocol
        self._reply, self._burst, self._rate, self._report = reply, burst, rate, report
        self._events: list[object] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        self._put(self._protocol.HostUp("0", ("cpu",), native=True))

    def _put(self, event: object) -> None:
        with self._lock:
            self._events.append(event)

    def poll(self) -> list[object]:
        with self._lock:
            events, self._events = self._events, []
        return events

    def send(self, command: object) -> None:
        protocol = self._protocol
        if isinstance(command, protocol.Load):
            told = (command.model_dir, "scripted", "LlamaForCausalLM", "f16", 16.0, 1, 32_768, 32_768, "cpu", 1, 1, 0.1)
            self._put(protocol.Loaded(command.id, *told))
        elif isinstance(command, protocol.Submit):
            threading.Thread(target=self._answer, args=(command.job.id,), daemon=True).start()

    def _answer(self, id: str) -> None:
        protocol, reply, said = self._protocol, self._reply, 0
        self._put(protocol.Prefill(id, 20, 20, 0))
        while said < self._burst:
            said += 200
            self._put(protocol.Text(id, "".join(reply[said - 200 : said]), 200))
            time.sleep(0.1)
        self._tell("begin")
        began = time.perf_counter()
        while said < len(reply):
            due = min(len(reply), self._burst + int((time.perf_counter() - began) * self._rate))
            if due > said:
                self._put(protocol.Text(id, "".join(reply[said:due]), due - said))
                said = due
            time.sleep(1 / 30)
        self._put(protocol.Done(id, protocol.Stats("stop_token", 20, 0, said, 0.1, said / self._rate, 7), ()))
        self._tell("end")

    def _tell(self, what: str) -> None:
        os.write(self._report, (json.dumps({"what": what, "cpu": time.process_time()}) + "\n").encode())

    def close(self) -> None: ...


def run_child(options: argparse.Namespace) -> None:
    """The app as ``exltui`` starts it, but for the engine and the tokenizer."""
    from app_stage import STARTER, FixedLibrary, PlainPreparer

    from exltui.app.app import ExltuiApp
    from exltui.app.start import assemble
    from exltui.cli.options import AppOptions

    parts = assemble(AppOptions(model="smollm2-135m"))
    parts.client = ScriptedEngine(pieces(options.tokens), options.burst, options.rate, options.child)
    parts.preparer = PlainPreparer()
    parts.library = FixedLibrary([STARTER])
    parts.library.resolve = lambda name: STARTER.path
    ExltuiApp(parts).run()


def stream(home: Path, size: str, tokens: int, burst: int, rate: float, every: float, takes: float | None = None) -> dict[str, float]:
    """Type a letter each ``every`` seconds while a reply comes: how long the echoes took, and what it cost."""
    reports, report = os.pipe()
    command = [sys.executable, __file__, "--child", str(report), "--tokens", str(tokens), "--burst", str(burst), "--rate", str(rate)]
    terminal = Terminal(command, size, environment(home), fds=[report], takes=takes)
    os.close(report)
    os.set_blocking(reports, False)
    try:
        terminal.until(READY, 60)
        terminal.until("scripted", 60)
        terminal.press("Why?\r")
        begin, end, echoes, between = {}, {}, [], []
        waiting, typed, next_key, sent = None, 0, 0.0, 0
        while not end:
            terminal.read(0.02)
            now = time.perf_counter()
            for line in _lines(reports):
                begin, end = (line, end) if line["what"] == "begin" else (begin, line)
                sent, next_key = (terminal.received, now + SETTLE) if not end else (sent, next_key)
            if waiting is not None and waiting[0].encode() in terminal.screen:
                echoes.append(now - waiting[1])
                between.append(terminal.received - waiting[2])
                waiting, next_key = None, max(now, waiting[1] + every)
            elif waiting is None and begin and now >= next_key:
                if typed and typed % len(LETTERS) == 0:
                    terminal.press("\x15")  # empties the line
                letter = LETTERS[typed % len(LETTERS)]
                typed += 1
                waiting = (letter, now, terminal.received)
                terminal.press(letter)
        streamed, seconds = tokens - burst, (tokens - burst) / rate
        cut = statistics.quantiles(echoes, n=100, method="inclusive")
        return {
            "keys": len(echoes), "p50": cut[49], "p90": cut[89], "p99": cut[98], "most": max(echoes), "bytes_to_echo": max(between),
            "bytes_per_token": (terminal.received - sent) / streamed, "cpu_share": (end["cpu"] - begin["cpu"]) / seconds,
        }  # fmt: skip
    finally:
        terminal.close()
        os.close(reports)


def _lines(pipe: int) -> list[dict[str, float | str]]:
    try:
        return [json.loads(line) for line in os.read(pipe, 4096).decode().splitlines()]
    except BlockingIOError:
        return []


# ── the program itself ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def environment(home: Path) -> dict[str, str]:
    """Folders of its own for a program, so that it begins as on a new machine. What was compiled before is kept."""
    return {"XDG_DATA_HOME": str(home / "data"), "XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state")}


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "exltui", *arguments]


def measure_paint(home: Path, size: str) -> float:
    """Seconds from the start of the program until the prompt is on the screen."""
    began = time.perf_counter()
    terminal = Terminal(program(), size, environment(home))
    try:
        return terminal.until(READY, 60) - began
    finally:
        terminal.close()


def measure_open(home: Path, size: str) -> float:
    """Seconds from Enter on a chat of 1,000 messages until its last words are on the screen."""
    from exltui.chat.store import SessionStore
    from exltui.chat.tree import Conversation

    answer = (ROOT / "tests" / "data" / "answer.md").read_text(encoding="utf-8")
    (home / "data" / "exltui").mkdir(parents=True, exist_ok=True)
    store = SessionStore(home / "data" / "exltui" / "sessions.db")
    chat, other = Conversation(title="A long chat"), Conversation(title="Another")
    for number in range(1000):
        role = "assistant" if number % 2 else "user"
        text = (answer[: 500 + 37 * number % 4000] if number % 2 else f"And why {number}?") + (LAST_WORDS if number == 999 else "")
        chat.add(role, text)
    other.add("user", "Hello")
    store.save_all(chat)
    store.save_all(other)
    store.close()
    terminal = Terminal(program("--session", other.id), size, environment(home))
    try:
        terminal.until(READY, 60)
        terminal.until("Enter load", 20)  # there is no model: the loader opens
        drain(terminal, 1.0)
        for key in ("\x1b", "\x0f", "\x1b[B"):  # Esc, Ctrl+O for the list of chats, and down to the long one
            terminal.press(key)
            drain(terminal, 0.7)
        began = time.perf_counter()
        terminal.press("\r")
        return terminal.until(LAST_WORDS, 60) - began
    finally:
        terminal.close()


def drain(terminal: Terminal, seconds: float) -> None:
    """Let the program draw for a while."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        terminal.read(0.05)


def measure_engine(home: Path, size: str, model: str, options: list[str], tokens: int) -> tuple[float, float]:
    """Tokens a second of one greedy reply in the app, and of the same one without it."""
    from exltui import paths
    from exltui.chat.store import SessionStore
    from exltui.models.catalog import resolve

    model = str(resolve(model, [paths.models_dir()]))  # the app gets folders of its own, which have no models
    command = [*program("generate"), "-m", model, *options, "-p", STORY, "--chat", "--greedy", "--max-new-tokens", str(tokens), "--json"]
    alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    folder = home / "config" / "exltui"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.toml").write_text(f"max_new_tokens = {tokens}\ntitles = false\n[sampling]\ntemperature = 0.0\n", encoding="utf-8")
    terminal = Terminal(program("-m", model, *options), size, environment(home))
    try:
        terminal.until(READY, 60)
        terminal.until(" tok/s", 60)  # stands in the status line as soon as a model is loaded
        drain(terminal, 1.0)
        terminal.press(f"{STORY}\r")
        store, stats = None, None
        end = time.perf_counter() + 300
        while stats is None and time.perf_counter() < end:
            drain(terminal, 0.5)
            store = store or SessionStore(home / "data" / "exltui" / "sessions.db")
            found = [message for chat in store.sessions() for message in store.load(chat.id) if message.stats is not None]
            stats = found[-1].stats if found else None
        if stats is None:
            raise TimeoutError("the app wrote no reply")
        return stats.new_tokens / stats.decode_seconds, alone["new_tokens"] / alone["decode_seconds"]
    finally:
        terminal.close()


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_a_new_home(measure: Callable[[Path], object]) -> object:
    with tempfile.TemporaryDirectory() as home:
        return measure(Path(home))


def report(name: str, size: str, value: float, text: str) -> bool:
    """Print one row; whether the bar is held."""
    bar = BARS[name]
    good = value >= bar if name == "engine" else value <= bar
    print(f"{name:<7} {size:<7} {text}  (bar {bar:g}){'' if good else '  MISSED'}", flush=True)
    return good


def row(name: str, size: str, options: argparse.Namespace) -> bool:
    if name in ("paint", "open"):
        measure = measure_paint if name == "paint" else measure_open
        times = [in_a_new_home(lambda home: measure(home, size)) for _ in range(options.rounds + 1)][1:]
        return report(
            name, size, statistics.median(times), f"{statistics.median(times):.3f} s (of {len(times)}: {min(times):.3f}-{max(times):.3f})"
        )
    if name == "engine":
        pairs = [
            in_a_new_home(lambda home: measure_engine(home, size, options.model, options.load, options.reply))
            for _ in range(options.rounds)
        ]
        ratio = statistics.median(app / alone for app, alone in pairs)
        both = " ".join(f"{app:.1f}/{alone:.1f}" for app, alone in pairs)
        return report(name, size, ratio, f"{ratio:.3f} of the speed without the app (tokens/s: {both})")
    if name == "keys":
        found = in_a_new_home(lambda home: stream(home, size, LONG, 0 if options.whole else LONG - 5_000, 200, 0.08))
    else:
        found = in_a_new_home(lambda home: stream(home, size, 2 * SHORT, 0, 50, 0.4, takes=960))
    figures = f"{found['keys']} keys, echo p50 {found['p50']:.3f} p90 {found['p90']:.3f} p99 {found['p99']:.3f} most {found['most']:.3f} s"
    cost = f"at most {found['bytes_to_echo']} bytes to an echo, {found['bytes_per_token']:.0f} a token, {found['cpu_share']:.0%} of a core"
    return report(name, size, found["p99"], f"{figures}; {cost}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(BARS)}; without any, all")
    parser.add_argument("--size", action="append", help="columns x rows, may be repeated (160x45 and 80x24)")
    parser.add_argument("--rounds", type=int, default=3, help="of paint, open and engine; the median counts")
    parser.add_argument("--whole", action="store_true", help="keys: the whole reply at 200 tokens a second, not only its last quarter")
    parser.add_argument("--model", default="smollm2-135m", help="engine: the model")
    parser.add_argument("--load", action="append", default=[], help="engine: a load option, such as --load=--threads=1")
    parser.add_argument("--reply", type=int, default=300, help="engine: tokens of the reply")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    for name in ("--tokens", "--burst"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options)
        return 0
    if unknown := set(options.what) - set(BARS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    sizes = {"slow": ["80x24"]}  # what such a line has at its end
    held = [row(name, size, options) for name in options.what or BARS for size in options.size or sizes.get(name, ["160x45", "80x24"])]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
