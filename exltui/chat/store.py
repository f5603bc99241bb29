"""All chats in one SQLite file: saved as they grow, found by their words, deleted with a way back.

Every method is one transaction and takes milliseconds; none belongs on the thread that draws (``writer.StoreWriter`` queues the
saving ones). A store may be used from several threads, and several programs may have the same file open.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from exltui.chat.database import has_index, is_damage, open_database, rebuild_index, transaction, translated
from exltui.chat.tree import ROLES, STATES, Conversation, Header, Message
from exltui.errors import StoreError
from exltui.protocol import Sampling, Stats

KEPT_DAYS = 7  # how long a deleted chat or message can be brought back
INTERRUPTED = "exltui ended before this reply did."
ELSEWHERE = "Another exltui is writing this reply."
# Fields of a message that are seldom set, kept together.
_MARKS = ("thought_tokens", "thought_seconds", "pinned", "dropped", "asked", "adapters", "system")
_PLAIN = Message("", None, "user", "", 0.0, 0)
_T = TypeVar("_T", Stats, Sampling)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One line of the list of chats. Times in seconds since 1970; ``updated`` is when its last message changed. ``tags``: with blanks."""

    id: str
    title: str
    created: float
    updated: float
    model: str
    tags: str = ""
    pinned: bool = False
    archived: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that matches a search; ``message`` is ``None`` where the title does. ``snippet`` is the text around the match."""

    session: str
    message: str | None
    title: str
    snippet: str
    updated: float


class SessionStore:
    """The chats in the file at ``path``; without a path they live in memory and go with the program.

    ``rescue`` is set if the file was damaged: say so (``rescue.sentence``). Raises StoreError if the file cannot be used.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._place = path or Path("the chats in memory")
        self._now = now
        self._lock = threading.RLock()
        self._owner = _this_process()
        self._indexed = self._mended = False
        self._connection, self.rescue = open_database(path)
        with self._reading() as db:
            self._indexed = has_index(db)
        self._end_interrupted()
        self._purge()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ── reading ──

    def sessions(self, limit: int = 1000) -> list[SessionInfo]:
        """The chats that have a message or a draft, the last changed first. Whether pinned or archived makes no difference here."""
        query = """SELECT id, title, created, updated, model, tags, pinned, archived FROM sessions AS s WHERE deleted IS NULL AND
                   (draft <> '' OR EXISTS (SELECT 1 FROM messages AS m WHERE m.session = s.id AND m.deleted IS NULL))
                   ORDER BY updated DESC, id LIMIT ?"""
        with self._reading() as db:
            rows = db.execute(query, (limit,)).fetchall()
        return [SessionInfo(*row) for row in rows]

    def prompts(self, limit: int = 2000) -> list[str]:
        """What the person wrote in any chat, each text once, the newest first."""
        query = """SELECT text FROM messages WHERE role = 'user' AND deleted IS NULL GROUP BY text ORDER BY max(created) DESC LIMIT ?"""
        with self._reading() as db:
            return [text for (text,) in db.execute(query, (limit,))]

    def load(self, session: str) -> Conversation:
        """The conversation exactly as it was saved. Raises StoreError if there is none of that id."""
        with self._reading() as db:
            head = db.execute(
                "SELECT id, title, system, model, created, head, choices, options FROM sessions WHERE id = ? AND deleted IS NULL",
                (session,),
            ).fetchone()
            rows = db.execute(
                """SELECT id, parent, role, text, created, place, state, model, note, stats, sampling, owner, marks FROM messages
                   WHERE session = ? AND deleted IS NULL""",
                (session,),
            ).fetchall()
        if head is None:
            raise StoreError(f"there is no chat {session}", "open the list of chats and choose one")
        id, title, system, model, created, leaf, choices, options = head
        both = (tuple(_strings(choices).items()), tuple(_strings(options).items()))
        header = Header(id, title, system, model, created, leaf, *both)
        return Conversation.of(header, _connected([self._message(row) for row in rows]))

    def draft(self, session: str) -> str:
        """The text that was typed in this chat and not sent."""
        with self._reading() as db:
            row = db.execute("SELECT draft FROM sessions WHERE id = ?", (session,)).fetchone()
        return row[0] if row else ""

    def search(self, text: str, limit: int = 200) -> list[Hit]:
        """Titles and messages of all branches that hold every word of ``text`` (or words that begin so), the newest chats first.

        If no word begins so, or if this SQLite has no index of words, messages that hold ``text`` anywhere.
        """
        text = text.replace("\0", " ").strip()  # a zero would end the text for SQLite
        if not text:
            return []
        with self._reading() as db:
            hits = self._titles(db, text, limit)
            found = self._by_words(db, text.split(), limit) if self._indexed else []
            return (hits + (found or self._by_letters(db, text, limit)))[:limit]

    # ── writing ──

    def save(self, header: Header, message: Message | None = None) -> None:
        """Write the chat's header, and one message of it that is new or has changed.

        A message of the user is on the disk when this returns, not only with the operating system.
        """
        with self._writing(durable=message is not None and message.role == "user") as db:
            db.execute(
                """INSERT INTO sessions (id, title, system, model, created, updated, head, choices, options)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET title = excluded.title, system = excluded.system,
                   model = excluded.model, head = excluded.head, choices = excluded.choices, options = excluded.options""",
                _header_row(header),
            )
            if message is not None:
                db.execute("UPDATE sessions SET updated = ? WHERE id = ?", (self._now(), header.id))
                db.execute(
                    """INSERT INTO messages (id, session, parent, place, role, text, created, state, model, note, stats, sampling, marks,
                       owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET text = excluded.text,
                       state = excluded.state, model = excluded.model, note = excluded.note, stats = excluded.stats,
                       sampling = excluded.sampling, marks = excluded.marks, owner = excluded.owner""",
                    self._message_row(header.id, message),
                )

    def save_all(self, conversation: Conversation) -> None:
        """Write a whole conversation, for example an imported one."""
        for message in conversation:
            self.save(conversation.header, message)

    def set_title(self, session: str, title: str) -> None:
        with self._writing() as db:
            db.execute("UPDATE sessions SET title = ? WHERE id = ?", (title, session))

    def set_marks(self, session: str, *, tags: str, pinned: bool, archived: bool) -> None:
        """How a chat stands in the list."""
        with self._writing() as db:
            values = (_clean(" ".join(tags.split())), int(pinned), int(archived), session)
            db.execute("UPDATE sessions SET tags = ?, pinned = ?, archived = ? WHERE id = ?", values)

    def save_draft(self, header: Header, text: str) -> None:
        """Keep what is typed and not yet sent; ``""`` forgets it."""
        with self._writing() as db:
            db.execute(
                """INSERT INTO sessions (id, title, system, model, created, updated, head, choices, options)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING""",
                _header_row(header),
            )
            db.execute("UPDATE sessions SET draft = ? WHERE id = ?", (_clean(text), header.id))

    def delete(self, session: str) -> None:
        """Take a chat out of the list. It is kept for a week, in case of ``undelete``."""
        with self._writing() as db:
            db.execute("UPDATE sessions SET deleted = ? WHERE id = ?", (self._now(), session))

    def undelete(self, session: str) -> None:
        with self._writing() as db:
            db.execute("UPDATE sessions SET deleted = NULL WHERE id = ?", (session,))

    def remove_messages(self, header: Header, messages: Iterable[str]) -> None:
        """Take messages out, as ``Conversation.delete`` did. They are kept for a week, in case of ``restore_messages``."""
        self._mark(header, messages, self._now())

    def restore_messages(self, header: Header, messages: Iterable[str]) -> None:
        """Bring removed messages back, as ``Conversation.undo`` did."""
        self._mark(header, messages, None)

    # ── within ──

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self._place):
            try:
                yield self._connection
            except sqlite3.DatabaseError as error:
                self._mend(error)
                raise

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(db):
                yield db

    def _mend(self, error: sqlite3.DatabaseError) -> None:
        """Make the index of words afresh, once, if it may be what is damaged: the check at the start does not look into it.

        The call that noticed still fails; the writer tries again, and then it succeeds.
        """
        suspect = is_damage(str(error)) or isinstance(error, sqlite3.IntegrityError)  # no row of ours breaks a constraint
        if suspect and self._indexed and not self._mended:
            self._mended = True
            rebuild_index(self._connection)

    def _mark(self, header: Header, messages: Iterable[str], deleted: float | None) -> None:
        self.save(header)
        with self._writing() as db:
            db.executemany("UPDATE messages SET deleted = ? WHERE id = ?", [(deleted, id) for id in messages])

    def _end_interrupted(self) -> None:
        """Replies that streamed when their program died are stopped replies; those of a program that lives are left alone."""
        with self._writing() as db:
            for id, owner in db.execute("SELECT id, owner FROM messages WHERE state = 'streaming'").fetchall():
                if not _alive(owner):
                    db.execute("UPDATE messages SET state = 'stopped', note = ? WHERE id = ?", (INTERRUPTED, id))

    def _purge(self) -> None:
        """Forget for good what was deleted a week ago."""
        before = self._now() - KEPT_DAYS * 86400
        with self._writing() as db:
            db.execute("DELETE FROM messages WHERE deleted < ?1 OR session IN (SELECT id FROM sessions WHERE deleted < ?1)", (before,))
            db.execute("DELETE FROM sessions WHERE deleted < ?", (before,))

    def _message_row(self, session: str, m: Message) -> tuple[Any, ...]:
        owner = self._owner if m.state == "streaming" else ""
        figures = (_to_json(m.stats), _to_json(m.sampling))
        notes = (_clean(m.model), _clean(m.note))
        marks = json.dumps({name: value for name in _MARKS if (value := getattr(m, name))})
        return (m.id, session, m.parent, m.order, m.role, _clean(m.text), m.created, m.state, *notes, *figures, marks, owner)

    def _message(self, row: tuple[Any, ...]) -> Message:
        id, parent, role, text, created, place, state, model, note, stats, sampling, owner, marks = row
        if role not in ROLES or state not in STATES:
            raise StoreError(f"{self._place}: message {id} is a {role} that is {state}", "export what you need and start a new file")
        if state == "streaming" and owner != self._owner:
            state, note = "stopped", ELSEWHERE
        figures = (_from_json(Stats, stats), _from_json(Sampling, sampling))
        return Message(id, parent, role, text, created, place, state, model, note, *figures, **_marks(marks))

    def _titles(self, db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
        query = """SELECT id, NULL, title, title, updated FROM sessions WHERE deleted IS NULL AND title LIKE ? ESCAPE '\\'
                   ORDER BY updated DESC, id LIMIT ?"""
        return [Hit(*row) for row in db.execute(query, (_like(text), limit))]

    def _by_words(self, db: sqlite3.Connection, words: list[str], limit: int) -> list[Hit]:
        query = """SELECT s.id, m.id, s.title, snippet(words, 0, '', '', '…', 16), s.updated FROM words
                   JOIN messages AS m ON m.number = words.rowid JOIN sessions AS s ON s.id = m.session
                   WHERE words MATCH ? AND m.deleted IS NULL AND s.deleted IS NULL
                   ORDER BY s.updated DESC, s.id, m.place DESC LIMIT ?"""
        # Each word quoted (its signs mean nothing then) and open at its end.
        match = " ".join('"' + word.replace('"', '""') + '"*' for word in words)
        return [Hit(*row) for row in db.execute(query, (match, limit))]

    def _by_letters(self, db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
        query = """SELECT s.id, m.id, s.title, substr(m.text, max(1, instr(lower(m.text), lower(?)) - 40), 120), s.updated
                   FROM messages AS m JOIN sessions AS s ON s.id = m.session
                   WHERE m.text LIKE ? ESCAPE '\\' AND m.deleted IS NULL AND s.deleted IS NULL
                   ORDER BY s.updated DESC, s.id, m.place DESC LIMIT ?"""
        return [Hit(*row) for row in db.execute(query, (text, _like(text), limit))]


def _connected(messages: list[Message]) -> list[Message]:
    """``messages`` with those that lost their parent (to damage) made first messages, so that they can still be read."""
    seen: set[str] = set()
    connected = []
    for message in sorted(messages, key=lambda m: (m.order, m.created, m.id)):
        connected.append(message if message.parent is None or message.parent in seen else dataclasses.replace(message, parent=None))
        seen.add(message.id)
    return connected


def _header_row(header: Header) -> tuple[Any, ...]:
    choices, options = json.dumps(dict(header.choices)), json.dumps(dict(header.options))
    texts = (_clean(text) for text in (header.title, header.system, header.model))
    return (header.id, *texts, header.created, header.created, header.head, choices, options)


def _marks(text: str) -> dict[str, Any]:
    """The marks of a message as its fields; those of a wrong kind are left out."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    kinds = {name: type(getattr(_PLAIN, name)) for name in _MARKS}
    found = values.items() if isinstance(values, dict) else ()
    fits = {name: (kinds[name],) if kinds[name] is str else (kinds[name], int) for name in kinds}  # a number may be written as a whole one
    return {name: value for name, value in found if name in fits and isinstance(value, fits[name])}


def _like(text: str) -> str:
    return "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which SQLite does not take."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _strings(text: str) -> dict[str, str]:
    """The JSON object ``text``; ``{}`` if it is none, for what it holds is a comfort, not content."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}


def _to_json(value: Stats | Sampling | None) -> str | None:
    return json.dumps(dataclasses.asdict(value)) if value is not None else None


def _from_json(cls: type[_T], text: str | None) -> _T | None:
    """The dataclass that ``_to_json`` wrote, perhaps in an older exltui with other fields: what does not fit is left out."""
    if not text:
        return None
    names = {field.name for field in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in json.loads(text).items() if key in names})
    except (TypeError, ValueError, AttributeError):
        return None


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _started(pid: int) -> str:
    """When process ``pid`` began, as the kernel counts: a number that a later process of the same id does not have. "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(owner: str) -> bool:
    """Whether the process of ``_this_process`` runs. One on another machine counts as alive: nothing can be known about it."""
    host, _, process = owner.partition(" ")
    pid, _, started = process.partition(" ")
    if host != socket.gethostname():
        return bool(host)
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return _started(int(pid)) == started
