"""Steps that draw and run ahead, on the CPU in place of a GPU: the packet, the seats, the rows that fill up a batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_stand_in import graph_runner
from tiny_models import VOCAB, load, make
from toy import replied

from exltui.engine.generate.generator import Generator
from exltui.engine.model.loading import Model
from exltui.engine.ops.table import nmse
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.protocol import JobSpec, Sampling

SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, token_repetition_penalty=1.3, token_repetition_range=20),
    Sampling(seed=1),
    Sampling(seed=2, token_frequency_penalty=0.2, token_presence_penalty=0.1, token_repetition_decay=9, token_repetition_range=7),
    Sampling(seed=3, top_k=0, top_p=1.0, min_p=0.0, temperature=1.3),
    Sampling(seed=4, typical=0.9, xtc_probability=0.5, skew=0.3, max_temp=1.5, min_temp=0.5),
    Sampling(seed=5, mirostat=True),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory: Path = tmp_path_factory.mktemp("model")
    make("Llama", directory)
    return load(directory, length=700)


def tokenizer() -> Any:
    texts = [chr(0x4E00 + i) for i in range(VOCAB)]
    return SimpleNamespace(
        eos_ids=frozenset({2}), adds_bos=False, size=VOCAB, texts=texts, special_ids=frozenset({2}),
        decode=lambda ids: "".join(texts[i] for i in ids), ids_with=lambda characters: frozenset({2}),
    )  # fmt: skip


def replies(patch: pytest.MonkeyPatch, model: Model, specs: list[JobSpec], *, ahead: bool) -> dict[str, Any]:
    runner, launched = graph_runner(patch, model, 40), []
    launch = runner.launch

    def noted(places: Any) -> Any:
        launched.append(len(places))
        return launch(places)

    runner.launches = ahead
    runner.launch = noted  # type: ignore[method-assign]
    generator = Generator(runner, tokenizer(), 700, 64)
    done = replied(generator, specs, 2)
    assert bool(launched) == ahead or any(spec.sampling.mirostat for spec in specs)
    return {id: (each.token_ids, each.stats.stop_reason) for id, each in done.items()}


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [4], [5], [6], [0, 1, 2], list(range(7)), [0, 3, 5, 1, 2]])
def test_a_reply_is_the_same_one_step_ahead(monkeypatch: pytest.MonkeyPatch, model: Model, chosen: list[int]) -> None:
    specs = [
        JobSpec(
            f"j{i}",
            prompt_ids=tuple((7 * i + j * j) % (VOCAB - 3) + 3 for j in range(250 if i == 0 else 5 + 3 * i)),  # one crosses into a new page
            sampling=SETTINGS[which],
            max_new_tokens=12 + 5 * (i % 3),
            stop_strings=(chr(0x4E00 + 7),) if i % 3 == 2 else (),
            logit_bias=((5, 1.5), (9, -2.0)) if i % 2 else (),
            allowed_tokens=tuple(range(3, VOCAB)) if i % 4 == 3 else None,
        )
        for i, which in enumerate(chosen)
    ]
    assert replies(monkeypatch, model, specs, ahead=True) == replies(monkeypatch, model, specs, ahead=False)


@pytest.mark.parametrize("counts", [[2], [5], [9], [1, 4], [3, 1, 1], [9, 9, 9], [1, 2, 3, 4, 5, 6, 7]])
def test_a_step_that_verifies_drafts_gives_the_logits_of_a_plain_one(
    monkeypatch: pytest.MonkeyPatch, model: Model, counts: list[int]
) -> None:
    runner = graph_runner(monkeypatch, model, 2 * len(counts))
    plain = Runner(model, KVCache(model.spec, 2 * len(counts), (16, 16), model.device, torch.float32))
    graphs = runner._graphs
    assert graphs is not None
    lengths = [250 if i == 0 else 3 * i for i in range(len(counts))]
    ids = [torch.randint(3, VOCAB, (length + 10,), generator=torch.Generator().manual_seed(i)).tolist() for i, length in enumerate(lengths)]
    for each in (runner, plain):
        for i, length in enumerate(lengths):
            if length:
                each.step(Step.build([Sequence(ids[i][:length], 0, [2 * i, 2 * i + 1])], model.device))
    found = []
    for _ in range(2):  # the second finds the graph there
        step = Step.build(
            [Sequence(ids[i][n : n + c], n, [2 * i, 2 * i + 1], "all") for i, (n, c) in enumerate(zip(lengths, counts, strict=True))],
            model.device,
        )
        assert step.verifies
        found.append((runner.step(step), plain.step(step)))
    assert len(graphs._verifying) == 1
    for ours, theirs in found:
        assert ours.shape == (sum(counts), VOCAB) and nmse(ours, theirs) < 1e-10
