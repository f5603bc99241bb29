"""The engine's thread: every command is answered once, whatever happens, and the thread lives on."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import expected, toy_generator

from exltui import paths
from exltui.client import Client
from exltui.engine import session as session_module
from exltui.engine.host import Host, _Rates
from exltui.errors import ModelError
from exltui.protocol import (
    Cancel,
    Done,
    Event,
    Failed,
    HostUp,
    JobSpec,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    LoadProgress,
    Meter,
    Prefill,
    Queued,
    Quit,
    Sampling,
    Submit,
    Text,
    Unload,
    Unloaded,
)

GREEDY = Sampling(temperature=0.0)
PATIENCE = 60.0


class Talk:
    """A client and everything that it has heard."""

    def __init__(self) -> None:
        self.client = Client()
        self.heard: list[Event] = []
        self.client.start()

    def until(self, wanted: Callable[[Event], bool], patience: float = PATIENCE) -> Event:
        """The first event, heard before or to come, that is ``wanted``."""
        looked, deadline = 0, time.monotonic() + patience
        while time.monotonic() < deadline:
            for event in self.heard[looked:]:
                if wanted(event):
                    return event
            looked = len(self.heard)
            self.heard += self.client.wait(0.2)
        raise AssertionError(f"nothing of the kind came; heard {self.heard[-10:]}")

    def answer(self, job_id: str) -> Event:
        return self.until(lambda e: isinstance(e, (Done, Failed, Loaded, LoadFailed, Unloaded)) and e.id == job_id)

    def text(self, job_id: str) -> str:
        return "".join(e.text for e in self.heard if isinstance(e, Text) and e.id == job_id)


@pytest.fixture
def talk() -> Iterator[Talk]:
    before = sum(thread.name == "exltui-engine" for thread in threading.enumerate())
    talk = Talk()
    yield talk
    talk.client.close()
    engines = [thread for thread in threading.enumerate() if thread.name == "exltui-engine"]
    assert len(engines) <= before, "the engine's thread did not end"


def toy_session() -> SimpleNamespace:
    generator = toy_generator(40, context=2000, chunk=64)
    model = generator.runner.model
    model.name, model.format, model.bits_per_weight, model.parameters = "toy", "f32", 32.0, 1
    model.spec.architecture, model.spec.trained_context, model.notes = "Toy", 2000, ()
    return SimpleNamespace(runner=generator.runner, generator=generator, close=lambda: None, problem="")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every load gives this toy session; ``open`` may be replaced."""
    session = toy_session()
    session.open = lambda *arguments: session

    def open_session(*arguments: object) -> object:
        return session.open(*arguments)

    monkeypatch.setattr(session_module, "open_session", open_session)
    return session


@pytest.fixture
def toy_talk(toy: SimpleNamespace, talk: Talk) -> Talk:
    talk.client.send(Load("load", "/toy"))
    assert isinstance(talk.answer("load"), Loaded)
    return talk


def test_the_host_says_when_it_is_up(talk: Talk) -> None:
    up = talk.until(lambda e: isinstance(e, HostUp))
    assert isinstance(up, HostUp)
    assert "cpu" in up.devices
    assert up.torch_version


def test_start_does_not_wait_for_torch() -> None:
    client = Client()
    started = time.perf_counter()
    client.start()
    assert time.perf_counter() - started < 0.5  # torch alone takes more than a second
    client.close(PATIENCE)


def test_a_missing_directory_and_a_job_without_a_model_are_refused(talk: Talk) -> None:
    talk.client.send(Load("load", "/no/such/model"))
    failed = talk.answer("load")
    assert isinstance(failed, LoadFailed)
    assert "no such directory" in failed.error
    assert failed.hint
    talk.client.send(Submit(JobSpec("job", prompt="x")))
    assert talk.answer("job") == Failed("job", "no model is loaded", "load one first")
    talk.client.send(Cancel("nothing"))
    talk.client.send(Unload("unload"))
    assert talk.answer("unload") == Unloaded("unload")


def test_a_job_runs_and_says_what_the_toy_says(toy_talk: Talk) -> None:
    spec = JobSpec("job", prompt="abc", sampling=Sampling(seed=4), max_new_tokens=300)
    toy_talk.client.send(Submit(spec))
    done = toy_talk.answer("job")
    assert isinstance(done, Done)
    ids, reason = expected(spec, 2000)
    assert (list(done.token_ids), done.stats.stop_reason) == (ids, reason)
    mine = [e for e in toy_talk.heard if getattr(e, "id", "") == "job"]
    assert isinstance(mine[0], Queued)
    assert isinstance(mine[1], Prefill)
    assert sum(e.tokens for e in mine if isinstance(e, Text)) == len(ids)


