"""Logits and perplexity of given tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCAB, load, make, reference_logits

from exltui.engine.evaluate.divergence import divergence
from exltui.engine.evaluate.logits import logits
from exltui.engine.evaluate.perplexity import perplexity, windows
from exltui.engine.model.loading import Model
from exltui.engine.ops.table import nmse
from exltui.errors import ContextError, ModelError


@pytest.fixture(scope="module")
def reference_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Model]:
    directory = tmp_path_factory.mktemp("llama")
    return make("Llama", directory), load(directory, length=512)


def tokens(count: int) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(7)).tolist()


def test_logits_of_more_than_a_chunk(reference_and_model) -> None:
    reference, model = reference_and_model
    ids, seen = tokens(300), []
    got = logits(model, ids, progress=lambda done, total: seen.append((done, total)))
    assert got.shape == (300, VOCAB) and got.dtype == torch.float32
    assert nmse(got, reference_logits(reference, ids)) <= 1e-6  # an f16 cache
    assert seen == [(256, 300), (300, 300)]


def test_chunks_are_as_long_as_one_says(reference_and_model) -> None:
    _, model = reference_and_model
    ids, seen = tokens(50), []
    got = logits(model, ids, chunk=20, progress=lambda done, total: seen.append(done))
    assert seen == [20, 40, 50] and nmse(got, logits(model, ids)) <= 1e-6
    assert perplexity(model, ids, 50, chunk=7).nll == pytest.approx(perplexity(model, ids, 50).nll, rel=1e-4)
    with pytest.raises(ModelError, match="chunks of 0 tokens"):
        logits(model, ids, chunk=0)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([], ModelError, "no tokens"),
        ([1, VOCAB], ModelError, "position 1"),
        ([-1], ModelError, "token -1"),
        ([1] * 513, ContextError, "513"),
    ],
)
def test_tokens_that_cannot_be_evaluated(reference_and_model, ids: list[int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        logits(reference_and_model[1], ids)


@given(count=st.integers(2, 300), length=st.integers(2, 64), stride=st.integers(1, 64))
def test_every_token_but_the_first_is_scored_at_most_once(count: int, length: int, stride: int) -> None:
    stride = min(stride, length)
    scored = []
    for begin, first, end in windows(count, length, stride):
        assert begin < first < end <= min(begin + length, count)
        scored.extend(range(first, end))
    assert scored == sorted(set(scored))
    missing = set(range(1, count)) - set(scored)
    assert missing == (set(range(length, count, length)) if stride == length else set())


@pytest.mark.parametrize(("length", "stride"), [(400, None), (128, None), (128, 50), (300, 256)])
def test_perplexity_is_that_of_the_reference(reference_and_model, length: int, stride: int | None) -> None:
    reference, model = reference_and_model
    ids, losses = tokens(400), []
    for begin, first, end in windows(len(ids), length, stride or length):
        log_probabilities = reference_logits(reference, ids[begin:end]).double().log_softmax(-1)
        losses += [-float(log_probabilities[i - 1 - begin, ids[i]]) for i in range(first, end)]
    got = perplexity(model, ids, length, stride)
    mean = sum(losses) / len(losses)
    assert got.tokens == len(losses)
    assert got.nll == pytest.approx(mean, rel=1e-4)  # an f16 cache
    assert got.perplexity == pytest.approx(math.exp(mean), rel=1e-3)


@pytest.mark.parametrize(("ids", "length", "stride"), [([1], 8, 8), ([1, 2, 3], 1, 1), ([1, 2, 3], 8, 0), ([1, 2, 3], 8, 9)])
def test_impossible_windows_are_refused(reference_and_model, ids: list[int], length: int, stride: int) -> None:
    with pytest.raises(ModelError, match="cannot be scored"):
        perplexity(reference_and_model[1], ids, length, stride)


def test_a_window_longer_than_the_context_is_refused(reference_and_model) -> None:
    with pytest.raises(ContextError, match="600"):
        perplexity(reference_and_model[1], [1] * 700, 600)
    assert perplexity(reference_and_model[1], [1] * 20, 600).tokens == 19  # a short text needs no long window


def test_a_divergence_is_that_of_the_formula(reference_and_model, tmp_path: Path) -> None:
    """Against transformers' logits of two models; windows of 100 tokens with a chunk that does not divide them."""
    reference, model = reference_and_model
    other = make("Llama", tmp_path, seed=1)
    ids, kl, same, losses = tokens(230), 0.0, 0, [0.0, 0.0]
    for begin in range(0, 230, 100):
        here = ids[begin : begin + 100]
        p, q = (reference_logits(each, here)[:-1].double().log_softmax(-1) for each in (reference, other))
        kl += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        for i, rows in enumerate((q, p)):
            losses[i] -= float(sum(row[token] for row, token in zip(rows, here[1:], strict=True)))
    found = divergence(load(tmp_path, length=512), model, ids, 100, chunk=37)
    assert found.tokens == 227 and found.same == pytest.approx(same / 227)
    assert found.kl == pytest.approx(kl / 227, rel=1e-3)
    assert [math.log(found.perplexity), math.log(found.base_perplexity)] == pytest.approx([loss / 227 for loss in losses], rel=1e-4)


def test_a_model_does_not_diverge_from_itself_and_a_cache_of_few_bits_does(reference_and_model, tmp_path: Path) -> None:
    _, model = reference_and_model
    assert divergence(model, model, tokens(60)).kl == pytest.approx(0.0, abs=1e-12)
    make("Llama", tmp_path, head_dim=64)
    wide = load(tmp_path, length=512)
    eight, four = (divergence(wide, wide, tokens(200), bits=bits).kl for bits in ((8, 8), (4, 4)))
    assert 0 < eight < four


def test_what_cannot_be_compared_is_said(reference_and_model, tmp_path: Path) -> None:
    _, model = reference_and_model
    with pytest.raises(ContextError, match="window of 600"):
        divergence(model, model, tokens(600))
    with pytest.raises(ModelError, match="windows of 1"):
        divergence(model, model, tokens(9), 1)
    make("Llama", tmp_path, vocab_size=VOCAB + 1)
    with pytest.raises(ModelError, match="has 68 tokens"):
        divergence(load(tmp_path), model, tokens(9))
