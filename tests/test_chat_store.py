"""The database of chats: what is saved comes back, whatever happens to the program, the disk or the file."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exltui.chat import database, store
from exltui.chat.store import ELSEWHERE, INTERRUPTED, KEPT_DAYS, SessionStore
from exltui.chat.tree import Conversation, Header, Message
from exltui.errors import StoreError
from exltui.protocol import Sampling, Stats

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.db"


def fill(sessions: SessionStore, question: str = "What is the capital of France?", answer: str = "Paris.") -> Conversation:
    chat = Conversation(system="Be brief.", model="smollm2")
    sessions.save(chat.header, chat.add("user", question))
    reply = chat.add("assistant", "", state="streaming", model="smollm2", sampling=Sampling(temperature=0.1, seed=3))
    sessions.save(chat.header, reply)
    chat.append_text(reply.id, answer)
    stats = Stats("stop_token", 12, 3, 4, 0.25, 0.5, 3)
    sessions.save(chat.header, chat.finish(reply.id, stats=stats))
    return chat


def same(first: Conversation, second: Conversation) -> bool:
    return (first.header, list(first), first.path()) == (second.header, list(second), second.path())


@contextlib.contextmanager
def largest_file(size: int):
    """No file may grow beyond ``size`` bytes: a disk that is full, as far as SQLite can tell."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


