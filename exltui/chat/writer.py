"""Saves in the background, so that the thread that draws never waits for the disk.

What is saved is a state (this message as it is now), not a change: a newer one takes the place of one that still waits, and to write
one again after a failure does no harm. A streaming reply is written every quarter of a second, everything else at once. If the disk
is full, all that waits stays in memory, is tried again every second, and the problem is told once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import replace

from exltui.chat.store import SessionStore
from exltui.chat.tree import Deletion, Header, Message
from exltui.errors import StoreError

STREAM_SECONDS = 0.25  # with the 0.1 s in which the app collects text, a kill -9 loses less than half a second
RETRY_SECONDS = 1.0
_Work = Callable[[], None]


class StoreWriter:
    """A thread that writes to ``store``.

    ``on_problem`` is called from that thread: with the error when saving begins to fail, with ``None`` when all is saved again.
    """

    def __init__(self, store: SessionStore, on_problem: Callable[[StoreError | None], None] = lambda problem: None) -> None:
        self._store = store
        self._on_problem = on_problem
        self._problem: StoreError | None = None
        self._headers: dict[str, Header] = {}  # the newest of each chat, which every save writes, whatever it was asked with
        self._waiting: dict[Hashable, _Work] = {}  # in the order in which it was asked for
        self._due: float | None = None  # when to write, on the monotonic clock; None: nothing waits
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="exltui-store", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> StoreError | None:
        """Why saving fails at the moment."""
        return self._problem

    def save(self, header: Header, message: Message | None = None) -> None:
        """Save a chat's header, and a message that is new or has changed. One that streams may wait for a quarter of a second."""
        self._headers[header.id] = header
        if message is None:
            self._put(("header", header.id), lambda: self._store.save(self._headers[header.id]))
            return
        streaming = message.state == "streaming" and bool(message.text)
        self._put(
            ("message", message.id), lambda: self._store.save(self._headers[header.id], message), STREAM_SECONDS if streaming else 0.0
        )

    def save_draft(self, header: Header, text: str) -> None:
        """Keep what is typed and not yet sent; ``""`` forgets it. To call this at every key costs nothing."""
        self._put(("draft", header.id), lambda: self._store.save_draft(header, text), STREAM_SECONDS)

    def set_title(self, session: str, title: str) -> None:
        """Rename a chat. If it is open, rename its conversation too, or the next ``save`` writes the old title again."""
        if session in self._headers:
            self._headers[session] = replace(self._headers[session], title=title)
        self._put(("title", session), lambda: self._store.set_title(session, title))

    def set_marks(self, session: str, *, tags: str, pinned: bool, archived: bool) -> None:
        """Save how a chat stands in the list."""
        self._put(("marks", session), lambda: self._store.set_marks(session, tags=tags, pinned=pinned, archived=archived))

    def delete(self, session: str) -> None:
        self._put(("deleted", session), lambda: self._store.delete(session))

    def undelete(self, session: str) -> None:
        self._put(("deleted", session), lambda: self._store.undelete(session))

    def remove_messages(self, header: Header, deletion: Deletion) -> None:
        self._headers[header.id] = header
        ids = [message.id for message in deletion.messages]
        self._put(("removed", ids[0]), lambda: self._store.remove_messages(self._headers[header.id], ids))

    def restore_messages(self, header: Header, deletion: Deletion) -> None:
        self._headers[header.id] = header
        ids = [message.id for message in deletion.messages]
        self._put(("removed", ids[0]), lambda: self._store.restore_messages(self._headers[header.id], ids))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was asked for is written. ``False`` if that did not succeed within ``timeout`` seconds."""
        until = time.monotonic() + timeout
        with self._changed:
            if self._waiting:
                self._due = 0.0
                self._changed.notify_all()
            while self._waiting or self._busy:
                if not self._changed.wait(max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                    return False
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits and end the thread. ``False`` if something could not be written."""
        saved = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return saved

    def _put(self, key: Hashable, work: _Work, delay: float = 0.0) -> None:
        with self._changed:
            self._waiting[key] = work
            due = time.monotonic() + delay
            if self._problem is None:  # otherwise the next attempt is due already, and hurry would not help
                self._due = due if self._due is None else min(self._due, due)
                self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            left, problem = self._write(batch)
            with self._changed:
                self._waiting = {**left, **self._waiting}  # what came meanwhile is newer, and keeps its turn
                self._busy = False
                if self._waiting:
                    self._due = time.monotonic() + RETRY_SECONDS if problem else (self._due or 0.0)
                self._changed.notify_all()
            self._tell(problem)

    def _next_batch(self) -> dict[Hashable, _Work]:
        """Wait until something is due and take all that waits. Empty: the end."""
        with self._changed:
            while not self._closing:
                wait = None if self._due is None else self._due - time.monotonic()
                if wait is not None and wait <= 0:
                    batch, self._waiting, self._due, self._busy = self._waiting, {}, None, True
                    return batch
                self._changed.wait(wait)
        return {}

    def _write(self, batch: dict[Hashable, _Work]) -> tuple[dict[Hashable, _Work], StoreError | None]:
        """Do the work of ``batch`` in its order; returns what failed, and why. One that cannot be saved does not keep others back."""
        left: dict[Hashable, _Work] = {}
        problem = None
        for key, work in batch.items():
            try:
                work()
            except StoreError as error:
                left[key], problem = work, error
        return left, problem

    def _tell(self, problem: StoreError | None) -> None:
        before, self._problem = self._problem, problem
        if (before is None) != (problem is None):
            self._on_problem(problem)
