"""The starter model, plain and as EXL2, on a GPU against the CPU in f32: 256 greedy tokens, drawn inside the graph one step ahead.

The rule for a tie: where the GPU takes another token, the CPU's logits of the two differ by less than NOISE, about five times what f16
between the rows adds to a difference of logits; the GPU then goes on with the CPU's token. There may be few such places.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import load

from exltui.engine.convert.rtn import write_exl2
from exltui.engine.model.loading import Model
from exltui.engine.ops.sample import Rule, SampleParams, Seat
from exltui.engine.ops.table import OPS, nmse, recording, verify
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache, parse_cache_mode
from exltui.engine.run.graphs import Place
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.tokenizer import Tokenizer

log = logging.getLogger(__name__)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
COUNT = 256
NOISE = 0.05
TIES = 6
GREEDY = Seat(SampleParams((Rule("top_k", 1),)))
PROMPT = "The lighthouse keeper wrote in his diary every evening. Tonight he began:"
PAGES = list(range(-(-(COUNT + 40) // PAGE) + 1))[::-1]


@pytest.fixture(scope="module", params=["plain", "exl2"])
def directory(request: pytest.FixtureRequest, starter_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "plain":
        return starter_model
    target = tmp_path_factory.mktemp("exl2") / "starter"
    write_exl2(starter_model, target, 4.5, 6)
    return target


def runner_of(model: Model, mode: str = "fp16") -> Runner:
    return Runner(model, KVCache(model.spec, len(PAGES), parse_cache_mode(mode), model.device))


def read(runner: Runner, ids: list[int], start: int) -> torch.Tensor:
    return runner.step(Step.build([Sequence(ids, start, PAGES)], runner.model.device))[-1]


def on_cpu(directory: Path, ids: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy tokens, and the logits that each was taken from."""
    runner, tokens, rows = runner_of(load(directory)), list(ids), []
    rows.append(read(runner, tokens, 0))
    for _ in range(COUNT - 1):
        tokens.append(int(rows[-1].argmax()))
        rows.append(read(runner, tokens[-1:], len(tokens) - 1))
    return [*tokens[len(ids) :], int(rows[-1].argmax())], rows


def on_gpu(model: Model, ids: list[int], wanted: list[int], rows: list[torch.Tensor]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and by how much the CPU prefers its own where they differ."""
    runner, tokens, gaps = runner_of(model), list(ids), []
    read(runner, ids[:-1], 0)
    fed, found = True, []
    for want, row in zip(wanted, rows, strict=True):
        flight = runner.launch([Place(tokens[-1] if fed else None, len(tokens) - 1, PAGES, GREEDY, 0.0)])
        assert flight is not None, "the model runs without graphs"
        token = int(flight.read()[0][0])
        found.append(token)
        fed = token != want
        if fed:
            gaps.append(float(row[want] - row[token]))
        tokens.append(want)
    return found, gaps


def test_256_greedy_tokens_are_those_of_the_cpu(directory: Path) -> None:
    ids = Tokenizer(directory).encode(PROMPT)
    wanted, rows = on_cpu(directory, ids)
    model = load(directory, device="cuda:0")
    found, gaps = on_gpu(model, ids, wanted, rows)
    log.info("%s: %d of %d tokens equal, gaps %s", directory.name, COUNT - len(gaps), COUNT, [round(gap, 4) for gap in gaps])
    assert len(set(wanted)) > 30, "a reply that repeats itself shows nothing"
    assert len(gaps) <= TIES and all(gap < NOISE for gap in gaps), gaps
    assert on_gpu(model, ids, wanted, rows) == (found, gaps), "two runs differ"


@pytest.mark.parametrize("mode", ["fp16", "q8", "q6", "q4"])
def test_a_cache_mode_gives_the_same_logits(starter_model: Path, mode: str) -> None:
    """A prompt of 300 tokens and one decode step."""
    text = (Path(__file__).parent / "data" / "thousand_tokens.md").read_text(encoding="utf-8")
    ids = Tokenizer(starter_model).encode(text)[:290]
    found = []
    for device in ("cpu", "cuda:0"):
        runner = runner_of(load(starter_model, device=device), mode)
        read(runner, ids[:-1], 0)
        found.append(read(runner, ids[-1:], len(ids) - 1).cpu())
    error = nmse(found[1], found[0])
    log.info("cache %s: NMSE %.1e", mode, error)
    assert error < (5e-5 if mode in ("fp16", "q8") else 2e-3)


def test_every_row_verifies(directory: Path) -> None:
    model = load(directory, device="cuda:0")
    runner, calls = runner_of(model), []
    with recording(model.ops, calls):
        for start, count in ((0, 40), (40, 1)):
            step = Step.build([Sequence(list(range(100, 100 + count)), start, PAGES)], model.device)
            model.decoder.forward(step.tokens, step.batch, runner.cache.layers, step.logit_rows)
    errors = verify(calls)
    log.info(", ".join(f"{op} {error:.1e}" for op, error in errors.items()))
    assert all(error <= OPS[op].nmse for op, error in errors.items()), errors