def test_text_is_joined_to_at_most_thirty_events_a_second(toy: SimpleNamespace, toy_talk: Talk) -> None:
    toy.generator.tokenizer.eos_ids = frozenset()
    started = time.monotonic()
    toy_talk.client.send(Submit(JobSpec("job", prompt="a", sampling=Sampling(seed=1), max_new_tokens=1500)))
    toy_talk.until(lambda e: isinstance(e, Queued))
    done = toy_talk.answer("job")
    assert isinstance(done, Done)
    texts = [e for e in toy_talk.heard if isinstance(e, Text)]
    # One at once, then one a thirtieth of a second, then what is left.
    assert len(texts) <= (time.monotonic() - started) * 30 + 3
    assert sum(e.tokens for e in texts) == done.stats.new_tokens


def test_cancel_ends_a_job_soon_and_keeps_its_text(toy: SimpleNamespace, toy_talk: Talk) -> None:
    step = toy.runner.step

    def slow(packet: object) -> object:
        time.sleep(0.02)
        return step(packet)

    toy.runner.step = slow
    toy.generator.tokenizer.eos_ids = frozenset()
    toy_talk.client.send(Submit(JobSpec("job", prompt="abc", sampling=Sampling(seed=1))))
    toy_talk.until(lambda e: isinstance(e, Text))
    sent = time.monotonic()
    toy_talk.client.send(Cancel("job"))
    done = toy_talk.answer("job")
    assert time.monotonic() - sent < 1.0  # a step takes 0.02 s; the rest is for busy machines
    assert isinstance(done, Done)
    assert done.stats.stop_reason == "cancelled"
    assert toy_talk.text("job") == toy.generator.tokenizer.decode(list(done.token_ids))


def test_a_failing_step_fails_its_jobs_and_the_next_one_works(toy: SimpleNamespace, toy_talk: Talk) -> None:
    toy.runner.fail = ZeroDivisionError("a kernel was wrong")
    toy_talk.client.send(Submit(JobSpec("a", prompt="abc")))
    failed = toy_talk.answer("a")
    assert failed == Failed("a", "ZeroDivisionError: a kernel was wrong", "the log has the details; exltui doctor names it")
    assert "a kernel was wrong" in paths.log_file().read_text()
    assert "Traceback" in paths.log_file().read_text()
    toy.runner.fail = ModelError("the weights are wrong", "get them again")
    toy_talk.client.send(Submit(JobSpec("b", prompt="abc")))
    assert toy_talk.answer("b") == Failed("b", "the weights are wrong", "get them again")
    toy.runner.fail = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    toy_talk.client.send(Submit(JobSpec("c", prompt="abc")))
    out_of_memory = toy_talk.answer("c")
    assert isinstance(out_of_memory, Failed)
    assert out_of_memory.error == "there is not enough memory"
    toy_talk.client.send(Submit(JobSpec("d", prompt="abc", sampling=GREEDY, max_new_tokens=3)))
    assert isinstance(toy_talk.answer("d"), Done)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (JobSpec("bad", prompt="a" * 5000), "5,000 tokens, the context holds 2,000"),
        (JobSpec("bad", prompt="a", sampling=Sampling(temperature=-1)), "temperature is -1"),
        (JobSpec("bad", prompt="a", sampling=Sampling(top_k="many")), "top_k is 'many'"),  # type: ignore[arg-type]
        (JobSpec("bad", prompt="?"), "ValueError"),  # the toy's tokenizer does not know it
    ],
)
def test_a_bad_job_is_refused_and_the_engine_goes_on(toy_talk: Talk, spec: JobSpec, words: str) -> None:
    toy_talk.client.send(Submit(spec))
    failed = toy_talk.answer("bad")
    assert isinstance(failed, Failed)
    assert words in failed.error
    toy_talk.client.send(Submit(JobSpec("good", prompt="abc", sampling=GREEDY, max_new_tokens=3)))
    assert isinstance(toy_talk.answer("good"), Done)


