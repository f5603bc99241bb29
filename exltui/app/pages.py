"""Keys and values of chats on the disk: a chat that was closed goes on without being read again.

Between the app and the engine, and of the form of an engine itself: what passes by tells it when pages are to be kept and recalled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from exltui import protocol
from exltui.chat.tree import new_id

PATIENCE = 60.0  # seconds that leaving waits for pages to be written, at most
GB = 1e9


class Engine(Protocol):
    """What ``client.Client`` is."""

    def start(self) -> None: ...
    def send(self, command: protocol.Command) -> None: ...
    def poll(self) -> list[protocol.Event]: ...
    def close(self, timeout: float = 5.0) -> None: ...


class KeptPages:
    """An ``engine`` that keeps the pages of each session with a reply when its model goes, and recalls them before its next job.

    ``file`` names the place of a session's pages, or is None for one that has none; ``limit`` is how many GB all of them may have.
    """

    def __init__(self, engine: Engine, file: Callable[[str], Path | None], limit: Callable[[], float]) -> None:
        self._engine, self._file, self._limit = engine, file, limit
        self._jobs: dict[str, str] = {}  # that run: job -> session
        self._fresh: set[str] = set()  # sessions whose pages are the engine's alone
        self._known: set[str] = set()  # sessions that need not be recalled from this load on

    def start(self) -> None:
        self._engine.start()

    def send(self, command: protocol.Command) -> None:
        if isinstance(command, (protocol.Load, protocol.Unload)):
            self._keep()
        elif isinstance(command, protocol.Submit) and command.job.session:
            self._recall(command.job.session)
            self._jobs[command.job.id] = command.job.session
        self._engine.send(command)

    def poll(self) -> list[protocol.Event]:
        events = self._engine.poll()
        for event in events:
            if isinstance(event, protocol.Done) and event.id in self._jobs:
                self._fresh.add(self._jobs.pop(event.id))
            elif isinstance(event, protocol.Failed):
                self._jobs.pop(event.id, None)
        return events

    def close(self) -> None:
        """End the engine; what it still writes is waited for."""
        self._fresh.update(self._jobs.values())  # stopped by the end, with what they have
        self._engine.close(PATIENCE if self._keep() else 5.0)

    def _keep(self) -> bool:
        """Ask for the pages of all sessions that have new ones -> whether there are any. What the next model knows begins anew."""
        asked = False
        for session in sorted(self._fresh):
            file, limit = self._file(session), int(self._limit() * GB)
            if file is not None and limit > 0:
                self._engine.send(protocol.KeepPages(new_id(), session, str(file), limit))
                asked = True
        self._fresh.clear()
        self._known.clear()
        return asked

    def _recall(self, session: str) -> None:
        file = self._file(session)
        if session not in self._known and file is not None and self._limit() > 0 and file.exists():
            self._engine.send(protocol.RecallPages(new_id(), str(file)))
        self._known.add(session)
