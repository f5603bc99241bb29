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
PROMPT = "<|im_start|>user\nWrite a long story about a lighthouse keeper and a storm.<|im_end|>\n<|im_start|>assistant\n"
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


def test_a_cache_mode_costs_on_a_gpu_what_it_costs_on_the_cpu(starter_model: Path) -> None:
    """290 tokens, the last of them decoded. One row can be far off in any mode, so all count; GPU and CPU round keys and values of their
    own, so they may differ by as much as either differs from its f16 cache.
    """
    text = (Path(__file__).parent / "data" / "thousand_tokens.md").read_text(encoding="utf-8")
    ids = Tokenizer(starter_model).encode(text)[:290]
    found: dict[tuple[str, str], torch.Tensor] = {}
    for device in ("cpu", "cuda:0"):
        model = load(starter_model, device=device)
        for mode in ("fp16", "q8", "q6", "q4"):
            runner = runner_of(model, mode)
            prompt = runner.step(Step.build([Sequence(ids[:-1], 0, PAGES, "all")], model.device))
            found[device, mode] = torch.cat([prompt, read(runner, ids[-1:], len(ids) - 1)[None]]).cpu()
    assert nmse(found["cuda:0", "fp16"], found["cpu", "fp16"]) < 5e-5
    for mode in ("q8", "q6", "q4"):
        own = nmse(found["cpu", mode], found["cpu", "fp16"])
        there, between = nmse(found["cuda:0", mode], found["cuda:0", "fp16"]), nmse(found["cuda:0", mode], found["cpu", mode])
        log.info("cache %s: against f16 %.1e on the CPU, %.1e on the GPU; between them %.1e", mode, own, there, between)
        assert own / 2 < there < own * 2 and between < own * 2


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
