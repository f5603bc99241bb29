"""The background writer: nothing lost to a kill -9, a full disk or a slow one."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exltui.chat import writer as writer_module
from exltui.chat.store import INTERRUPTED, SessionStore
from exltui.chat.tree import Conversation
from exltui.chat.writer import StoreWriter
from exltui.errors import StoreError

ROOT = Path(__file__).resolve().parent.parent
# What the app does: it collects text for 0.1 s, then appends it and has it saved. Each word is the time at which it was "generated",
# and goes to the pipe too: the test compares what there was with what was saved, so that a busy machine makes no difference.
STREAM = """
import sys, time
from pathlib import Path
from exltui.chat.store import SessionStore
from exltui.chat.tree import Conversation
from exltui.chat.writer import StoreWriter
writer = StoreWriter(SessionStore(Path(sys.argv[1])))
chat = Conversation()
writer.save(chat.header, chat.add("user", "Count."))
assert writer.flush()
reply = chat.add("assistant", "", state="streaming")
writer.save(chat.header, reply)
print(chat.id, flush=True)
while True:
    words = []
    for _ in range(10):
        time.sleep(0.01)
        words.append(f"{time.monotonic():.3f} ")
        print(words[-1], flush=True)
    writer.save(chat.header, chat.append_text(reply.id, "".join(words)))
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_kill_loses_at_most_half_a_second(tmp_path: Path, attempt: int):
    path = tmp_path / "sessions.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", STREAM, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    id = child.stdout.readline().strip()
    time.sleep(1.0 + random.Random(attempt).random())
    child.send_signal(signal.SIGKILL)
    generated = child.communicate()[0].split()
    assert child.returncode == -signal.SIGKILL
    sessions = SessionStore(path)
    assert sessions.rescue is None
    user, reply = sessions.load(id).path()
    assert (user.text, reply.state, reply.note) == ("Count.", "stopped", INTERRUPTED)
    saved = reply.text.split()
    assert saved == generated[: len(saved)] and len(saved) > 10
    assert float(generated[-1]) - float(saved[-1]) <= 0.5
    assert [hit.message for hit in sessions.search("Count")][-1] == user.id


@pytest.fixture
def sessions(tmp_path: Path):
    store = SessionStore(tmp_path / "sessions.db")
    yield store
    store.close()


class Slow:
    """A store whose every save takes a while; it counts them."""

    def __init__(self, sessions: SessionStore, seconds: float) -> None:
        self.sessions, self.seconds, self.saves = sessions, seconds, 0

    def save(self, header, message=None):
        self.saves += 1
        time.sleep(self.seconds)
        self.sessions.save(header, message)


def test_saving_does_not_wait_for_the_disk(sessions: SessionStore):
    slow = Slow(sessions, 0.2)
    writer = StoreWriter(slow)
    chat = Conversation()
    reply = chat.add("assistant", "", state="streaming")
    begin = time.perf_counter()
    for i in range(2000):
        writer.save(chat.header, chat.append_text(reply.id, f"{i} "))
    writer.save(chat.header, chat.finish(reply.id))
    assert time.perf_counter() - begin < 0.5  # 2,000 calls; the disk would have taken 400 s
    assert writer.close()
    assert slow.saves < 10
    assert list(sessions.load(chat.id)) == list(chat)


def test_a_streaming_reply_is_written_four_times_a_second(sessions: SessionStore):
    counted = Slow(sessions, 0)
    writer = StoreWriter(counted)
    chat = Conversation()
    reply = chat.append_text(chat.add("assistant", "", state="streaming").id, "a")
    begin = time.monotonic()
    while time.monotonic() - begin < 1.0:
        reply = chat.append_text(reply.id, "b")
        writer.save(chat.header, reply)
        time.sleep(0.01)
    assert 2 <= counted.saves <= 5
    writer.close()


def test_order_does_not_bring_back_an_old_header(sessions: SessionStore):
    slow = Slow(sessions, 0.05)
    writer = StoreWriter(slow)
    chat = Conversation()
    first = chat.add("user", "one")
    writer.save(chat.header)
    writer.save(chat.header, first)
    chat.edit(first.id, "two")
    writer.save(chat.header, chat.path()[-1])
    chat.select(first.id)
    writer.save(chat.header)
    assert writer.close()
    assert sessions.load(chat.id).header == chat.header


