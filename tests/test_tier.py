"""Pages in host memory and in files: a prompt that left the cache comes back without being read again, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_generator import check_job, done, run
from test_jobs import _any_spec
from toy import ToyRunner, small_pages, toy_tokenizer

from exltui import Engine
from exltui.engine.generate.generator import Generator
from exltui.engine.run.pages import ROOT
from exltui.engine.run.tier import HostTier, Kept, prune, read, write
from exltui.errors import CheckpointError, ModelError
from exltui.protocol import Event, JobSpec, LoadOptions, Sampling

SIZE = 8
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, SIZE)
        yield


def toy_with_host(pages: int, host_cache: int) -> Generator:
    return Generator(ToyRunner(pages), toy_tokenizer(), 8 * SIZE, 7, None, host_cache)  # type: ignore[arg-type]


def kept(first: int, previous: bytes = ROOT) -> Kept:
    return Kept(previous, tuple(range(first, first + SIZE)), (torch.full((SIZE,), first, dtype=torch.int32),))


@pytest.mark.parametrize("host_cache", [0, 10_000])
def test_a_prompt_that_was_pushed_out_comes_back_from_host_memory(short_pages: None, host_cache: int) -> None:
    generator = toy_with_host(8, host_cache)
    specs = [JobSpec(f"j{i}", prompt_ids=tuple(1 + (i + j) % 15 for j in range(45)), sampling=GREEDY, max_new_tokens=5) for i in (0, 7)]
    for spec in specs:
        run_events = generator.submit(spec) + run(generator)
        check_job(run_events, spec, 8 * SIZE)
    again = replace(specs[0], id="again")
    events = generator.submit(again) + run(generator)
    check_job(events, again, 8 * SIZE)
    found = done(events, "again").stats.cached_tokens
    assert found >= 40 if host_cache else found < 40
    generator.check()


def test_any_mix_of_jobs_is_right_with_a_host_tier(short_pages: None) -> None:
    import random

    for seed in range(6):
        picks, generator = random.Random(seed), toy_with_host(12, 600)
        specs, events = [], []
        for i in range(12):
            specs.append(_any_spec(picks, f"j{i}"))
            events += generator.submit(specs[-1])
            for _ in range(picks.randint(0, 30)):
                events += generator.advance()
        events += run(generator)
        for spec in specs:
            check_job(events, spec, 8 * SIZE if spec.negative_prompt_ids is None else 6 * SIZE)
        generator.check()
        assert generator.room.tier.nbytes <= 600


def test_the_tier_forgets_what_was_used_least_recently(short_pages: None) -> None:
    tier = HostTier(2 * kept(0).nbytes)
    from exltui.engine.run.pages import chain

    hashes = [chain(ROOT, kept(i).tokens) for i in range(3)]
    tier.put(kept(0))
    tier.put(kept(1))
    assert tier.get(hashes[0]) is not None
    tier.put(kept(2))
    assert [tier.get(here) is not None for here in hashes] == [True, False, True]
    assert len(tier) == 2 and tier.nbytes == 2 * kept(0).nbytes


def test_pages_go_through_a_file_and_are_used_with_no_prefill(short_pages: None, tmp_path: Path) -> None:
    spec = JobSpec("a", prompt_ids=tuple(1 + j % 13 for j in range(45)), sampling=GREEDY, max_new_tokens=5)
    first = toy_with_host(8, 0)
    events: list[Event] = first.submit(spec) + run(first)
    tokens = [*(spec.prompt_ids or ()), *done(events, "a").token_ids]
    write(tmp_path / "chat.kv", "toy", first.room.export(tokens))
    second = toy_with_host(8, 0)
    second.room.recall(read(tmp_path / "chat.kv", "toy"))
    again = second.submit(spec) + run(second)
    check_job(again, spec, 8 * SIZE)
    assert done(again, "a").stats.cached_pages == 0 or done(again, "a").stats.cached_tokens == 40
    assert second.tokens_read == 5


def test_a_file_of_something_else_is_refused_with_the_reason(short_pages: None, tmp_path: Path) -> None:
    file = tmp_path / "chat.kv"
    write(file, "llama q4", [kept(0)])
    with pytest.raises(ModelError, match="was computed by llama q4, loaded is llama fp16"):
        read(file, "llama fp16")
    for damage in (b"", file.read_bytes()[:50], b"x" * 200):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(file, "llama q4")


def test_files_over_the_limit_go_the_oldest_first(tmp_path: Path) -> None:
    for i, name in enumerate(("b.kv", "a.kv", "c.kv", "notes.txt")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (i, i))
    prune(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.kv", "c.kv", "notes.txt"]


@pytest.mark.parametrize("cache", ["fp16", "q4"])
def test_a_real_model_goes_on_from_a_file(starter_model: Path, tmp_path: Path, cache: str) -> None:
    prompt = "The ship sailed on. " * 60
    with Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache=cache)) as engine:
        first = engine.generate(prompt, GREEDY, max_new_tokens=8)
        ids = [*engine.session.tokenizer.encode(prompt), *first.token_ids]
        assert engine.keep(tmp_path / "chat.kv", ids) == len(ids) // 256
    with Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache=cache)) as engine:
        assert engine.recall(tmp_path / "chat.kv") >= 1
        second = engine.generate(prompt, GREEDY, max_new_tokens=8)
    assert second.token_ids == first.token_ids and second.stats.cached_tokens >= 256
    with (
        Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache="q8")) as engine,
        pytest.raises(ModelError, match="loaded is"),
    ):
        engine.recall(tmp_path / "chat.kv")