def test_a_load_can_be_cancelled_and_reports_bytes(toy: SimpleNamespace, talk: Talk) -> None:
    def slow(directory: Path, options: LoadOptions, progress: Callable[..., None], cancelled: Callable[[], bool]) -> object:
        for done in range(1000):
            progress("weights", done << 20, 1000 << 20)
            if cancelled():
                raise ModelError("loading was cancelled")
            time.sleep(0.02)
        return toy

    toy.open = slow
    talk.client.send(Load("load", "/toy"))
    talk.until(lambda e: isinstance(e, LoadProgress) and e.done > 0)
    talk.client.send(Cancel("load"))
    sent = time.monotonic()
    assert talk.answer("load") == LoadFailed("load", "loading was cancelled")
    assert time.monotonic() - sent < 0.5
    shown = [e for e in talk.heard if isinstance(e, LoadProgress)]
    assert [e.done for e in shown] == sorted(e.done for e in shown)
    assert all(e.total == 1000 << 20 for e in shown)


def test_an_unexpected_error_while_loading_is_a_load_failed(toy: SimpleNamespace, talk: Talk) -> None:
    toy.open = lambda *arguments: {}["missing"]
    talk.client.send(Load("load", "/toy"))
    failed = talk.answer("load")
    assert isinstance(failed, LoadFailed)
    assert failed.error == "KeyError: 'missing'"
    toy.open = lambda *arguments: toy
    talk.client.send(Load("again", "/toy"))
    assert isinstance(talk.answer("again"), Loaded)


def test_kernels_that_do_not_compile_are_reported(toy: SimpleNamespace, talk: Talk) -> None:
    toy.problem = "the native extension does not compile: no; do this"
    talk.client.send(Load("load", "/toy"))
    up = talk.until(lambda e: isinstance(e, HostUp) and bool(e.note))
    assert isinstance(up, HostUp)
    assert (up.native, up.note) == (False, toy.problem)
    assert isinstance(talk.answer("load"), Loaded)


def test_closing_answers_what_runs_and_what_waits(toy: SimpleNamespace, toy_talk: Talk) -> None:
    toy.generator.tokenizer.eos_ids = frozenset()
    toy_talk.client.send(Submit(JobSpec("runs", prompt="abc", sampling=Sampling(seed=1))))
    toy_talk.until(lambda e: isinstance(e, Text))
    started = time.monotonic()
    toy_talk.client.close()
    assert time.monotonic() - started < 3
    toy_talk.heard += toy_talk.client.poll()
    done = toy_talk.answer("runs")
    assert isinstance(done, Done)
    assert done.stats.stop_reason == "cancelled"


def test_commands_behind_quit_are_refused() -> None:
    heard: list[Event] = []
    host = Host(heard.append)
    host.send(Quit())
    host.send(Submit(JobSpec("late", prompt="x")))
    host.send(Load("later", "/toy"))
    host.start()
    assert host.join(PATIENCE)
    assert Failed("late", "the engine was closed") in heard
    assert LoadFailed("later", "the engine was closed") in heard


def test_a_load_ends_the_jobs_of_the_model_before(toy: SimpleNamespace, toy_talk: Talk) -> None:
    toy.generator.tokenizer.eos_ids = frozenset()
    toy_talk.client.send(Submit(JobSpec("old", prompt="abc", sampling=Sampling(seed=1))))
    toy_talk.until(lambda e: isinstance(e, Text))
    toy_talk.client.send(Load("new", "/toy"))
    done = toy_talk.answer("old")
    assert isinstance(done, Done)
    assert done.stats.stop_reason == "cancelled"
    assert isinstance(toy_talk.answer("new"), Loaded)


def test_rates_count_engine_time_only() -> None:
    rates = _Rates()
    assert rates.read() == (None, None)
    rates.stepped(0.5, read=100, drawn=0)
    rates.stepped(0.5, read=50, drawn=1)
    rates.stepped(0.1, read=0, drawn=2)
    rates.stepped(0.1, read=0, drawn=2)
    time.sleep(0.05)
    decode, prefill = rates.read()
    assert decode == pytest.approx(20)
    assert prefill == pytest.approx(150)
    assert rates.read() == (None, None)


# ── with the starter model ──────────────────────────────────────────────────────────────────────────────────────────────────────

QUESTION = "<|im_start|>user\nName the capital of France.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Iterator[Talk]:
    talk = Talk()
    talk.client.send(Load("load", str(starter_model), LoadOptions(device="cpu")))
    loaded = talk.answer("load")
    assert isinstance(loaded, Loaded), loaded
    yield talk
    talk.client.close()


