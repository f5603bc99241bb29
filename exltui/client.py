"""The app's and the command line's side of the protocol: a live engine, or a recorded event log that looks like one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
import typing
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

from exltui.protocol import (
    Command,
    Done,
    Event,
    Explain,
    Explained,
    Failed,
    Inspect,
    Inspected,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Peek,
    Peeked,
    Prefill,
    Query,
    QueryFailed,
    Queued,
    Quit,
    Rewound,
    Scores,
    Submit,
    Text,
    Unload,
    Unloaded,
    from_json,
    to_json,
)

# Which events answer which command.
ANSWERS: dict[type, tuple[type, ...]] = {
    Load: (LoadProgress, Loaded, LoadFailed),
    Unload: (Unloaded,),
    Submit: (Queued, Prefill, Text, Scores, Rewound, Done, Failed),
    Inspect: (Inspected,),
    Explain: (Explained,),
    Peek: (Peeked,),
}


class EngineLink(Protocol):
    """What the app needs of an engine. A link that was not started, or was closed, drops commands and has no events."""

    def start(self) -> None: ...
    def send(self, command: Command) -> None: ...
    def poll(self) -> list[Event]: ...
    def close(self) -> None: ...


class _Host(Protocol):
    def send(self, command: Command) -> None: ...
    def join(self, timeout: float) -> bool: ...


class Client:
    """A live engine in a background thread. ``record_to`` keeps every event with its time, one JSON line each."""

    def __init__(self, record_to: Path | None = None) -> None:
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._record: TextIO | None = record_to.open("w", encoding="utf-8") if record_to else None
        self._born = time.monotonic()
        self._host: _Host | None = None

    def start(self) -> None:
        """Start the engine's thread. Torch is imported there, so this returns at once."""
        from exltui.engine.host import Host

        host = Host(self._receive)
        self._host = host
        host.start()

    def send(self, command: Command) -> None:
        """Queue a command; returns at once. Its answers come as events."""
        if self._host is not None:
            self._host.send(command)

    def poll(self) -> list[Event]:
        """Everything that arrived since the last call; never waits."""
        with self._arrived:
            events = list(self._events)
            self._events.clear()
        return events

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Like ``poll``, but waits for at least one event, at most ``timeout`` seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: bool(self._events), timeout)
        return self.poll()

    def close(self, timeout: float = 5.0) -> None:
        """End all jobs and the thread, waiting at most ``timeout`` seconds. The last events can still be polled."""
        if self._host is not None:
            self._host.send(Quit())
            self._host.join(timeout)
            self._host = None
        with self._arrived:
            self._stop_recording()

    def _receive(self, event: Event) -> None:
        """Called on the engine's threads."""
        with self._arrived:
            self._events.append(event)
            if self._record is not None:
                try:
                    self._record.write(log_line(time.monotonic() - self._born, event))
                    self._record.flush()
                except OSError:  # a full disk ends the recording, not the engine
                    self._stop_recording()
            self._arrived.notify_all()

    def _stop_recording(self) -> None:
        record, self._record = self._record, None
        if record is not None:
            with contextlib.suppress(OSError):  # closing writes what is left
                record.close()


class ReplayClient:
    """Plays a recorded event log. ``clock`` gives seconds; ``poll`` returns the events whose time has come.

    The log waits for its cues: the first event that answers a command comes when this run sends such a command, however long that takes,
    and the log's time goes on from there. From then on the events carry the id that this run gave. Every command is kept in ``sent``.
    """

    def __init__(self, log: Path, clock: Callable[[], float]) -> None:
        self._log = deque(read_log(log))
        self._clock = clock
        self._zero: float | None = None  # the clock's reading at time 0 of the log
        self._unknown: list[Event] = []  # answers to questions that nobody asked when the log was recorded
        self._ids: dict[tuple[type, str], str] = {}  # command and the log's id -> this run's id
        self.sent: list[Command] = []

    @property
    def finished(self) -> bool:
        """Whether the whole log was played."""
        return not self._log

    def start(self) -> None:
        self._zero = self._clock()

    def send(self, command: Command) -> None:
        """Keep the command, and let the log go on if it waits for one like this."""
        if self._zero is None:
            return
        self.sent.append(command)
        if type(command) in ANSWERS:
            own = command.job.id if isinstance(command, Submit) else getattr(command, "id", "")
            for at, event in self._log:
                key = _cue(event)
                if key is not None and key[0] is type(command) and key not in self._ids:
                    self._ids[key] = own
                    self._zero = self._clock() - at
                    return
        if isinstance(command, Query):
            self._unknown.append(QueryFailed(command.id, "the recording does not say", ""))

    def poll(self) -> list[Event]:
        events, self._unknown = self._unknown, []
        while self._zero is not None and self._log:
            at, event = self._log[0]
            key = _cue(event)
            # Half a millisecond of grace: the log has milliseconds, and a difference of two clock readings is not exact.
            if at - 0.0005 > self._clock() - self._zero or (key is not None and key not in self._ids):
                break
            self._log.popleft()
            events.append(event if key is None else dataclasses.replace(typing.cast(Queued, event), id=self._ids[key]))
        return events

    def close(self) -> None:
        self._log.clear()


def _cue(event: Event) -> tuple[type, str] | None:
    """The kind of command that ``event`` answers, and the id; None for events that come by themselves."""
    return next(((command, getattr(event, "id", "")) for command, answers in ANSWERS.items() if isinstance(event, answers)), None)


def log_line(at: float, event: Event) -> str:
    """One line of an event log: ``{"at": seconds, "event": {...}}``."""
    return f'{{"at":{at:.3f},"event":{to_json(event)}}}\n'


def read_log(path: Path) -> list[tuple[float, Event]]:
    """The events of a log with their times. Raises ValueError naming the line that is not one."""
    found: list[tuple[float, Event]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            event = from_json(json.dumps(entry["event"]))
            found.append((float(entry["at"]), typing.cast(Event, event)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not an event with its time: {error}") from error
    return found
