"""The chat line by line, for screen readers and terminals that can do no more: the same chats, commands and engine, without a screen.

Nothing is ever drawn over: what is said is said once, in order. Ctrl+C stops a reply; on an empty line it ends the chat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from exltui import protocol
from exltui.app.actions import COMMANDS
from exltui.app.dialogue import Dialogue
from exltui.app.figures import percent
from exltui.app.observed import Observed
from exltui.app.parts import Parts
from exltui.app.transcript import Entry
from exltui.chat.tree import new_id
from exltui.errors import ExltuiError
from exltui.models.recommended import recommended
from exltui.protocol import Sampling
from exltui.text import one_line, strip_terminal

LOOK = 0.03  # seconds between two looks at the engine's events
HELP = {
    "new": "Start an empty chat.",
    "chats": "List the chats; /open NUMBER opens one.",
    "open NUMBER": "Open a chat of the list.",
    "models": "List the models; /load NAME loads one.",
    "load NAME": "Load a model.",
    "system TEXT": "Change the system prompt.",
    "regenerate": "Have the last reply written again.",
    "continue": "Have the last reply go on.",
    "previous": "Go to the version before of the last fork.",
    "next": "Go to the version after.",
    "delete": "Take the last message out; /undo brings it back.",
    "undo": "Bring back what was deleted.",
    "read": "Say the whole chat again.",
    "quit": "Leave.",
}


class LinearView:
    """Says what the dialogue would show."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def show(self, entries: list[Entry], history: list[str]) -> None: ...

    def add(self, entry: Entry) -> None:
        if entry.role != "user":
            self._write(f"{one_line(entry.name)}: ")

    def feed(self, id: str, text: str) -> None:
        self._write(strip_terminal(text))

    def finish(self, entry: Entry) -> None:
        self._write("\n")
        for part in (entry.hint, "Stopped." if entry.state == "stopped" else ""):
            if part:
                self._write(f"{part}\n")

    def tell(self, text: str, hint: str = "", *, error: bool = False) -> None:
        self._write(f"{'Error: ' if error else ''}{text}{' ' if hint else ''}{hint}\n")

    def thought(self, id: str, label: str) -> None: ...
    def prompt_text(self) -> str:
        return ""

    def put_prompt(self, text: str) -> None: ...
    def chats_changed(self) -> None: ...

    def want_model(self) -> None:
        self.tell("No model is loaded.", "/models lists them, /load NAME loads one; the reply starts then.")


def at_once(job: Callable[[], Any], then: Callable[[Any], None], failed: Callable[[ExltuiError], None]) -> None:
    """There is no screen to keep alive: what takes time is waited for."""
    try:
        result = job()
    except ExltuiError as error:
        failed(error)
    else:
        then(result)


