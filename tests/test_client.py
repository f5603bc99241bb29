"""Recording an event log, and replaying it as if it were an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exltui.client import Client, ReplayClient, log_line, read_log
from exltui.protocol import (
    Cancel,
    Done,
    Event,
    Failed,
    HostUp,
    JobSpec,
    Load,
    Loaded,
    LoadProgress,
    Meter,
    Prefill,
    Queued,
    Stats,
    Submit,
    Text,
    Unload,
    Unloaded,
)

UP = HostUp("2.13", ("cpu",), True)
LOADED = Loaded("load-1", "/m", "m", "LlamaForCausalLM", "f16", 16.0, 135, 8192, 8192, "cpu", 270, 10, 1.5)
STATS = Stats("stop_token", 5, 2, 2, 0.1, 0.2, 7)
LOG: list[tuple[float, Event]] = [
    (0.5, UP),
    (1.0, Meter(())),
    (3.0, LoadProgress("load-1", "weights", 0, 270)),
    (4.5, LOADED),
    (10.0, Queued("job-1", 5)),
    (10.1, Prefill("job-1", 5, 5, 2)),
    (10.3, Text("job-1", "Par\u2028is", 1)),
    (10.4, Meter((), decode_rate=5.0)),
    (10.6, Done("job-1", STATS, (1, 2))),
    (20.0, Queued("job-2", 6)),
    (20.5, Failed("job-2", "no", "why")),
    (30.0, Unloaded("unload-1")),
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(log_line(at, event) for at, event in LOG), encoding="utf-8")
    return path


def test_a_log_reads_back_as_it_was_written(log: Path) -> None:
    assert read_log(log) == LOG


def test_events_come_when_their_time_has_come(log: Path) -> None:
    clock = Clock()
    client = ReplayClient(log, clock)
    assert client.poll() == []
    client.start()
    assert client.poll() == []
    clock.now += 0.5
    assert client.poll() == [UP]
    assert client.poll() == []
    clock.now += 100
    assert client.poll() == [Meter(())], "what answers a command waits for the command"


def test_a_command_is_answered_with_its_own_id_from_when_it_was_sent(log: Path) -> None:
    clock = Clock()
    client = ReplayClient(log, clock)
    client.start()
    clock.now += 60
    client.poll()
    client.send(Load("mine", "/elsewhere"))
    assert client.poll() == [LoadProgress("mine", "weights", 0, 270)]
    clock.now += 1.4
    assert client.poll() == []
    clock.now += 0.1
    (loaded,) = client.poll()
    assert isinstance(loaded, Loaded)
    assert loaded.id == "mine"
    clock.now += 500
    assert client.poll() == []
    client.send(Submit(JobSpec("a", prompt="x")))
    clock.now += 0.6
    first = client.poll()
    assert [type(event) for event in first] == [Queued, Prefill, Text, Meter, Done]
    assert {event.id for event in first if not isinstance(event, Meter)} == {"a"}
    client.send(Submit(JobSpec("b", prompt="x")))
    clock.now += 0.5
    assert client.poll() == [Queued("b", 6), Failed("b", "no", "why")]
    assert not client.finished
    client.send(Unload("u"))
    assert client.poll() == [Unloaded("u")]
    assert client.finished


def test_a_command_that_comes_early_lets_the_log_catch_up(log: Path) -> None:
    clock = Clock()
    client = ReplayClient(log, clock)
    client.start()
    client.send(Load("l", "/m"))
    assert client.poll() == [UP, Meter(()), LoadProgress("l", "weights", 0, 270)]


def test_commands_are_kept_and_those_without_an_answer_do_no_harm(log: Path) -> None:
    client = ReplayClient(log, Clock())
    client.send(Cancel("before the start"))
    client.start()
    for command in (Cancel("x"), Load("a", "/m"), Load("b", "/m")):
        client.send(command)
    assert client.sent == [Cancel("x"), Load("a", "/m"), Load("b", "/m")]
    client.close()
    assert client.poll() == []


@pytest.mark.parametrize(
    "line", ["{", '{"at": 1}', '{"at": 1, "event": {"is": "Nonsense"}}', '{"at": 1, "event": {"is": "Queued", "x": 1}}']
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_line(0, UP) + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_log(path)


def test_the_recorder_keeps_every_event_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    client = Client(record_to=path)
    for _, event in LOG:
        client._receive(event)
    assert client.poll() == [event for _, event in LOG]
    client.close()
    assert [event for _, event in read_log(path)] == [event for _, event in LOG]
    times = [json.loads(line)["at"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert times == sorted(times)
    client._receive(UP)  # a late event after the close is not lost and breaks nothing
    assert client.poll() == [UP]


def test_a_full_disk_ends_the_recording_and_not_the_engine(tmp_path: Path) -> None:
    client = Client(record_to=Path("/dev/full"))
    client._receive(UP)
    client._receive(UP)
    assert client.poll() == [UP, UP]
    client.close()


def test_wait_gives_up_after_its_time() -> None:
    assert Client().wait(0.01) == []


def test_a_client_that_was_not_started_drops_commands() -> None:
    client = Client()
    client.send(Cancel("x"))
    client.close()
    assert client.poll() == []
