"""The chats on the disk, as the app uses them: opened after the first paint, saved in the background, kept in memory if need be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from exltui.app.panes.sessions import SessionRow
from exltui.chat.store import SessionStore
from exltui.chat.tree import Conversation, Deletion, Message
from exltui.chat.writer import StoreWriter
from exltui.errors import StoreError


class Records:
    """All chats. Saving returns at once; what is asked for before ``open`` waits until then.

    ``on_problem`` is called from a thread of its own: with the error when saving begins to fail, with ``None`` when all is saved again.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._store: SessionStore | None = None
        self._writer: StoreWriter | None = None
        self._early: list[Callable[[StoreWriter], None]] = []
        self._deleted: list[tuple[str, str]] = []  # ids and titles of chats that can be brought back
        self.warning = ""
        self.on_problem: Callable[[StoreError | None], None] = lambda problem: None

    # ── may take time: beside the screen only ────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> str | None:
        """Open the file and return the id of the chat that changed last. If it cannot be opened, chats live in memory: see ``warning``."""
        try:
            store = SessionStore(self._path, self._now)
            if store.rescue is not None:
                self.warning = store.rescue.sentence
        except StoreError as error:
            self.warning = f"{error}. Chats of this run are not saved. {error.hint}".strip()
            store = SessionStore(None, self._now)
        writer = StoreWriter(store, self._problem)
        with self._lock:
            self._store, self._writer = store, writer
            for save in self._early:
                save(writer)
            self._early.clear()
        newest = store.sessions(1)
        return newest[0].id if newest else None

    def rows(self, search: str = "") -> list[SessionRow]:
        """The chats, the newest first; with ``search`` those in which all its words occur."""
        store = self._opened()
        if self._writer is not None:
            self._writer.flush(1.0)
        if not search.strip():
            return [SessionRow(info.id, info.title, info.updated) for info in store.sessions()]
        found: dict[str, SessionRow] = {}
        for hit in store.search(search):
            found.setdefault(hit.session, SessionRow(hit.session, hit.title, hit.updated))
        return list(found.values())

    def load(self, id: str) -> tuple[Conversation, str]:
        """A chat and the draft that was left in it. Raises StoreError."""
        store = self._opened()
        conversation = store.load(id)
        conversation.now = self._now
        return conversation, store.draft(id)

    def delete(self, id: str) -> str:
        """Take a chat away; ``undelete`` brings it back. Its title."""
        store = self._opened()
        title = next((info.title for info in store.sessions() if info.id == id), "")
        store.delete(id)
        self._deleted.append((id, title))
        return title

    def undelete(self) -> str | None:
        """Bring back the chat that was deleted last. Its title, or None if there is none."""
        if not self._deleted:
            return None
        id, title = self._deleted.pop()
        self._opened().undelete(id)
        return title

    def rename(self, id: str, title: str) -> None:
        """Give a chat another title."""
        self._opened().set_title(id, title)

    def _opened(self) -> SessionStore:
        if self._store is None:
            raise StoreError("The chats are not open yet.", "Try again in a moment.")
        return self._store

    def _problem(self, problem: StoreError | None) -> None:
        self.on_problem(problem)

    # ── returns at once ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def new_chat(self) -> Conversation:
        """An empty chat; it is on the disk once it has a message."""
        return Conversation(now=self._now)

    def save(self, conversation: Conversation, message: Message | None = None) -> None:
        """Save the chat's header, and a message that is new or has changed."""
        header = conversation.header
        self._put(lambda writer: writer.save(header, message))

    def save_draft(self, conversation: Conversation, text: str) -> None:
        """Keep what is typed and not sent. An empty chat without a word is not kept."""
        header = conversation.header
        self._put(lambda writer: writer.save_draft(header, text))

    def delete_messages(self, conversation: Conversation, deletion: Deletion) -> None:
        header = conversation.header
        self._put(lambda writer: writer.remove_messages(header, deletion))

    def restore_messages(self, conversation: Conversation, deletion: Deletion) -> None:
        header = conversation.header
        self._put(lambda writer: writer.restore_messages(header, deletion))

    def close(self) -> bool:
        """Write what waits; False if something could not be written."""
        saved = True
        if self._writer is not None:
            saved = self._writer.close()
        if self._store is not None:
            self._store.close()
        return saved

    def _put(self, save: Callable[[StoreWriter], None]) -> None:
        with self._lock:
            if self._writer is None:
                self._early.append(save)
            else:
                save(self._writer)
