"""The file below the session store: opening it, its schema, and what happens when it is damaged, full, foreign or too new.

A damaged file is never written to again: it is renamed, a new one takes its place, and what can still be read is copied over.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exltui.errors import StoreError

APPLICATION_ID = 0x65786C74  # "exlt": in the file's header, so that no other program's database is taken for ours
BUSY_SECONDS = 5.0  # how long to wait for another exltui that writes
# Entry n brings version n to version n + 1. An entry that was released is never changed.
MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, system TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL,
        updated REAL NOT NULL, head TEXT, choices TEXT NOT NULL, draft TEXT NOT NULL DEFAULT '', deleted REAL);
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, session TEXT NOT NULL, parent TEXT, place INTEGER NOT NULL,
        role TEXT NOT NULL, text TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL,
        note TEXT NOT NULL, stats TEXT, sampling TEXT, owner TEXT NOT NULL DEFAULT '', deleted REAL);
    CREATE INDEX messages_by_session ON messages (session, place);
    CREATE INDEX messages_streaming ON messages (owner) WHERE state = 'streaming';
    """,
    """
    ALTER TABLE sessions ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE sessions ADD COLUMN tags TEXT NOT NULL DEFAULT '';
    ALTER TABLE sessions ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN marks TEXT NOT NULL DEFAULT '{}';
    """,
)
# The index of words holds a message once it no longer streams: to index every quarter of a second would be waste.
_INDEX = (
    "CREATE VIRTUAL TABLE words USING fts5 (text, content='messages', content_rowid='number', tokenize='unicode61 remove_diacritics 2')",
    """CREATE TRIGGER words_insert AFTER INSERT ON messages WHEN new.state <> 'streaming' BEGIN
        INSERT INTO words (rowid, text) VALUES (new.number, new.text); END""",
    """CREATE TRIGGER words_forget AFTER UPDATE OF text, state ON messages
        WHEN old.state <> 'streaming' AND (new.state = 'streaming' OR new.text <> old.text) BEGIN
        INSERT INTO words (words, rowid, text) VALUES ('delete', old.number, old.text); END""",
    """CREATE TRIGGER words_learn AFTER UPDATE OF text, state ON messages
        WHEN new.state <> 'streaming' AND (old.state = 'streaming' OR new.text <> old.text) BEGIN
        INSERT INTO words (rowid, text) VALUES (new.number, new.text); END""",
    """CREATE TRIGGER words_delete AFTER DELETE ON messages WHEN old.state <> 'streaming' BEGIN
        INSERT INTO words (words, rowid, text) VALUES ('delete', old.number, old.text); END""",
    "INSERT INTO words (rowid, text) SELECT number, text FROM messages WHERE state <> 'streaming'",
)
_INDEX_TRIGGERS = ("words_insert", "words_forget", "words_learn", "words_delete")


@dataclass(frozen=True, slots=True)
class Rescue:
    """A damaged database was set aside as ``kept``; so many chats and messages could be read from it and are in the new one."""

    kept: Path
    sessions: int
    messages: int

    @property
    def sentence(self) -> str:
        if not self.messages:
            return f"The file of your chats was damaged and a new one was started; the old one is kept as {self.kept}."
        found = f"{self.messages} messages of {self.sessions} chats were recovered"
        return f"The file of your chats was damaged: {found}, and the old file is kept as {self.kept}."


class _DamagedError(Exception):
    """The file is not a sound SQLite database."""


def open_database(path: Path | None) -> tuple[sqlite3.Connection, Rescue | None]:
    """A connection to the database at ``path`` (in memory if ``None``), made or brought up to date.

    Raises StoreError if the file cannot be opened, belongs to another program, or was written by a newer exltui.
    """
    if path is None:
        connection = _connect(":memory:")
        _prepare(connection, Path(":memory:"))
        return connection, None
    with translated(path):
        try:
            return _open_sound(path), None
        except _DamagedError:
            kept = _set_aside(path)
        connection = _open_sound(path)
        return connection, _rescue(kept, connection)


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether full-text search is there. Some builds of SQLite lack it."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is not None and _fts5(connection)


def rebuild_index(connection: sqlite3.Connection) -> None:
    """Make the index of words afresh from the messages."""
    with transaction(connection):
        for trigger in _INDEX_TRIGGERS:
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        connection.execute("DROP TABLE IF EXISTS words")
        for statement in _INDEX:
            connection.execute(statement)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing. Takes the write lock at once, so that two programs never wait for each other."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have rolled it back already
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns what SQLite and the file system report about ``path`` into StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _store_error(path, str(error)) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}", "check the folder's permissions and free space") from error


def is_damage(message: str) -> bool:
    """Whether SQLite's ``message`` says that the file itself is broken."""
    return "malformed" in message or "not a database" in message


