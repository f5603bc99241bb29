"""The program in a real terminal, from the first key to the last: in tmux where it is installed, and always in an emulated one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 100, 30
PATIENCE = 600.0  # seconds; the first load may build the native extension
KEYS = {"Enter": "\r", "Escape": "\x1b", "C-q": "\x11", "C-o": "\x0f", "F1": "\x1bOP", "C-s": "\x13"}


def environment(home: Path) -> dict[str, str]:
    """Folders of its own for what the program writes; what was compiled before is kept."""
    return {
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }


class Tmux:
    """tmux with a server of its own, on which nobody looks."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._base = ["tmux", "-S", str(home / "tmux"), "-f", os.devnull]
        words = ["env", "-u", "COLUMNS", "-u", "LINES", *(f"{name}={value}" for name, value in environment(home).items()), *command]
        self._tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), shlex.join(words))

    def _tmux(self, *arguments: str) -> str:
        return subprocess.run([*self._base, *arguments], capture_output=True, text=True, check=False, encoding="utf-8").stdout

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def screen(self) -> str:
        time.sleep(0.1)
        return self._tmux("capture-pane", "-p")

    def running(self) -> bool:
        return bool(self._tmux("list-sessions").strip())

    def close(self) -> None:
        self._tmux("kill-server")


class Emulator:
    """A pseudo-terminal whose bytes pyte makes a screen of."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        told = {**os.environ, **environment(home), "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        self._process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=told, start_new_session=True)
        os.close(side)
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def press(self, key: str) -> None:
        os.write(self._main, KEYS[key].encode())

    def screen(self) -> str:
        end = time.monotonic() + 0.1
        while (left := end - time.monotonic()) > 0 and select.select([self._main], [], [], left)[0]:
            try:
                self._stream.feed(os.read(self._main, 1 << 16))
            except OSError:  # the program has ended
                break
        return "\n".join(self._screen.display)

    def running(self) -> bool:
        return self._process.poll() is None

    def hang_up(self) -> int:
        """Take the terminal away -> the program's exit status."""
        os.close(self._main)
        try:
            return self._process.wait(120)
        finally:
            self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)


@pytest.fixture(params=["tmux", "emulator"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Tmux | Emulator]]:
    """Starts the program in a terminal; each start has the same folders."""
    if request.param == "tmux" and shutil.which("tmux") is None:
        pytest.skip("tmux is not installed; the emulated terminal does the same")
    opened: list[Tmux | Emulator] = []

    def begin(*arguments: str) -> Tmux | Emulator:
        kind = Tmux if request.param == "tmux" else Emulator
        opened.append(kind([sys.executable, "-m", "exltui", *arguments], tmp_path))
        return opened[-1]

    yield begin
    for terminal in opened:
        terminal.close()


def wait(terminal: Tmux | Emulator, met: Callable[[str], bool]) -> str:
    """The screen as soon as it is so."""
    end = time.monotonic() + PATIENCE
    while not met(screen := terminal.screen()):
        assert time.monotonic() < end, f"it did not get there; the screen is\n{screen}"
        assert terminal.running(), f"the program ended; the screen was\n{screen}"
    return screen


@pytest.mark.usefixtures("starter_model")
def test_a_chat_from_the_first_key_to_the_last_and_again_after_a_restart(start, starter_models_dir, tmp_path):
    settings = tmp_path / "config" / "exltui" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[sampling]\ntemperature = 0.0\n")  # the likeliest reply, not one drawn by chance
    arguments = ("--models-dir", str(starter_models_dir), "-m", "smollm2-135m", "--threads", "1")
    terminal = start(*arguments)
    wait(terminal, lambda screen: "Enter sends" in screen)
    terminal.press("F1")
    wait(terminal, lambda screen: "Help" in screen)
    terminal.press("Escape")
    wait(terminal, lambda screen: "Help ·" not in screen)
    terminal.type("Name the capital of France.")
    wait(terminal, lambda screen: "capital of France." in screen)
    terminal.press("Enter")
    screen = wait(terminal, lambda screen: "Paris" in screen and "tok" in screen)
    assert "\x1b" not in screen
    terminal.press("C-q")
    end = time.monotonic() + PATIENCE
    while terminal.running():
        terminal.screen()
        assert time.monotonic() < end, "the program did not end"

    again = start(*arguments)
    wait(again, lambda screen: "Paris" in screen and "capital of France." in screen)
    again.press("C-q")


def test_the_program_ends_with_a_terminal_that_sends_no_signal(tmp_path):
    (tmp_path / "models").mkdir()
    terminal = Emulator([sys.executable, "-m", "exltui", "--models-dir", str(tmp_path / "models")], tmp_path)
    terminal.type("a draft")
    wait(terminal, lambda screen: "a draft" in screen)
    assert terminal.hang_up() != 0


def test_a_terminal_whose_errors_go_elsewhere_is_none_to_draw_on(tmp_path):
    main, side = pty.openpty()
    told = {**os.environ, **environment(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "exltui"], stdin=side, stdout=side, stderr=subprocess.PIPE, env=told, check=False, timeout=PATIENCE
    )
    os.close(side)
    os.close(main)
    assert done.returncode == 2 and b"needs a terminal" in done.stderr and done.stderr.count(b"\n") == 1
