"""The generator with a model on a GPU: the reproducible mode, and pages that wait in host memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_cuda_graphs import SETTINGS, SHAPE, tokenizer
from tiny_models import load, make
from toy import replied

from exltui.engine.convert.rtn import write_exl2
from exltui.engine.generate.generator import Generator
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache, parse_cache_mode
from exltui.engine.run.runner import Runner
from exltui.protocol import JobSpec, Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda:0"
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make("Llama", folder / "plain", **SHAPE)
    write_exl2(folder / "plain", folder / "exl2", 4.5, 6)
    return folder / "exl2"


def opened(made: Path, pages: int, host_cache: int = 0, *, reproducible: bool = False) -> Generator:
    model = load(made, device=DEVICE)
    runner = Runner(model, KVCache(model.spec, pages, (16, 16), model.device), reproducible=reproducible)
    return Generator(runner, tokenizer(), 1000, PAGE, None, host_cache)


def prompt(seed: int, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, SHAPE["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def test_a_seed_gives_the_same_tokens_whatever_else_runs(made: Path) -> None:
    generator = opened(made, 40, reproducible=True)
    specs = []
    for i, sampling in enumerate(SETTINGS):
        specs.append(JobSpec(f"j{i}", prompt_ids=prompt(i, 3 + 60 * i), sampling=sampling, max_new_tokens=12 + 3 * i))
    alone = {}
    for spec in specs:
        generator.table.clear()  # nothing of an earlier one is found
        alone[spec.id] = replied(generator, [spec], 0)[spec.id].token_ids
    assert len(set(alone.values())) == len(specs), "replies that are alike show nothing"
    for order, gap in ((specs, 0), (specs[::-1], 3)):
        generator.table.clear()
        assert {id: each.token_ids for id, each in replied(generator, order, gap).items()} == alone


@pytest.mark.parametrize("mode", ["fp16", "q8", "q6", "q4"])
def test_a_page_comes_back_from_host_memory_as_it_was(made: Path, mode: str) -> None:
    cache = KVCache(load(made, device=DEVICE).spec, 4, parse_cache_mode(mode), torch.device(DEVICE))
    for store in cache._stores():
        store.copy_(torch.randint(0, 100, store.shape))
    before = [store[1].cpu() for store in cache._stores()]
    copy = cache.read_page(1)
    assert all(part.is_pinned() and torch.equal(part, was) for part, was in zip(copy, before, strict=True))
    cache.write_page(3, copy)
    assert all(torch.equal(store[3].cpu(), was) for store, was in zip(cache._stores(), before, strict=True))


@pytest.mark.parametrize("host_cache", [0, 1 << 28])
def test_a_prompt_that_was_pushed_out_comes_back_from_host_memory(made: Path, host_cache: int) -> None:
    generator = opened(made, 4, host_cache)
    specs = [JobSpec(f"j{i}", prompt_ids=prompt(i, 2 * PAGE + 9), sampling=GREEDY, max_new_tokens=4) for i in range(3)]
    first = replied(generator, specs[:1], 0)["j0"]
    replied(generator, specs[1:], 50)
    again = replied(generator, specs[:1], 0)["j0"]
    assert again.token_ids == first.token_ids
    assert again.stats.cached_tokens >= 2 * PAGE if host_cache else again.stats.cached_tokens < 2 * PAGE
    generator.check()
