"""Questions to the engine that are no jobs: each is answered once, and who asked is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exltui import protocol
from exltui.client import EngineLink

Then = Callable[[Any], None]


class Queries:
    """Sends queries and hands each answer to who waits for it. ``wake`` makes the app look for answers often."""

    def __init__(self, client: EngineLink, wake: Callable[[], None]) -> None:
        self._client = client
        self._wake = wake
        self._waiting: dict[str, tuple[Then, Then]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def ask(self, query: protocol.Query, then: Then, failed: Then) -> None:
        """``then`` gets the answer, ``failed`` the QueryFailed."""
        self._waiting[query.id] = (then, failed)
        self._client.send(query)
        self._wake()

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those that answer no query pass by."""
        if isinstance(event, protocol.Answer) and event.id in self._waiting:
            then, failed = self._waiting.pop(event.id)
            (failed if isinstance(event, protocol.QueryFailed) else then)(event)