def ask(talk: Talk, job_id: str, prompt: str, sampling: Sampling = GREEDY, new: int = 24) -> Done:
    talk.client.send(Submit(JobSpec(job_id, prompt=prompt, add_bos=False, sampling=sampling, max_new_tokens=new)))
    done = talk.answer(job_id)
    assert isinstance(done, Done), done
    return done


def test_the_starter_says_paris_and_the_second_turn_reads_only_what_is_new(starter: Talk) -> None:
    first = ask(starter, "turn-1", QUESTION)
    reply = starter.text("turn-1")
    assert "Paris" in reply
    assert first.stats.stop_reason == "stop_token"
    asked = f"{QUESTION}{reply}<|im_end|>\n<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n"
    second = ask(starter, "turn-2", asked)
    assert "Rome" in starter.text("turn-2")
    # All of the first turn, whose last token was followed by the end of the turn, which was drawn but not fed.
    assert second.stats.cached_tokens == first.stats.prompt_tokens + first.stats.new_tokens
    fresh = ask(starter, "fresh", f" {asked}")
    assert fresh.stats.cached_tokens == 0, "a prompt that begins otherwise has nothing in common"


def test_a_cached_prompt_gives_the_reply_of_a_fresh_one(starter: Talk) -> None:
    prompt = QUESTION.replace("France", "Norway") * 20  # crosses a page
    first, second = ask(starter, "norway-1", prompt), ask(starter, "norway-2", prompt)
    assert second.stats.cached_tokens == second.stats.prompt_tokens - 1 > 256
    assert first.token_ids == second.token_ids


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(starter: Talk) -> None:
    prompts = [f"<|im_start|>user\nTell me about the number {i}.<|im_end|>\n<|im_start|>assistant\n" for i in range(4)]
    alone = [ask(starter, f"alone-{i}", prompt, Sampling(seed=i), 16).token_ids for i, prompt in enumerate(prompts)]
    for i, prompt in enumerate(prompts):
        spec = JobSpec(f"batch-{i}", prompt=prompt, add_bos=False, sampling=Sampling(seed=i), max_new_tokens=16)
        starter.client.send(Submit(spec))
    together = [starter.answer(f"batch-{i}") for i in range(4)]
    assert [done.token_ids for done in together if isinstance(done, Done)] == alone


def test_the_meter_tells_rates_and_memory_of_the_starter(starter: Talk) -> None:
    mark = len(starter.heard)
    ask(starter, "long", QUESTION.replace("What is", "Tell me a very long story about"), Sampling(seed=3), 150)

    def tells(event: Event) -> bool:
        return isinstance(event, Meter) and event in starter.heard[mark:] and bool(event.decode_rate)

    meter = starter.until(tells)
    assert isinstance(meter, Meter)
    assert meter.context_total == 8192
    assert meter.pages_total == 32
    assert 1 < (meter.decode_rate or 0) < 100_000
    if len(meter.devices) == 1 and meter.devices[0].kind == "cpu":
        assert (meter.devices[0].weights or 0) > 140 << 20  # 4 bits, and the embedding
        assert (meter.devices[0].cache or 0) > 100 << 20


def test_the_reply_with_a_stop_string_ends_before_it(starter: Talk) -> None:
    spec = JobSpec("stop", prompt=QUESTION, add_bos=False, sampling=GREEDY, max_new_tokens=24, stop_strings=("Paris",))
    starter.client.send(Submit(spec))
    done = starter.answer("stop")
    assert isinstance(done, Done)
    assert done.stats.stop_reason == "stop_string"
    assert starter.text("stop").startswith("The capital of France is")
    assert "Paris" not in starter.text("stop")


def resident() -> int:
    """Bytes of this process in memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def test_unload_returns_the_memory(starter_model: Path, talk: Talk) -> None:
    talk.until(lambda e: isinstance(e, HostUp))
    for turn in range(2):
        gc.collect()
        before = resident()
        talk.client.send(Load(f"load-{turn}", str(starter_model), LoadOptions(device="cpu")))
        loaded = talk.answer(f"load-{turn}")
        assert isinstance(loaded, Loaded)
        ask(talk, f"job-{turn}", QUESTION * 20, new=4)
        used = resident() - before
        talk.client.send(Unload(f"unload-{turn}"))
        talk.answer(f"unload-{turn}")
        kept = resident() - before
        assert used > 100 << 20, "the cache alone has 189 MB"
        assert kept < 30 << 20, "measured: 4 MB, the first time with torch's pools"
