"""Pages of chats on the disk: through the protocol with the real model, through the app, and what stands between the two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_app_real import until
from test_host import GREEDY, Talk

from exltui.app.app import ExltuiApp
from exltui.app.library import Library
from exltui.app.pages import KeptPages
from exltui.app.parts import Parts
from exltui.app.records import Records
from exltui.client import Client
from exltui.protocol import (
    Done,
    Event,
    Failed,
    JobSpec,
    KeepPages,
    Load,
    Loaded,
    LoadOptions,
    PagesFailed,
    PagesKept,
    PagesRecalled,
    Quit,
    RecallPages,
    Stats,
    Submit,
    Unload,
)

CHAT = "The ship sailed on, and on it sailed. " * 8
LOAD = LoadOptions(device="cpu", length=512)


def about_pages(talk: Talk, name: str) -> Event:
    return talk.until(lambda e: isinstance(e, (PagesKept, PagesRecalled, PagesFailed)) and e.id == name)


@pytest.fixture
def talks() -> Iterator[list[Talk]]:
    """Engines of this test; all are closed at its end."""
    opened: list[Talk] = []
    yield opened
    for talk in opened:
        talk.client.close()


def loaded(talks: list[Talk], model: Path, options: LoadOptions = LOAD) -> Talk:
    talk = Talk()
    talks.append(talk)
    talk.client.send(Load("load", str(model), options))
    assert isinstance(talk.answer("load"), Loaded)
    return talk


def test_a_session_goes_on_in_another_process_with_no_prefill(talks: list[Talk], starter_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pages" / "chat.kv"
    first = loaded(talks, starter_model)
    first.client.send(Submit(JobSpec("a", prompt=CHAT, sampling=GREEDY, max_new_tokens=6, session="chat")))
    done = first.answer("a")
    assert isinstance(done, Done)
    first.client.send(KeepPages("keep", "chat", str(file), 1 << 30))
    first.client.send(Quit())  # what was asked for before is still done
    assert first.client._host is not None and first.client._host.join(30.0)
    kept = about_pages(first, "keep")
    computed = done.stats.prompt_tokens + done.stats.new_tokens - 1
    assert isinstance(kept, PagesKept) and kept.tokens == computed and 0 < kept.size < file.stat().st_size
    assert (file.stat().st_mode & 0o077, file.parent.stat().st_mode & 0o077) == (0, 0), "nobody else reads it"

    second = loaded(talks, starter_model)
    second.client.send(RecallPages("recall", str(file)))
    recalled = about_pages(second, "recall")
    assert isinstance(recalled, PagesRecalled) and recalled.tokens == computed
    second.client.send(Submit(JobSpec("again", prompt=CHAT, sampling=GREEDY, max_new_tokens=6)))
    again = second.answer("again")
    assert isinstance(again, Done) and again.token_ids == done.token_ids
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1, "all but the token whose logits are wanted"

    for change, words in (
        ({"cache": "q8"}, "another cache: fp16; loaded is q8"),
        ({"rope_alpha": 2.0}, "another RoPE: "),
        ({"load_as": "f16"}, "another form of weights: q4 on cpu"),
    ):
        second.client.send(Load("load 2", str(starter_model), replace(LOAD, **change)))
        second.client.send(RecallPages(words, str(file)))
        refused = about_pages(second, words)
        assert isinstance(refused, PagesFailed) and words in refused.error and refused.hint == "the prompt is read again"


def test_another_model_of_the_same_name_is_refused(talks: list[Talk], starter_model: Path, tmp_path: Path) -> None:
    other = tmp_path / starter_model.name
    other.mkdir()
    for source in (path for path in starter_model.iterdir() if path.is_file()):
        (other / source.name).write_bytes(source.read_bytes())
    talk = loaded(talks, starter_model)
    talk.client.send(Submit(JobSpec("a", prompt=CHAT, sampling=GREEDY, max_new_tokens=1, session="chat")))
    talk.client.send(KeepPages("none", "another", str(tmp_path / "none.kv"), 1 << 30))
    assert isinstance(about_pages(talk, "none"), PagesFailed)  # it has no reply
    talk.answer("a")
    talk.client.send(KeepPages("keep", "chat", str(tmp_path / "chat.kv"), 1 << 30))
    assert isinstance(about_pages(talk, "keep"), PagesKept)
    weights = other / "model.safetensors"
    with weights.open("r+b") as stream:  # the same size, the same header, other weights
        stream.seek(-4096, os.SEEK_END)
        stream.write(bytes(4096))
    talk.client.send(Load("other", str(other), LOAD))
    talk.client.send(RecallPages("recall", str(tmp_path / "chat.kv")))
    refused = about_pages(talk, "recall")
    assert isinstance(refused, PagesFailed) and "was computed with another model: smollm2-135m" in refused.error
    talk.client.send(Unload("gone"))
    talk.client.send(RecallPages("unloaded", str(tmp_path / "chat.kv")))
    assert about_pages(talk, "unloaded") == PagesFailed("unloaded", "no model is loaded", "load the one that computed the pages")


def test_files_beside_it_go_when_there_are_too_many(talks: list[Talk], starter_model: Path, tmp_path: Path) -> None:
    talk = loaded(talks, starter_model)
    talk.client.send(Submit(JobSpec("a", prompt="Hello", sampling=GREEDY, max_new_tokens=2, session="chat")))
    talk.answer("a")
    (tmp_path / "old.kv").write_bytes(bytes(1 << 20))
    os.utime(tmp_path / "old.kv", (1, 1))
    talk.client.send(KeepPages("keep", "chat", str(tmp_path / "chat.kv"), 1 << 20))
    assert isinstance(about_pages(talk, "keep"), PagesKept)
    assert [file.name for file in tmp_path.glob("*.kv")] == ["chat.kv"]


class Ear:
    """An engine that answers what it is told to."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.events: list[Event] = []
        self.patience = 0.0

    def start(self) -> None: ...

    def send(self, command: object) -> None:
        self.sent.append(command)

    def poll(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def close(self, timeout: float = 5.0) -> None:
        self.patience = timeout


def test_pages_are_asked_for_before_a_model_goes_and_before_the_first_job(tmp_path: Path) -> None:
    ear, limit = Ear(), 1.0
    pages = KeptPages(ear, lambda id: None if id == "deleted" else tmp_path / f"{id}.kv", lambda: limit)

    def reply(session: str, job: str, event: Event | None = None) -> None:
        pages.send(Submit(JobSpec(job, prompt="x", session=session)))
        ear.events = [event or Done(job, Stats("stop_token", 1, 0, 1, 0.0, 0.0, 0), (1,))]
        pages.poll()

    def kinds() -> list[str]:
        names = [type(command).__name__ for command in ear.sent]
        ear.sent.clear()
        return names

    reply("a", "1")
    reply("", "2")
    reply("b", "3", Failed("3", "no"))
    reply("deleted", "4")
    assert kinds() == ["Submit"] * 4  # there is no file to recall
    pages.send(Load("load", "m"))
    (kept,) = [command for command in ear.sent if isinstance(command, KeepPages)]
    assert (kept.session, kept.file, kept.limit) == ("a", str(tmp_path / "a.kv"), 1_000_000_000)
    assert kinds() == ["KeepPages", "Load"]
    (tmp_path / "a.kv").touch()
    reply("a", "5")
    reply("a", "6")
    assert kinds() == ["RecallPages", "Submit", "Submit"]
    pages.send(Unload("unload"))
    limit = 0.0
    reply("a", "7")
    assert kinds() == ["KeepPages", "Unload", "Submit"]
    pages.close()
    assert kinds() == [] and ear.patience == 5.0
    limit = 2.0
    pages.send(Submit(JobSpec("8", prompt="x", session="a")))
    ear.sent.clear()
    pages.close()  # in the middle of a reply
    assert kinds() == ["KeepPages"] and ear.patience > 5.0


def test_a_deleted_chat_has_no_pages(tmp_path: Path) -> None:
    records = Records(tmp_path / "sessions.db")
    records.open()
    chat = records.new_chat()
    records.save(chat, chat.add("user", "Hello"))
    file = records.pages_file(chat.id)
    assert file == tmp_path / "pages" / f"{chat.id}.kv"
    file.parent.mkdir()
    file.touch()
    records.rows()  # all is written
    records.delete(chat.id)
    assert not file.exists() and records.pages_file(chat.id) is None
    records.undelete()
    assert records.pages_file(chat.id) == file and Records(None).pages_file("x") is None
    records.close()


async def test_a_chat_that_is_opened_again_goes_on_without_being_read(starter_models_dir: Path, tmp_path: Path) -> None:
    def app() -> ExltuiApp:
        records = Records(tmp_path / "sessions.db")
        engine = KeptPages(Client(), records.pages_file, lambda: 1.0)
        options = LoadOptions(length=1024, device="cpu")
        return ExltuiApp(Parts(engine, records, Library([starter_models_dir]), sampling=GREEDY, options=options, model="smollm2-135m"))

    first = app()
    async with first.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: first.observed.loaded is not None)
        await pilot.press(*"Name the capital of France.", "enter")
        await until(pilot, lambda: not first.dialogue.busy)
        stats = first.observed.job.stats
        assert stats.cached_tokens == 0
    assert len(list((tmp_path / "pages").glob("*.kv"))) == 1

    again = app()
    async with again.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: again.observed.loaded is not None and len(again.dialogue.conversation) == 2)
        await pilot.press(*"And of Italy?", "enter")
        await until(pilot, lambda: not again.dialogue.busy)
        assert again.observed.job.stats.cached_tokens >= stats.prompt_tokens + stats.new_tokens - 1
