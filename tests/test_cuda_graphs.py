"""Whole decode steps as CUDA graphs: every batch size, every cache mode, against the same model on the CPU, and record-and-verify."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import load, make
from toy import replied

from exltui.engine.convert.rtn import write_exl2
from exltui.engine.generate.generator import Generator
from exltui.engine.model.loading import Model
from exltui.engine.ops.cuda import DECODE_ROWS
from exltui.engine.ops.table import OPS, nmse, recording, verify
from exltui.engine.run.cache import KVCache, parse_cache_mode
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.protocol import JobSpec, Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "vocab_size": 512}
LENGTHS = (1, 5, 255, 256, 257, 300)  # of what is there before the step, in turn
HALF = 1e-4  # f16 between the rows of three layers


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make("Llama", folder / "plain", **SHAPE)
    write_exl2(folder / "plain", folder / "exl2", 4.5, 6)
    return folder


def history(index: int) -> list[int]:
    g = torch.Generator().manual_seed(index)
    return torch.randint(0, SHAPE["vocab_size"], (LENGTHS[index % len(LENGTHS)] + 2,), generator=g).tolist()


def step_of(model: Model, cache_mode: str, batch: int, *, whole: bool = True) -> torch.Tensor:
    """[batch, v]: prompts of several lengths, then two steps that decode; the logits of the last. ``whole``: by a graph, on a GPU."""
    runner = Runner(model, KVCache(model.spec, 2 * batch, parse_cache_mode(cache_mode), model.device))
    if not whole:
        runner._graphs = None
    for i in range(batch):
        ids = history(i)
        runner.step(Step.build([Sequence(ids[:-2], 0, [2 * i + 1, 2 * i])], model.device))
    for back in (2, 1):
        sequences = [Sequence([ids[-back]], len(ids) - back, [2 * i + 1, 2 * i]) for i in range(batch) if (ids := history(i))]
        logits = runner.step(Step.build(sequences, model.device))
    if whole and model.device.type == "cuda":
        assert runner._graphs is not None and runner._graphs._captured, "no graph ran"
    return logits.cpu()


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 17, 32])
@pytest.mark.parametrize("form", ["plain", "exl2"])
def test_a_graph_computes_what_the_cpu_computes(directory: Path, form: str, batch: int) -> None:
    model = load(directory / form, device="cuda:0")
    got = step_of(model, "fp16", batch)
    assert torch.equal(got, step_of(model, "fp16", batch)), "two runs differ"
    assert nmse(got, step_of(model, "fp16", batch, whole=False)) < 1e-6
    assert nmse(got, step_of(load(directory / form), "fp16", batch)) < HALF


@pytest.mark.parametrize("counts", [[2], [5], [9], [1, 4], [3, 1, 1], [9, 9, 9], [4] * 8])
def test_drafts_are_verified_by_a_graph(directory: Path, counts: list[int]) -> None:
    model = load(directory / "exl2", device="cuda:0")
    found = []
    for whole in (True, False):
        runner = Runner(model, KVCache(model.spec, 2 * len(counts), (16, 16), model.device))
        if not whole:
            runner._graphs = None
        for start in (0, 1):
            sequences = []
            for i, count in enumerate(counts):
                ids = history(3 if i % 2 else 5)
                a, b = (0, len(ids) - count) if start == 0 else (len(ids) - count, len(ids))
                sequences.append(Sequence(ids[a:b], a, [2 * i + 1, 2 * i], "all" if start else "none"))
            logits = runner.step(Step.build(sequences, model.device))
        found.append(logits.cpu())
    # a graph takes the tokens of a sequence one by one, elsewhere more than eight go through another kernel, which rounds otherwise
    assert found[0].shape[0] == sum(counts) and nmse(*found) < (1e-6 if max(counts) <= DECODE_ROWS else 1e-5)


@pytest.mark.parametrize("mode", ["fp16", "q8", "q6", "q4"])
def test_a_cache_mode_is_the_same_on_both(directory: Path, mode: str) -> None:
    """Both quantise the same keys and values but for f16 noise, which puts a few codes at an edge to its other side: a part of what the
    mode costs on the CPU. With wrong scales, bits or rotations the two would differ by more than that.
    """
    got = step_of(load(directory / "exl2", device="cuda:0"), mode, 6)
    cpu, exact = step_of(load(directory / "exl2"), mode, 6), step_of(load(directory / "exl2"), "fp16", 6)
    assert nmse(got, cpu) < HALF + nmse(cpu, exact) / 4


@pytest.mark.parametrize("form", ["plain", "exl2"])
def test_every_row_of_a_model_verifies(directory: Path, form: str) -> None:
    model = load(directory / form, device="cuda:0")
    runner = Runner(model, KVCache(model.spec, 2, (16, 16), model.device))
    calls: list = []
    with recording(model.ops, calls):
        for a, b in ((0, 100), (100, 104), (104, 105)):
            ids = history(5)[a:b]
            packet = Step.build([Sequence(ids, a, [1, 0])], model.device)
            model.decoder.forward(packet.tokens, packet.batch, runner.cache.layers, packet.logit_rows)
    errors = verify(calls)
    assert {"embed", "norm_linear", "rope_store", "attend", "linear_add", "norm_gate_up", "norm_head"} <= set(errors)
    assert all(error <= OPS[op].nmse for op, error in errors.items()), errors


# ── one step ahead ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def replies(directory: Path, specs: list[JobSpec], *, ahead: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """What each job says, with steps launched ahead or in turn."""
    model = load(directory / "exl2", device="cuda:0")
    runner = Runner(model, KVCache(model.spec, 60, (16, 16), model.device))
    launch, launched = runner.launch, []

    def noted(places: Any) -> Any:
        launched.append(len(places))
        return launch(places)

    runner.launches = ahead
    runner.launch = noted  # type: ignore[method-assign]
    generator = Generator(runner, tokenizer(), 1000, 256)
    done = replied(generator, specs, 0)
    assert bool(launched) == ahead or any(spec.sampling.mirostat for spec in specs), "nothing could have run ahead"
    return {id: (each.token_ids, each.stats.stop_reason) for id, each in done.items()}


def tokenizer() -> Any:
    size = SHAPE["vocab_size"]
    texts = [chr(0x4E00 + i) for i in range(size)]
    return SimpleNamespace(
        eos_ids=frozenset({2}), adds_bos=False, size=size, texts=texts, special_ids=frozenset({2}),
        decode=lambda ids: "".join(texts[i] for i in ids), ids_with=lambda characters: frozenset({2}),
    )  # fmt: skip


SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, token_repetition_penalty=1.3, token_repetition_range=20),
    Sampling(seed=1),
    Sampling(seed=2, token_frequency_penalty=0.2, token_presence_penalty=0.1, token_repetition_decay=9, token_repetition_range=7),
    Sampling(seed=3, top_k=0, top_p=1.0, min_p=0.0, temperature=1.3),
    Sampling(seed=4, typical=0.9, xtc_probability=0.5, skew=0.3, max_temp=1.5, min_temp=0.5),
    Sampling(seed=5, mirostat=True),
]


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [4], [5], [0, 1, 2], list(range(7)), [0, 0, 2, 3, 5] * 6])
def test_a_reply_is_the_same_one_step_ahead(directory: Path, chosen: list[int]) -> None:
    """The graphs of two batch sizes round differently, a step ahead still has the jobs that the host has seen end, and a prompt that comes
    meanwhile waits for it. So all are there from the start, and only as many end before the others as leave the batch in its bucket:
    mirostat, with which nothing runs ahead, and a few of many.
    """
    many = len(chosen) > 20
    specs = [
        JobSpec(
            f"j{i}",
            prompt_ids=tuple(history(i)[:80]),
            sampling=SETTINGS[which],
            max_new_tokens=20 + i if SETTINGS[which].mirostat or (many and i % 8 == 0) else 60,
            stop_strings=(chr(0x4E00 + 7),) if many and i % 8 == 3 else (),
        )
        for i, which in enumerate(chosen)
    ]
    assert replies(directory, specs, ahead=True) == replies(directory, specs, ahead=False)