def test_delete_and_undelete_and_drafts(sessions: SessionStore):
    writer = StoreWriter(sessions)
    chat = Conversation()
    writer.save(chat.header, chat.add("user", "one"))
    writer.save(chat.header, chat.add("assistant", "1"))
    for text in ("h", "ha", "hal", "half"):
        writer.save_draft(chat.header, text)
    writer.delete(chat.id)
    assert writer.flush()
    assert sessions.sessions() == [] and sessions.draft(chat.id) == "half"
    writer.undelete(chat.id)
    chat.title = "renamed"
    writer.set_title(chat.id, chat.title)
    deletion = chat.delete(chat.path()[-1].id)
    writer.remove_messages(chat.header, deletion)
    assert writer.flush()
    assert sessions.load(chat.id).title == "renamed" and len(sessions.load(chat.id)) == 1
    chat.undo()
    writer.restore_messages(chat.header, deletion)
    assert writer.close()
    assert len(sessions.load(chat.id)) == 2


def test_a_full_disk_is_told_once_and_all_is_saved_when_there_is_room(sessions: SessionStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.05)
    told: list[StoreError | None] = []
    better = threading.Event()
    writer = StoreWriter(sessions, lambda problem: (told.append(problem), better.set() if problem is None else None))
    chat = Conversation()
    writer.save(chat.header, chat.add("user", "before"))
    assert writer.flush()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        reply = chat.add("assistant", "", state="streaming")
        for _ in range(20):
            writer.save(chat.header, chat.append_text(reply.id, "word " * 5000))
            time.sleep(0.02)
        writer.save(chat.header, chat.finish(reply.id))
        assert not writer.flush(0.3)
        assert writer.problem is not None and len(told) == 1 and told[0] is not None and told[0].hint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert better.wait(5)
    assert writer.close() and len(told) == 2 and writer.problem is None
    again = sessions.load(chat.id)
    assert list(again) == list(chat) and len(again.path()[-1].text) == 500_000


def test_what_failed_does_not_come_back_over_what_is_newer(sessions: SessionStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.01)
    save, started, go_on = sessions.save, threading.Event(), threading.Event()

    def fail_once(header, message=None):
        if not started.is_set():
            started.set()
            go_on.wait(5)
            raise StoreError("full")
        save(header, message)

    monkeypatch.setattr(sessions, "save", fail_once)
    writer = StoreWriter(sessions)
    chat = Conversation()
    reply = chat.add("assistant", "old", state="streaming")
    writer.save(chat.header, reply)
    assert started.wait(5)
    writer.save(chat.header, chat.append_text(reply.id, " and new"))
    go_on.set()
    assert writer.close()
    assert sessions.load(chat.id).path()[-1].text == "old and new"


def test_one_thing_that_cannot_be_saved_does_not_hold_back_the_rest(sessions: SessionStore, monkeypatch: pytest.MonkeyPatch):
    save = sessions.save

    def refuse(header, message=None):
        if message is not None and message.text == "bad":
            raise StoreError("no")
        save(header, message)

    monkeypatch.setattr(sessions, "save", refuse)
    writer = StoreWriter(sessions)
    chat = Conversation()
    writer.save(chat.header, chat.add("user", "bad"))
    chat.branch_from(None)
    good = chat.add("user", "good")
    writer.save(chat.header, good)
    assert not writer.close(0.3)
    assert [m.id for m in sessions.load(chat.id)] == [good.id]


def test_closing_writes_what_waits(tmp_path: Path):
    sessions = SessionStore(tmp_path / "sessions.db")
    writer = StoreWriter(sessions)
    chat = Conversation()
    reply = chat.append_text(chat.add("assistant", "", state="streaming").id, "text")
    writer.save(chat.header, reply)
    assert writer.close()
    with contextlib.closing(sessions):
        assert sessions.load(chat.id).path()[-1].text == "text"
    assert not writer._thread.is_alive()
