"""The chats on the disk, as the app uses them: opened after the first paint, saved in the background, kept in memory if need be."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exltui.app.panes.sessions import SessionRow
from exltui.chat.export import from_json, to_json
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
        listed = [SessionRow(i.id, i.title, i.updated, i.tags, i.pinned, i.archived) for i in store.sessions()]
        if not search.strip():
            return sorted(listed, key=lambda row: (row.archived, not row.pinned))
        tags = {word[1:].lower() for word in search.split() if word.startswith("#") and len(word) > 1}
        rows = {row.id: row for row in listed if tags <= set(row.tags.lower().split())}
        words = " ".join(word for word in search.split() if not word.startswith("#"))
        if not words:
            return list(rows.values())
        found: dict[str, SessionRow] = {}
        for hit in store.search(words):
            if hit.session in rows:
                found.setdefault(hit.session, replace(rows[hit.session], snippet=hit.snippet if hit.message else ""))
        return list(found.values())

    def prompts(self) -> list[str]:
        """What the person wrote in all chats, the newest first."""
        if self._writer is not None:
            self._writer.flush(1.0)
        return self._opened().prompts()

    def duplicate(self, id: str) -> Conversation:
        """A copy of a chat under new ids, saved. Raises StoreError."""
        if self._writer is not None:
            self._writer.flush(1.0)
        copy = from_json(to_json(self._opened().load(id)))
        copy.title = f"{copy.title} (copy)"
        return self.take_in(copy)

    def take_in(self, conversation: Conversation) -> Conversation:
        """Save a whole chat that came from elsewhere."""
        conversation.now = self._now
        self._opened().save_all(conversation)
        return conversation

    def set_marks(self, row: SessionRow) -> None:
        """Save the tags of a chat and whether it is pinned or archived."""
        self._opened().set_marks(row.id, tags=row.tags, pinned=row.pinned, archived=row.archived)

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
        if (pages := self.pages_file(id)) is not None:
            with contextlib.suppress(OSError):
                pages.unlink(missing_ok=True)
        self._deleted.append((id, title))
        return title

    def pages_file(self, id: str) -> Path | None:
        """Where the engine keeps the keys and values of a chat: beside the database. None for one that was deleted, or lives in memory."""
        deleted = any(id == gone for gone, _ in self._deleted)
        return None if self._path is None or deleted else self._path.parent / "pages" / f"{id}.kv"

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