class TestSaving:
    def test_a_reopened_chat_is_identical(self, path: Path):
        first = SessionStore(path)
        chat = fill(first)
        second_question = chat.add("user", "And of Spain?")
        first.save(chat.header, second_question)
        first.save(chat.header, chat.add("assistant", "Madrid. \0 \u0301\U0001f600\r\n\tend  "))
        first.save(chat.header, chat.edit(second_question.id, "And of Italy?"))
        chat.select(second_question.id)
        first.save(chat.header)
        first.close()
        again = SessionStore(path).load(chat.id)
        assert same(again, chat)
        assert again.path()[1].stats == Stats("stop_token", 12, 3, 4, 0.25, 0.5, 3)
        assert again.path()[1].sampling == Sampling(temperature=0.1, seed=3)

    def test_the_list_shows_the_last_changed_first(self, path: Path):
        now = iter(range(10, 1000))
        sessions = SessionStore(path, now=lambda: float(next(now)))
        older, newer = fill(sessions, "older"), fill(sessions, "newer")
        assert [s.title for s in sessions.sessions()] == ["newer", "older"]
        sessions.save(older.header, older.add("user", "more"))
        assert [s.id for s in sessions.sessions()] == [older.id, newer.id]
        sessions.save(newer.header)  # to look at another branch is no change
        assert sessions.sessions()[0].id == older.id
        assert len(sessions.sessions(limit=1)) == 1

    def test_a_deleted_chat_comes_back(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.delete(chat.id)
        assert sessions.sessions() == [] and sessions.search("Paris") == []
        with pytest.raises(StoreError, match="no chat"):
            sessions.load(chat.id)
        sessions.undelete(chat.id)
        assert same(sessions.load(chat.id), chat)

    def test_deleted_chats_and_messages_go_for_good_after_a_week(self, path: Path):
        sessions = SessionStore(path)
        gone, kept = fill(sessions, "to go"), fill(sessions, "to stay")
        sessions.delete(gone.id)
        deletion = kept.delete(kept.path()[-1].id)
        sessions.remove_messages(kept.header, [m.id for m in deletion.messages])
        sessions.close()
        almost = SessionStore(path, now=lambda: time.time() + (KEPT_DAYS - 1) * 86400)
        almost.undelete(gone.id)
        assert same(almost.load(gone.id), gone)
        almost.delete(gone.id)
        almost.close()
        later = SessionStore(path, now=lambda: time.time() + (2 * KEPT_DAYS) * 86400)
        later.undelete(gone.id)
        later.restore_messages(kept.header, [m.id for m in deletion.messages])
        with pytest.raises(StoreError):
            later.load(gone.id)
        assert len(later.load(kept.id)) == 1

    def test_removed_messages_come_back(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        deletion = chat.delete(chat.path()[-1].id)
        sessions.remove_messages(chat.header, [m.id for m in deletion.messages])
        assert same(sessions.load(chat.id), chat)
        assert sessions.search("Paris") == []
        chat.undo()
        sessions.restore_messages(chat.header, [m.id for m in deletion.messages])
        assert same(sessions.load(chat.id), chat)
        assert len(sessions.search("Paris.")) == 1

    def test_titles_and_drafts(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.set_title(chat.id, "Capitals")
        sessions.save_draft(chat.header, "half a \ud800 thought")
        assert sessions.load(chat.id).title == "Capitals"
        assert sessions.draft(chat.id) == "half a ? thought"
        assert sessions.draft("nowhere") == ""

    def test_a_draft_alone_makes_a_chat(self, path: Path):
        sessions = SessionStore(path)
        header = Conversation().header
        sessions.save_draft(header, "not sent")
        assert [s.id for s in sessions.sessions()] == [header.id]
        sessions.save_draft(header, "")
        assert sessions.sessions() == []

    def test_a_store_in_memory(self):
        sessions = SessionStore(None)
        chat = fill(sessions)
        assert same(sessions.load(chat.id), chat)

    def test_an_imported_chat_is_saved_whole(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(SessionStore(None))
        sessions.save_all(chat)
        assert same(sessions.load(chat.id), chat)

    def test_figures_of_another_version_are_left_out_not_fatal(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        reply = chat.path()[-1]
        with sqlite3.connect(path) as raw:
            raw.execute(
                'UPDATE messages SET stats = \'{"new": 1}\', sampling = \'{"temperature": 0.5, "new": 2}\' WHERE id = ?', (reply.id,)
            )
        again = sessions.load(chat.id)[reply.id]
        assert (again.stats, again.sampling) == (None, Sampling(temperature=0.5))

    def test_chats_are_private(self, path: Path):
        SessionStore(path)
        assert path.stat().st_mode & 0o077 == 0


class TestSearch:
    def test_every_word_counts_and_may_be_a_beginning(self, path: Path):
        sessions = SessionStore(path)
        fill(sessions, "Why are there two tides a day?", "The Moon pulls on the near side.")
        fill(sessions, "Recipe for pierogi", "Flour, water, an egg. Crème fraîche.")
        assert [h.title for h in sessions.search("moon pul")] == ["Why are there two tides a day?"]
        assert sessions.search("moon egg") == []
        assert [h.snippet for h in sessions.search("creme")] == ["Flour, water, an egg. Crème fraîche."]

    def test_titles_are_searched(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.set_title(chat.id, "Geography")
        (hit,) = sessions.search("geogr")
        assert (hit.session, hit.message, hit.snippet) == (chat.id, None, "Geography")

    @pytest.mark.parametrize("text", ['"', "a AND", "NEAR(", "x*", "-y", "col:", "'; DROP TABLE messages", "%", "_", "\\", "\0", "("])
    def test_signs_are_only_signs(self, path: Path, text: str):
        sessions = SessionStore(path)
        fill(sessions, "plain", "words")
        assert sessions.search(text) == []
        chat = fill(sessions, "odd", f"before {text} after")
        if text not in "\0":
            assert {h.session for h in sessions.search(text)} == {chat.id}

    def test_letters_within_a_word_and_words_without_spaces(self, path: Path):
        sessions = SessionStore(path)
        fill(sessions, "q", "Donaudampfschifffahrt")
        fill(sessions, "r", "月が近い側を引っ張る")
        assert len(sessions.search("schiff")) == 1
        assert len(sessions.search("引っ張")) == 1

    def test_other_branches_are_found(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions, "first wording")
        first = chat.path()[0].id
        sessions.save(chat.header, chat.edit(first, "second text"))
        assert [h.message for h in sessions.search("wording") if h.message] == [first]

    def test_changed_and_continued_messages_are_indexed_once(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions, "q", "alpha")
        reply = chat.path()[-1]
        changed = Message(reply.id, reply.parent, "assistant", "alpha beta", reply.created, reply.order, "streaming")
        sessions.save(chat.header, changed)
        done = Message(reply.id, reply.parent, "assistant", "gamma", reply.created, reply.order, "done")
        sessions.save(chat.header, done)
        sessions.save(chat.header, done)
        assert sessions.search("alpha") == [] and len(sessions.search("gamma")) == 1
        with sqlite3.connect(path) as raw:
            raw.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")

    def test_without_full_text_search(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        with_index = SessionStore(path)
        fill(with_index, "q", "alpha beta")
        with_index.close()
        monkeypatch.setattr(database, "_fts5", lambda connection: False)
        sessions = SessionStore(path)
        fill(sessions, "r", "100% gamma")
        assert len(sessions.search("ALPHA BE")) == 1 and len(sessions.search("0% g")) == 1
        sessions.close()
        monkeypatch.undo()
        again = SessionStore(path)  # the index is made afresh, with what was written without it
        assert len(again.search("gamma")) == 1 and again._indexed


class TestDamage:
    def test_a_file_of_garbage_is_kept_aside(self, path: Path):
        path.parent.mkdir()
        path.write_bytes(b"this was a database once" * 300)
        sessions = SessionStore(path)
        assert sessions.rescue is not None
        assert sessions.rescue.kept.read_bytes().startswith(b"this was")
        assert sessions.rescue.kept.name.startswith("sessions-") and sessions.rescue.kept.name.endswith(".corrupt.db")
        assert str(sessions.rescue.kept) in sessions.rescue.sentence
        chat = fill(sessions)
        assert same(SessionStore(path).load(chat.id), chat)

    def test_two_damaged_files_in_one_second_are_both_kept(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(database.time, "strftime", lambda form: "20260101-000000")
        path.parent.mkdir()
        for _ in range(2):
            path.write_bytes(b"x" * 5000)
            SessionStore(path).close()
        assert len(list(path.parent.glob("*.corrupt.db"))) == 2

    @pytest.mark.parametrize("page", range(1, 9))
    def test_what_can_be_read_is_recovered(self, path: Path, page: int):
        first = SessionStore(path)
        chats = [fill(first, f"question {i}", f"answer {i} " + "long " * 400) for i in range(40)]
        first.close()
        size = path.stat().st_size
        assert size > 30 * 4096
        with path.open("r+b") as file:  # one page in every eighth of the file, never the first, which holds the schema
            file.seek(4096 * max(1, page * size // 4096 // 9))
            file.write(b"\xa5" * 4096)
        sessions = SessionStore(path)
        if sessions.rescue is None:  # the page was free, or holds text: nothing that SQLite can notice
            return
        assert sessions.rescue.messages > 0
        listed = sessions.sessions()
        assert len(listed) > 0
        for info in listed:
            assert len(sessions.load(info.id)) >= 1
        assert {info.id for info in listed} <= {chat.id for chat in chats}

    def test_damage_is_noticed_in_most_places(self, path: Path):
        """The test above must not pass by never finding damage."""
        first = SessionStore(path)
        for i in range(40):
            fill(first, f"question {i}", f"answer {i}")
        first.close()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        assert SessionStore(path).rescue is not None

    @pytest.mark.parametrize("parent", ["nowhere", "itself", "its reply"])
    def test_a_message_that_lost_its_place_can_still_be_read(self, path: Path, parent: str):
        sessions = SessionStore(path)
        chat = fill(sessions)
        user, reply = chat.path()
        with contextlib.closing(sqlite3.connect(path)) as raw:
            value = {"nowhere": "nowhere", "itself": user.id, "its reply": reply.id}[parent]
            raw.execute("UPDATE messages SET parent = ? WHERE id = ?", (value, user.id))
            raw.commit()
        assert [m.text for m in sessions.load(chat.id).path()] == [user.text, reply.text]

    @pytest.mark.parametrize("choices", ["", "[]", "{", '{"a": 1}'])
    def test_the_chat_opens_without_the_places_last_read(self, path: Path, choices: str):
        sessions = SessionStore(path)
        chat = fill(sessions)
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("UPDATE sessions SET choices = ?", (choices,))
            raw.commit()
        assert sessions.load(chat.id).path() == chat.path()

    def test_a_row_of_nonsense_is_a_sentence(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("UPDATE messages SET role = 'tool'")
            raw.commit()
        with pytest.raises(StoreError, match="tool"):
            sessions.load(chat.id)

    @pytest.mark.parametrize("block", ["zeroblob(40)", "randomblob(30)", "substr(block, 1, 5)"])
    def test_a_damaged_index_of_words_is_made_afresh(self, path: Path, block: str):
        sessions = SessionStore(path)
        chat = fill(sessions, "alpha")
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute(f"UPDATE words_data SET block = {block}")
            raw.commit()
        message = chat.add("user", "beta")
        sessions.close()
        again = SessionStore(path)
        with contextlib.suppress(StoreError):
            again.search("alpha")
        with contextlib.suppress(StoreError):
            again.save(chat.header, message)
        assert again._mended or again.rescue is not None  # while it runs, or at the start
        again.save(chat.header, message)
        assert same(again.load(chat.id), chat)
        assert len(again.search("alpha")) == 2 and len(again.search("beta")) == 1

    def test_an_empty_file_is_a_new_one(self, path: Path):
        path.parent.mkdir()
        path.touch()
        assert SessionStore(path).rescue is None

    def test_another_programs_database_is_left_alone(self, path: Path):
        path.parent.mkdir()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.commit()
        with pytest.raises(StoreError, match="another program's"):
            SessionStore(path)

    def test_a_folder_in_its_place(self, path: Path):
        path.mkdir(parents=True)
        with pytest.raises(StoreError, match="sessions"):
            SessionStore(path)

    def test_a_parent_that_is_a_file(self, tmp_path: Path):
        (tmp_path / "data").write_text("")
        with pytest.raises(StoreError, match="data"):
            SessionStore(tmp_path / "data" / "sessions.db")


class TestVersions:
    def test_a_newer_file_is_refused_in_one_sentence(self, path: Path):
        SessionStore(path).close()
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        with pytest.raises(StoreError, match="newer exltui") as caught:
            SessionStore(path)
        assert "update exltui" in caught.value.hint
        assert path.read_bytes() == before

    def test_an_older_file_is_brought_up_to_date(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.close()
        newer = (*database.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN colour INTEGER NOT NULL DEFAULT 0")
        monkeypatch.setattr(database, "MIGRATIONS", newer)
        again = SessionStore(path)
        assert same(again.load(chat.id), chat)
        with contextlib.closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA user_version").fetchone() == (len(newer),)
            assert raw.execute("SELECT colour FROM sessions").fetchall() == [(0,)]

    def test_a_migration_that_fails_leaves_the_file_as_it_was(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.close()
        with monkeypatch.context() as patch:
            patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE added (x); SELECT nonsense"))
            with pytest.raises(StoreError):
                SessionStore(path)
        assert same(SessionStore(path).load(chat.id), chat)


class TestFullDisk:
    def test_a_full_disk_is_a_sentence_and_loses_nothing_saved(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        long = chat.add("user", "x" * 3_000_000)
        with largest_file(1_000_000), pytest.raises(StoreError) as caught:
            sessions.save(chat.header, long)
        assert "\n" not in str(caught.value) and caught.value.hint
        assert len(sessions.load(chat.id)) == 2
        sessions.save(chat.header, long)  # there is room again
        assert same(sessions.load(chat.id), chat)

    def test_opening_on_a_full_disk_is_a_sentence_and_does_no_harm(self, path: Path):
        with largest_file(4096), pytest.raises(StoreError) as caught:
            SessionStore(path)
        assert "\n" not in str(caught.value) and caught.value.hint
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions.close()
        with largest_file(4096), contextlib.suppress(StoreError):
            SessionStore(path).close()
        again = SessionStore(path)
        assert again.rescue is None and same(again.load(chat.id), chat)

    def test_a_database_at_its_limit(self, path: Path):
        sessions = SessionStore(path)
        chat = fill(sessions)
        sessions._connection.execute("PRAGMA max_page_count = 20")
        long = chat.add("user", "x" * 300_000)
        with pytest.raises(StoreError, match="disk is full"):
            sessions.save(chat.header, long)
        sessions._connection.execute("PRAGMA max_page_count = 1000000")
        sessions.save(chat.header, long)
        assert same(sessions.load(chat.id), chat)


OTHER = """
import sys, time
from pathlib import Path
from exltui.chat.store import SessionStore
from exltui.chat.tree import Conversation
sessions = SessionStore(Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    chat = Conversation()
    sessions.save(chat.header, chat.add("user", f"{sys.argv[3]} {i}"))
    reply = chat.add("assistant", "", state="streaming")
    for word in "one two three four".split():
        sessions.save(chat.header, chat.append_text(reply.id, word + " "))
    if sys.argv[3] != "hold":
        sessions.save(chat.header, chat.finish(reply.id))
print(chat.id, flush=True)
if sys.argv[3] == "hold":
    sys.stdin.read()
"""


def other(path: Path, count: int, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OTHER, str(path), str(count), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


class TestTwoPrograms:
    def test_both_save_at_once_from_the_first_moment(self, path: Path):
        programs = [other(path, 30, name) for name in ("a", "b", "c")]
        for program in programs:
            program.communicate(timeout=60)
            assert program.returncode == 0
        sessions = SessionStore(path)
        assert len(sessions.sessions()) == 90 and len(sessions.search("three")) == 90
        assert {m.text for info in sessions.sessions() for m in sessions.load(info.id) if m.role == "assistant"} == {"one two three four "}

    def test_a_reply_that_another_program_writes_is_left_to_it(self, path: Path):
        program = other(path, 1, "hold")
        assert program.stdout is not None
        id = program.stdout.readline().strip()
        sessions = SessionStore(path)
        reply = sessions.load(id).path()[-1]
        assert (reply.state, reply.note) == ("stopped", ELSEWHERE)
        sessions.close()
        with contextlib.closing(sqlite3.connect(path)) as raw:
            assert raw.execute("SELECT state FROM messages WHERE id = ?", (reply.id,)).fetchone() == ("streaming",)
        program.kill()
        program.communicate()
        reply = SessionStore(path).load(id).path()[-1]
        assert (reply.state, reply.note, reply.text) == ("stopped", INTERRUPTED, "one two three four ")

    def test_messages_of_two_programs_in_one_chat_are_all_kept(self, path: Path):
        here, there = SessionStore(path), SessionStore(path)
        chat = fill(here)
        theirs = there.load(chat.id)
        here.save(chat.header, chat.add("user", "mine"))
        there.save(theirs.header, theirs.add("user", "theirs"))
        again = SessionStore(path).load(chat.id)
        assert {m.text for m in again.children(chat.path()[1].id)} == {"mine", "theirs"}

    def test_a_lock_that_stays_is_a_sentence(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
        sessions = SessionStore(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                sessions.save(Header("x"))
            raw.execute("ROLLBACK")
        sessions.save(Header("x"))

    def test_a_pid_that_was_given_to_another_process_is_not_alive(self):
        host, pid, started = store._this_process().split(" ")
        assert store._alive(f"{host} {pid} {started}")
        assert not store._alive(f"{host} {pid} 1")
        assert not store._alive(f"{host} 999999999 1")
        assert not store._alive("")
        assert store._alive(f"elsewhere {pid} 1")
