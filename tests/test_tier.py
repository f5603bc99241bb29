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


ABOUT = {"model": "toy", "cache": "fp16"}


@pytest.mark.parametrize("new", [5, 11, 12])
def test_pages_go_through_a_file_and_are_used_with_no_prefill(short_pages: None, tmp_path: Path, new: int) -> None:
    """Whole pages, then the part of one more. The last token of the reply was drawn and never fed, so it is read with the next turn."""
    spec = JobSpec("a", prompt_ids=tuple(1 + j % 13 for j in range(45)), sampling=GREEDY, max_new_tokens=new)
    first = toy_with_host(8, 0)
    events: list[Event] = first.submit(spec) + run(first)
    tokens = [*(spec.prompt_ids or ()), *done(events, "a").token_ids]
    pages = first.room.export(tokens)
    known = len(tokens) - 1
    assert [len(page.tokens) for page in pages] == [SIZE] * (known // SIZE) + [known % SIZE] * bool(known % SIZE)
    write(tmp_path / "chat.kv", ABOUT, pages)
    second = toy_with_host(8, 0)
    second.room.recall(read(tmp_path / "chat.kv", ABOUT))
    turn = replace(spec, prompt_ids=(*tokens, 3, 4), max_new_tokens=3)
    again = second.submit(turn) + run(second)
    check_job(again, turn, 8 * SIZE)
    assert done(again, "a").stats.cached_tokens == known
    assert second.tokens_read == 3
    second.check()
    other = replace(turn, prompt_ids=(*tokens[:20], 9, 9, 9))  # another branch of the same chat
    check_job(second.submit(other) + run(second), other, 8 * SIZE)


def test_what_is_kept_has_a_limit_and_what_is_recalled_replaces_what_was(short_pages: None) -> None:
    spec = JobSpec("a", prompt_ids=tuple(1 + j % 13 for j in range(45)), sampling=GREEDY, max_new_tokens=1)
    generator = toy_with_host(8, 0)
    _ = generator.submit(spec) + run(generator)
    whole = generator.room.export(list(spec.prompt_ids or ()))
    few = generator.room.export(list(spec.prompt_ids or ()), limit=3 * whole[0].nbytes)
    assert len(few) == 3 and len(whole) == 6
    other = toy_with_host(8, 0)
    for pages in (whole, few):
        other.room.recall(pages)
    assert other.room.tier.nbytes <= 3 * whole[0].nbytes


def test_a_file_of_something_else_is_refused_with_the_reason(short_pages: None, tmp_path: Path) -> None:
    file = tmp_path / "chat.kv"
    write(file, {"model": "llama", "cache": "q4"}, [kept(0)])
    assert read(file, {"model": "llama", "cache": "q4"})[0].tokens == kept(0).tokens
    with pytest.raises(ModelError, match=r"chat\.kv was computed with another cache: q4; loaded is fp16"):
        read(file, {"model": "llama", "cache": "fp16"})
    with pytest.raises(ModelError, match="another model: llama; loaded is mistral"):
        read(file, {"model": "mistral", "cache": "q4"})
    with pytest.raises(CheckpointError, match="another form than the cache's"):
        toy_with_host(8, 0).room.recall([Kept(ROOT, (1, 2), (torch.zeros(2, 5),))])
    whole = file.read_bytes()
    for damage in (b"", whole[:50], b"x" * 200, whole.replace(b"[[0", b"[[x"), whole.replace(b"[0, 1", b"[0, -")):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(file, {"model": "llama", "cache": "q4"})


def test_half_a_page_stands_only_at_the_end(short_pages: None, tmp_path: Path) -> None:
    short = Kept(ROOT, (1, 2), (torch.zeros(2, dtype=torch.int32),))
    write(tmp_path / "chat.kv", ABOUT, [short, kept(0)])
    with pytest.raises(CheckpointError, match="page 0 is incomplete"):
        read(tmp_path / "chat.kv", ABOUT)


def test_files_over_the_limit_go_the_oldest_first(tmp_path: Path) -> None:
    for i, name in enumerate(("b.kv", "a.kv", "c.kv", "notes.txt")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (i, i))
    (tmp_path / "d.kv.new").write_bytes(b"half")
    prune(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.kv", "c.kv", "notes.txt"]


def test_a_real_model_goes_on_from_a_file(starter_model: Path, tmp_path: Path) -> None:
    cache = "q4"
    prompt = "The ship sailed on. " * 60
    with Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache=cache)) as engine:
        first = engine.generate(prompt, GREEDY, max_new_tokens=8)
        ids = [*engine.session.tokenizer.encode(prompt), *first.token_ids]
        assert engine.keep(tmp_path / "chat.kv", ids) == len(ids) // 256 + 1
    with Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache=cache)) as engine:
        assert engine.recall(tmp_path / "chat.kv") >= 1
        second = engine.generate(prompt, GREEDY, max_new_tokens=8)
    assert second.token_ids == first.token_ids and second.stats.cached_tokens == second.stats.prompt_tokens - 1
    with (
        Engine.open(starter_model, LoadOptions(device="cpu", length=768, cache="q8")) as engine,
        pytest.raises(ModelError, match=f"another cache: {cache}; loaded is q8"),
    ):
        engine.recall(tmp_path / "chat.kv")
