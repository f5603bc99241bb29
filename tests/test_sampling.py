"""The sampler: formulas against a scalar reference in float64, the fast draw against the torch reference, seeds, penalties."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exltui.engine.generate.sampling import RANGES, Occurrences, Sampler, uniform
from exltui.engine.ops.sample import SampleParams, distribution, penalise, sample, sample_cpu
from exltui.errors import ModelError, SamplingError
from exltui.protocol import Sampling


def scalar_distribution(logits: list[float], p: SampleParams) -> dict[int, float]:
    """Probabilities by token id, one loop at a time, in Python's floats."""
    top = max(logits)
    weights = {i: math.exp((value - top) / p.temperature) for i, value in enumerate(logits)}
    order = sorted(weights, key=lambda i: (-logits[i], i))
    if p.top_k:
        order = order[: p.top_k]
    total = sum(weights[i] for i in order)
    if 0 < p.top_p < 1:
        mass, kept = 0.0, []
        for i in order:
            kept.append(i)
            mass += weights[i] / total
            if mass >= p.top_p:
                break
        order = kept
    order = [i for i in order if weights[i] >= p.min_p * weights[order[0]]]
    total = sum(weights[i] for i in order)
    return {i: weights[i] / total for i in order}


def random_logits(seed: int, size: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


params = st.builds(
    SampleParams,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 1000]),
    top_p=st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(p=params, seed=st.integers(0, 10_000), size=st.sampled_from([1, 2, 63, 64, 300, 3000]))
def test_the_distribution_is_that_of_the_formulas(p: SampleParams, seed: int, size: int) -> None:
    logits = random_logits(seed, size)
    probs, ids = distribution(logits, p)
    want = scalar_distribution(logits.tolist(), p)
    assert set(ids.tolist()) == set(want)
    for i, prob in zip(ids.tolist(), probs.tolist(), strict=True):
        assert prob == pytest.approx(want[i], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    p=params,
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 63, 64, 127, 300, 5000, 20_000]),
    point=st.floats(0, 1, exclude_max=True),
)
def test_the_fast_draw_takes_the_token_that_the_reference_takes(p: SampleParams, seed: int, size: int, point: float) -> None:
    p = SampleParams(p.temperature, p.top_k, p.top_p, p.min_p, point=point)
    logits = random_logits(seed, size)[None]
    fast, slow = int(sample_cpu(logits, [p])), int(sample(logits, [p]))
    if fast != slow:  # the mass is summed in another order, so a point within 1e-5 of a boundary may fall to the neighbour
        probs, ids = distribution(logits[0], p)
        place, edges = ids.tolist().index(fast), probs.cumsum(0)
        assert min(abs(float(edges[i]) - point) for i in (place, max(place - 1, 0))) < 1e-5


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(1, 1000)
    for function in (sample, sample_cpu):
        assert int(function(logits, [SampleParams(temperature=0.0)])) == 0
        assert int(function(logits, [SampleParams(top_k=3, point=0.5)])) == 1
        assert int(function(logits, [SampleParams(top_k=3, point=0.99)])) == 2


@pytest.mark.parametrize("p", [SampleParams(0.8, 50, 0.9, 0.05), SampleParams(1.0), SampleParams(1.3, 0, 0.7), SampleParams(1.0, 5)])
def test_draws_follow_the_distribution(p: SampleParams) -> None:
    """Chi-square over 20,000 draws at the points of one seed. The bound is the 0.1 % quantile, approximately; the seed is fixed."""
    logits = random_logits(7, 60, 1.5)
    want, count = scalar_distribution(logits.tolist(), p), 20_000
    drawn = Counter()
    rows = logits[None].expand(1000, -1).contiguous()
    for start in range(0, count, 1000):
        points = [SampleParams(p.temperature, p.top_k, p.top_p, p.min_p, point=uniform(11, start + i)) for i in range(1000)]
        drawn.update(sample_cpu(rows, points).tolist())
    assert set(drawn) <= set(want)
    common = [i for i in want if want[i] * count >= 5]
    chi = sum((drawn[i] - want[i] * count) ** 2 / (want[i] * count) for i in common)
    freedom = len(common) - 1
    assert chi < freedom + 3.1 * math.sqrt(2 * freedom) + 5


