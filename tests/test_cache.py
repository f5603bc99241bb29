"""The paged cache and the packet of a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load, make

from exltui.engine.model.loading import Model
from exltui.engine.model.spec import ArchSpec
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache, parse_cache_mode
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.errors import DeviceError, ModelError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory: Path = tmp_path_factory.mktemp("llama")
    make("Llama", directory, head_dim=64)
    return load(directory)


@pytest.mark.parametrize(
    ("mode", "bits"),
    [("fp16", (16, 16)), ("q8", (8, 8)), ("q6", (8, 4)), ("q4", (4, 4)), ("16,8", (16, 8)), ("8, 16", (8, 16))],
)
def test_cache_modes(mode: str, bits: tuple[int, int], model: Model) -> None:
    assert parse_cache_mode(mode) == bits
    cache = KVCache(model.spec, 3, bits, CPU)
    assert len(cache.layers) == len(model.spec.layers)
    # Bytes of a value: 2 at 16 bits; below, the code and an f16 scale for every 32 values.
    per_value = sum(2 if width == 16 else width / 8 + 2 / 32 for width in bits)
    assert cache.nbytes == len(model.spec.layers) * 3 * PAGE * 2 * 64 * per_value


@pytest.mark.parametrize("mode", ["q5", "", "8", "8,5", "8,8,8", "FP16"])
def test_other_cache_modes_are_refused(mode: str) -> None:
    with pytest.raises(ModelError, match="not a cache mode"):
        parse_cache_mode(mode)


def test_heads_that_the_codec_cannot_split_are_refused(model: Model) -> None:
    layer = model.spec.layers[0]
    narrow = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, d=96))
    spec: ArchSpec = dataclasses.replace(model.spec, layers=(narrow,))
    with pytest.raises(ModelError, match="96"):
        KVCache(spec, 1, (8, 8), CPU)
    KVCache(spec, 1, (16, 16), CPU)


def test_a_cache_that_does_not_fit_is_said_in_words(model: Model) -> None:
    with pytest.raises(DeviceError, match=r"a cache of 281,474,976,710,656 tokens takes .* GB free") as caught:
        KVCache(model.spec, 1 << 40, (16, 16), CPU)
    assert "--length" in caught.value.hint


@pytest.mark.parametrize("bits", [(16, 16), (8, 4)])
def test_a_copied_page_continues_like_its_source(bits: tuple[int, int], model: Model) -> None:
    runner = Runner(model, KVCache(model.spec, 4, bits, CPU))
    run = lambda *sequences: runner.step(Step.build(sequences, CPU))
    prompt, rest = [5, 6, 7, 8, 9, 10], [11, 12]
    run(Sequence(prompt, 0, [1], "none"))
    runner.cache.copy_page(1, 3, 4)  # the first four tokens; the target's other rows keep what they were
    for layer in runner.cache.layers:
        assert torch.equal(layer.k[3, :4], layer.k[1, :4]) and not torch.equal(layer.k[3, 4:6], layer.k[1, 4:6])
    got = run(Sequence(rest, 4, [3], "all"))
    fresh = Runner(model, KVCache(model.spec, 1, bits, CPU))
    fresh.step(Step.build([Sequence(prompt[:4], 0, [0], "none")], CPU))
    assert torch.equal(got, fresh.step(Step.build([Sequence(rest, 4, [0], "all")], CPU)))


def test_a_step_lays_sequences_side_by_side() -> None:
    step = Step.build([Sequence([7, 8, 9], 254, [5, 2], "all"), Sequence([4], 0, [3, 1]), Sequence([1, 2], 3, [0], "none")], CPU)
    assert step.tokens.tolist() == [7, 8, 9, 4, 1, 2]
    assert step.batch.positions.tolist() == [254, 255, 256, 0, 3, 4]
    assert step.batch.slots.tolist() == [5 * 256 + 254, 5 * 256 + 255, 2 * 256, 3 * 256, 3, 4]
    assert step.batch.query_start.tolist() == [0, 3, 4, 6]
    assert step.batch.lengths.tolist() == [257, 1, 5]
    assert step.batch.page_table.tolist() == [[5, 2], [3, 1], [0, 0]]
    assert step.logit_rows.tolist() == [0, 1, 2, 3]
    assert {t.dtype for t in (step.tokens, step.batch.positions, step.batch.slots, step.batch.page_table)} == {torch.int32}


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 600), st.sampled_from(["last", "all", "none"])), min_size=1, max_size=5))
def test_every_step_covers_its_sequences(shapes: list[tuple[int, int, str]]) -> None:
    sequences, page = [], 0
    for count, start, wanted in shapes:
        pages = list(range(page, page + -(-(start + count) // PAGE)))
        page += len(pages)
        sequences.append(Sequence(range(count), start, pages, wanted))
    step = Step.build(sequences, CPU)
    assert len(set(step.batch.slots.tolist())) == len(step.tokens) == sum(count for count, _, _ in shapes)
    rows = {"last": 1, "none": 0}
    assert len(step.logit_rows) == sum(rows.get(wanted, count) for count, _, wanted in shapes)
    for i, (count, start, _) in enumerate(shapes):
        slots = step.batch.slots[step.batch.query_start[i] : step.batch.query_start[i + 1]].tolist()
        table = step.batch.page_table[i].tolist()
        assert slots == [table[p // PAGE] * PAGE + p % PAGE for p in range(start, start + count)]