class LinearChat:
    """Reads a line with ``ask``, says with ``write``, until there are no more lines."""

    def __init__(self, parts: Parts, ask: Callable[[str], str], write: Callable[[str], None]) -> None:
        self._parts, self._ask, self._write = parts, ask, write
        self._observed = Observed(parts.clock)
        self._view = LinearView(write)
        self._dialogue = Dialogue(parts.client, self._observed, self._view, parts.records, at_once, parts.preparer)
        self._dialogue.sampling, self._dialogue.max_new_tokens = parts.sampling or Sampling(), parts.max_new_tokens
        self._dialogue.system = self._dialogue.conversation.system = parts.system
        self._listed: list[str] = []

    def run(self) -> int:
        """The chat. The exit status."""
        for notice in self._parts.notices:
            self._view.tell(str(notice), notice.hint, error=True)
        self._parts.client.start()
        self._parts.records.open()
        try:
            self._first_model()
            self._view.tell("Type a message, or /help.")
            while self._turn():
                pass
        finally:
            self._dialogue.close()
            self._parts.records.close()
            self._parts.client.close()
        return 0

    def _turn(self) -> bool:
        """One line of the person and what follows it; False at the end."""
        try:
            line = self._ask("you: ")
        except (EOFError, KeyboardInterrupt):
            return False
        name, _, rest = line.removeprefix("/").partition(" ")
        if line.startswith("/") and name in {key.partition(" ")[0] for key in (*HELP, "help")}:
            return self._command(name, rest.strip())
        if line.startswith("/") and name in COMMANDS:
            self._view.tell(f"/{name} needs the screen.", "/help lists what works here.", error=True)
            return True
        self._dialogue.send(line)
        self._wait()
        return True

    def _wait(self) -> None:
        """Let the engine work until nothing is going on; Ctrl+C stops a reply."""
        while self._dialogue.busy and (self._observed.loaded is not None or self._observed.loading is not None):
            try:
                self._pump()
                time.sleep(LOOK)
            except KeyboardInterrupt:
                self._dialogue.stop()

    def _pump(self) -> None:
        for event in self._parts.client.poll():
            self._observed.apply(event)
            self._dialogue.handle(event)
            if isinstance(event, protocol.Loaded):
                self._view.tell(f"{event.name} is loaded on {event.device}, with {event.context:,} tokens of context.")
            elif isinstance(event, protocol.LoadFailed):
                self._view.tell(event.error, event.hint, error=True)

    def _command(self, name: str, rest: str) -> bool:
        """Do a command; False to leave."""
        if name == "quit":
            return False
        act: dict[str, Callable[[str], object]] = {
            "help": lambda _: [self._write(f"/{key}: {text}\n") for key, text in HELP.items()],
            "new": lambda _: self._dialogue.new_chat(),
            "chats": lambda _: self._list_chats(),
            "open": self._open,
            "models": lambda _: self._list_models(),
            "load": self._load,
            "system": self._dialogue.revision.set_system,
            "regenerate": lambda _: self._dialogue.regenerate(None),
            "continue": lambda _: self._dialogue.go_on(),
            "previous": lambda _: self._step(-1),
            "next": lambda _: self._step(1),
            "delete": lambda _: self._dialogue.revision.delete(None),
            "undo": lambda _: self._dialogue.revision.undo(),
            "read": lambda _: self._read(),
        }
        act[name](rest)
        self._wait()
        return True

    # ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _list_chats(self) -> None:
        rows = self._parts.records.rows()
        self._listed = [row.id for row in rows]
        for number, row in enumerate(rows, 1):
            self._write(f"{number}: {one_line(row.title) or 'New chat'}\n")
        if not rows:
            self._view.tell("There are no chats yet.")

    def _open(self, number: str) -> None:
        if not number.isdecimal() or not 0 < int(number) <= len(self._listed):
            self._view.tell("Say the number of a chat of the list that /chats gives.", error=True)
            return
        self._dialogue.open(self._listed[int(number) - 1])
        self._read()

    def _read(self) -> None:
        for entry in self._dialogue.entries():
            self._write(f"{one_line(entry.name)}: {strip_terminal(entry.text)}\n")

    def _step(self, step: int) -> None:
        if self._dialogue.revision.step_sibling(None, step) is None:
            self._view.tell("There is no other version.")
        else:
            self._read()

    # ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _first_model(self) -> None:
        """Load the model that was asked for or used last, or the only one."""
        usable = [model for model in self._parts.library.scan() if not model.problem]
        if self._parts.model:
            self._load(self._parts.model)
        elif len(usable) == 1:
            self._load(usable[0].name)
        else:
            self._view.tell(
                "No model is loaded yet." if usable else "There is no model; exltui models get smollm2-135m fetches a small one."
            )

    def _list_models(self) -> None:
        for model in self._parts.library.scan():
            self._write(f"{model.name}{f': {model.problem}' if model.problem else ''}\n")

    def _load(self, name: str) -> None:
        try:
            path = self._parts.library.resolve(name)
        except ExltuiError as error:
            self._view.tell(str(error), error.hint, error=True)
            return
        if self._parts.sampling is None:
            self._dialogue.sampling = recommended(path) or Sampling()
        command = protocol.Load(new_id(), str(path), self._parts.options)
        self._observed.sent(command)
        self._parts.client.send(command)
        self._view.tell(f"Loading {path.name}.")
        said = 0.0
        while self._observed.loading is not None:
            self._pump()
            loading = self._observed.loading
            if loading is not None and loading.total and self._parts.clock() - said > 5:
                said = self._parts.clock()
                self._view.tell(f"{loading.stage} {percent(loading.done, loading.total).strip()}")
            time.sleep(LOOK)