def test_top_p_keeps_the_token_that_crosses_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert distribution(logits, SampleParams(top_p=0.6))[1].tolist() == [0, 1]
    assert distribution(logits, SampleParams(top_p=0.01))[1].tolist() == [0]
    assert len(distribution(logits, SampleParams(top_p=0.0))[0]) == 3  # 0 is off


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(st.integers(0, 19), max_size=60),
    repetition=st.sampled_from([1.0, 1.2, 0.8]),
    presence=st.sampled_from([0.0, 0.5]),
    frequency=st.sampled_from([0.0, 0.1, -0.2]),
    window=st.sampled_from([-1, 0, 1, 10, 100]),
)
def test_penalties_change_the_logits_of_what_was_said(
    history: list[int], repetition: float, presence: float, frequency: float, window: int
) -> None:
    settings_ = Sampling(
        token_repetition_penalty=repetition,
        token_presence_penalty=presence,
        token_frequency_penalty=frequency,
        token_repetition_range=window,
        seed=0,
    )
    logits = random_logits(3, 20)
    got = penalise(logits, Sampler(settings_).params(history, len(history)))
    counts = Counter(history if window < 0 else history[max(len(history) - window, 0) :])
    for i, value in enumerate(logits.tolist()):
        if i in counts:
            value = (value / repetition if value > 0 else value * repetition) - presence - frequency * counts[i]
        assert float(got[i]) == pytest.approx(value, rel=1e-5, abs=1e-6)
    for point in (0.0, 0.4, 0.9):
        p = replace(Sampler(settings_).params(history, len(history)), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, point=point)
        assert int(sample_cpu(logits[None], [p])) == int(sample(logits[None], [p]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), window=st.sampled_from([-1, 0, 3, 12]))
def test_occurrences_follow_a_history_that_grows_and_is_rewound(data: st.DataObject, window: int) -> None:
    occurrences, history = Occurrences(window), []
    for _ in range(8):
        history = history[: data.draw(st.integers(0, len(history)))] + data.draw(st.lists(st.integers(0, 40), max_size=8))
        seen, counts = occurrences.of(list(history))
        want = Counter(history if window < 0 else history[max(len(history) - window, 0) :])
        assert dict(zip(seen.tolist(), counts.tolist(), strict=True)) == want


def test_a_point_depends_on_seed_and_position_alone() -> None:
    points = [uniform(5, i) for i in range(2000)]
    assert points[1000:1010] == [uniform(5, i) for i in range(1000, 1010)]
    assert points[:10] != [uniform(6, i) for i in range(10)]
    assert all(0 <= point < 1 for point in points)
    assert abs(np.mean(points) - 0.5) < 0.03  # four standard errors
    assert len(set(points)) == len(points)


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    rows = torch.stack([random_logits(i, 500) for i in range(5)])
    each = [Sampler(Sampling(seed=i)).params([1, 2], 2) for i in range(5)]
    together = sample_cpu(rows, each).tolist()
    assert together == [int(sample_cpu(rows[i : i + 1], [each[i]])) for i in range(5)]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(temperature=0.001), Sampling(top_k=1), Sampling(temperature=5, top_k=1)]
)
def test_greedy_takes_the_largest(sampling: Sampling) -> None:
    logits = random_logits(1, 100)[None]
    for function in (sample, sample_cpu):
        assert int(function(logits, [Sampler(sampling).params([], 0)])) == int(logits.argmax())


def test_greedy_still_obeys_penalties() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0]])
    p = Sampler(Sampling(temperature=0.0, token_presence_penalty=1.0)).params([0], 1)
    for function in (sample, sample_cpu):
        assert int(function(logits, [p])) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", [sample, sample_cpu])
@pytest.mark.parametrize("p", [SampleParams(0.0), SampleParams(0.8, 50, 0.9)])
def test_a_broken_model_is_reported_and_not_sampled(function, bad: float, p: SampleParams) -> None:
    logits = random_logits(0, 200)[None].clone()
    logits[0, 77] = bad
    with pytest.raises(ModelError, match="largest logit"):
        function(logits, [p])


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 300), float("-inf"))
    logits[0, [5, 9]] = 0.0
    for function in (sample, sample_cpu):
        drawn = {int(function(logits, [SampleParams(point=point)])) for point in (0.0, 0.3, 0.6, 0.999999)}
        assert drawn == {5, 9}


@pytest.mark.parametrize("name", RANGES)
def test_every_setting_has_a_range_and_is_refused_outside_it(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, high * 2 + 1):
        with pytest.raises(SamplingError, match=name):
            Sampler(Sampling(**{name: value}))
    Sampler(Sampling(**{name: low}))


@pytest.mark.parametrize(("name", "value"), [("top_k", 1.5), ("seed", "7"), ("temperature", "hot"), ("min_p", None)])
def test_what_is_no_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"{name} is .*must be a"):
        Sampler(Sampling(**{name: value}))