def _store_error(path: Path, message: str) -> StoreError:
    """The sentence and the way out for one message of SQLite. Its numeric codes exist only from Python 3.11 on."""
    if "full" in message:
        return StoreError(f"{path}: the disk is full", "free some space; the chat is kept in memory and saved when there is room")
    if "locked" in message:
        return StoreError(f"{path}: another program has locked the chats for {BUSY_SECONDS:g} s", "close it; saving is tried again")
    if "readonly" in message or "unable to open" in message:
        return StoreError(f"{path}: the file cannot be written", "check who owns the file and its folder")
    if "I/O error" in message:
        return StoreError(f"{path}: the disk does not take it ({message})", "check free space and quota; saving is tried again")
    if is_damage(message):
        return StoreError(f"{path}: the file is damaged", "restart exltui: it sets the file aside and recovers what can be read")
    return StoreError(f"{path}: {message}", "the chat is kept in memory; export it if this does not pass")


def _connect(target: str) -> sqlite3.Connection:
    # No implicit transactions; used from several threads, one at a time (SessionStore has the lock).
    uri = target.startswith("file:")
    return sqlite3.connect(target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri)


def _open_sound(path: Path) -> sqlite3.Connection:
    """Raises _DamagedError for a file that fails SQLite's own check."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        path.touch(mode=0o600)  # chats are private
    connection = _connect(str(path))
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _DamagedError(verdict)
        _use_wal(connection)
        _prepare(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_damage(str(error)):
            raise _DamagedError(str(error)) from error
        raise
    except (StoreError, _DamagedError):
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers and a writer in two programs at once. The switch itself does not wait for a lock, so it is tried for a while."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing; a power cut may lose the last moments, never the file


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to this program's version, or refuse."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < len(MIGRATIONS):
        with transaction(connection):  # another exltui may have been faster: look again, now that nobody else writes
            _migrate(connection, path)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer exltui (version {version} of the file; this one reads up to {len(MIGRATIONS)})",
            f"update exltui, or move {path.name} away to start with no chats",
        )
    _check_owner(connection, path)
    _fit_index(connection)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        _check_owner(connection, path)
    for script in MIGRATIONS[version:]:
        for statement in script.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {max(version, len(MIGRATIONS))}")


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreError(f"{path}: this is another program's database", f"move {path.name} away")


def _fts5(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("CREATE VIRTUAL TABLE temp.probe USING fts5 (x)")
        connection.execute("DROP TABLE temp.probe")
    except sqlite3.OperationalError:
        return False
    return True


def _fit_index(connection: sqlite3.Connection) -> None:
    """Give the file an index of words if this SQLite can; take away its triggers if it cannot, or no message could be saved."""
    triggers = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    if not _fts5(connection):
        for trigger in triggers.intersection(_INDEX_TRIGGERS):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        return
    if not triggers.issuperset(_INDEX_TRIGGERS):
        rebuild_index(connection)
    try:
        connection.execute("SELECT 1 FROM words WHERE words MATCH 'a' LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "vtable" not in str(error):
            raise
        raise _DamagedError(f"the index of words is broken: {error}") from error


def _set_aside(path: Path) -> Path:
    """Rename the damaged file (and the log that belongs to it) and return its new place."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    kept = path.with_name(f"{path.stem}-{stamp}.corrupt{path.suffix}")
    count = 1
    while kept.exists():
        count += 1
        kept = path.with_name(f"{path.stem}-{stamp}-{count}.corrupt{path.suffix}")
    path.rename(kept)
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(kept.with_name(kept.name + ending))
    return kept


def _rescue(kept: Path, into: sqlite3.Connection) -> Rescue:
    """Copy every row that can still be read from ``kept``."""
    counts = {"sessions": 0, "messages": 0}
    with contextlib.closing(_connect(f"{kept.resolve().as_uri()}?mode=ro")) as damaged, transaction(into):
        for table in counts:
            columns = [name for _, name, *_ in into.execute(f"PRAGMA table_info({table})") if name != "number"]
            marks = ", ".join("?" * len(columns))
            insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
            for row in _readable_rows(damaged, table, columns):
                with contextlib.suppress(sqlite3.IntegrityError):  # a row that lost a value to the damage
                    counts[table] += into.execute(insert, row).rowcount
        # A message whose chat's row is lost gets a chat, so that it can be found.
        into.execute(
            """INSERT INTO sessions (id, title, system, model, created, updated, head, choices)
               SELECT session, 'Recovered chat', '', '', min(created), max(created), NULL, '{}' FROM messages
               WHERE session NOT IN (SELECT id FROM sessions) GROUP BY session"""
        )
        chats = into.execute("SELECT count(DISTINCT session) FROM messages").fetchone()[0]
    return Rescue(kept, chats, counts["messages"])


def _readable_rows(damaged: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[object, ...]]:
    """Rows from the front up to the first unreadable page, then from the back up to the last one."""
    for order in ("ASC", "DESC"):
        try:
            yield from damaged.execute(f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED ORDER BY rowid {order}")
            return
        except (sqlite3.Error, UnicodeDecodeError):
            continue
