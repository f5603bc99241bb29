"""The sampler: every setting against a scalar reference in float64 and by chi-square, the kernel against the reference, seeds, state."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import distribution as scalar
from sampling_reference import dry, penalised

from exltui import paths
from exltui.engine.generate.sampling import Sampler, bits, uniform
from exltui.engine.ops import OPS, bind
from exltui.engine.ops import cpu as native
from exltui.engine.ops.sample import EXCLUDED, STAGES, Rule, SampleParams, adjusted, distribution, sample, sample_on_gpu
from exltui.errors import ModelError, SamplingError
from exltui.protocol import Sampling
from exltui.sampling import BY_NAME, ORDER, SETTINGS, stages, validate

OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    assert "sample" in bind("cpu").native


def both(logits: torch.Tensor, params: list[SampleParams]) -> list[list[int]]:
    """The tokens that the reference and the kernel draw."""
    return [[int(row[0]) for row in function(logits, params).tolist()] for function in (sample, native.sample)]


def random_logits(seed: int, size: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def off(**changes: object) -> Sampling:
    return replace(OFF, **changes)


# One for each setting that shapes the distribution, alone and then together.
SHAPES = {
    "temperature": off(temperature=0.6),
    "hot": off(temperature=2.5),
    "temperature last": off(temperature=1.7, temperature_last=True, top_p=0.8, min_p=0.02),
    "dynamic temperature": off(min_temp=0.3, max_temp=2.0, temp_exponent=0.7),
    "dynamic after the cuts": off(temperature=1.3, temperature_last=True, max_temp=1.8, top_k=12),
    "smoothing": off(smoothing_factor=0.3, temperature=1.4),
    "top-n-sigma": off(top_n_sigma=1.2),
    "top-k": off(top_k=7),
    "top-p": off(top_p=0.75),
    "top-a": off(top_a=0.4),
    "min-p": off(min_p=0.1),
    "tail free": off(tfs=0.9),
    "typical": off(typical=0.6),
    "mirostat": off(mirostat=True, mirostat_tau=2.0),
    "adaptive-p": off(adaptive_target=0.25, min_p=0.02),
    "XTC": off(xtc_probability=0.6, xtc_threshold=0.08),
    "XTC always": off(xtc_probability=1.0, xtc_threshold=0.05),
    "skew": off(skew=0.8, top_k=20),
    "skew to the likeliest": off(skew=-0.5),
    "defaults": Sampling(seed=0),
    "many": off(
        temperature=1.2,
        top_k=30,
        top_p=0.95,
        top_a=0.05,
        min_p=0.01,
        tfs=0.97,
        typical=0.95,
        xtc_probability=0.3,
        max_temp=1.5,
        min_temp=0.5,
    ),
    "other order": off(order="top_p, temperature, xtc, min_p", temperature=1.5, top_p=0.9, min_p=0.02, xtc_probability=0.5),
}


def expected(logits: torch.Tensor, s: Sampling, spared: frozenset[int] = frozenset()) -> dict[int, float]:
    """The probabilities of a first draw."""
    mu = 2 * s.mirostat_tau if s.mirostat_mu is None else s.mirostat_mu
    return scalar(logits.tolist(), s, mu, s.adaptive_target, spared)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 60, 3000])
def test_the_distribution_is_that_of_the_formulas(name: str, size: int) -> None:
    s, logits = SHAPES[name], random_logits(size, size, 2.0)
    want = expected(logits, s)
    p = Sampler(s, width=size).params([], 0)
    ids, probs, _ = distribution(logits, p)
    fast_ids, fast_probs = native.distribution(logits, p)
    assert set(ids.tolist()) == set(want)
    for i, prob in zip(ids.tolist(), probs.tolist(), strict=True):
        assert prob == pytest.approx(want[i], rel=1e-6, abs=1e-12)
    fast = dict(zip(fast_ids.tolist(), fast_probs.tolist(), strict=True))
    assert sum(fast.values()) == pytest.approx(1, abs=1e-6)
    assert fast_probs.tolist() == sorted(fast_probs.tolist(), reverse=True)
    for i in set(want) | set(fast):  # the kernel computes in f32, so one at the edge of a cut may fall to the other side
        assert fast.get(i, 0.0) == pytest.approx(want.get(i, 0.0), rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_draws_follow_the_distribution(name: str) -> None:
    """Chi-square over 100,000 draws of the kernel. The bound is about the 0.01 % quantile; the points are fixed."""
    s, logits, count = SHAPES[name], random_logits(7, 60, 1.5), 100_000
    want = expected(logits, s)
    if s.skew:  # token k of the ranking is drawn for points r with cumulative[k-1] <= r ** exp(-skew) < cumulative[k]
        edge, edges = 0.0, {}
        for i in sorted(want, key=lambda i: (-want[i], i)):
            edges[i] = min(edge + want[i], 1.0) ** math.exp(s.skew) - min(edge, 1.0) ** math.exp(s.skew)
            edge += want[i]
        want = edges
    params = Sampler(s, width=60).params([], 0)
    points = np.random.default_rng(11).random(count).tolist()
    drawn = torch.ops.exltui_cpu.sample(logits.expand(count, -1), native._parts([params]) * count, [60] * count, points)
    counts = Counter(drawn[:, 0].long().tolist())
    assert set(counts) <= set(want)
    common = [i for i in want if want[i] * count >= 5]
    chi = sum((counts[i] - want[i] * count) ** 2 / (want[i] * count) for i in common)
    freedom = max(len(common) - 1, 1)
    assert chi < freedom + 3.8 * math.sqrt(2 * freedom) + 8


rules = st.lists(
    st.one_of(
        st.builds(Rule, st.just("top_n_sigma"), st.sampled_from([0.5, 1.0, 2.5])),
        st.builds(Rule, st.just("smoothing"), st.sampled_from([0.1, 0.5])),
        st.builds(Rule, st.just("temperature"), st.sampled_from([0.05, 0.7, 3.0])),
        st.builds(Rule, st.just("top_k"), st.sampled_from([1, 2, 40, 1000])),
        st.builds(Rule, st.just("top_p"), st.sampled_from([0.05, 0.5, 0.9, 0.999])),
        st.builds(Rule, st.just("top_a"), st.sampled_from([0.1, 0.8])),
        st.builds(Rule, st.just("min_p"), st.sampled_from([0.0001, 0.02, 0.3, 1.0])),
        st.builds(Rule, st.just("tfs"), st.sampled_from([0.3, 0.95])),
        st.builds(Rule, st.just("typical"), st.sampled_from([0.2, 0.9])),
        st.builds(Rule, st.just("mirostat"), st.sampled_from([0.5, 3.0, 8.0])),
        st.builds(Rule, st.just("dynamic_temperature"), st.just(0.2), st.sampled_from([1.0, 3.0]), st.sampled_from([0.5, 2.0])),
        st.builds(Rule, st.just("xtc"), st.sampled_from([0.4, 1.0]), st.sampled_from([0.0, 0.05, 0.3])),
        st.builds(Rule, st.just("skew"), st.sampled_from([-1.0, 1.0])),
    ),
    max_size=4,
    unique_by=lambda rule: rule.stage,
).map(tuple)


@settings(max_examples=250, deadline=None)
@given(
    rules=rules,
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 63, 64, 127, 300, 5000, 20_000]),
    point=st.floats(0, 1, exclude_max=True),
)
def test_the_kernel_draws_what_the_reference_draws(rules: tuple[Rule, ...], seed: int, size: int, point: float) -> None:
    """In any order of any rules but adaptive-p, whose weights f32 cannot tell apart in the tail; some tokens excluded."""
    logits = random_logits(seed, size)
    picks = np.random.default_rng(seed)
    shift = (
        torch.from_numpy(picks.choice(size, min(size, 9), replace=False)),
        torch.tensor([-math.inf, 5, -3, 2, 2, 1, 0, -1, 9])[: min(size, 9)],
    )
    mask = bits([i for i in range(size) if picks.random() < 0.9 or i == size - 1], size)
    p = SampleParams(rules, point, None, shift, mask, torch.arange(0, size, 5))
    (slow, slow_prob, slow_prior), (fast, fast_prob, fast_prior) = (
        sample(logits[None], [p])[0].tolist(),
        native.sample(logits[None], [p])[0].tolist(),
    )
    if fast == slow:
        assert fast_prob == pytest.approx(slow_prob, rel=1e-2, abs=1e-4) and fast_prior == pytest.approx(slow_prior, rel=1e-2, abs=1e-4)
        return
    ids, probs, _ = distribution(logits, p)  # f32 or f64 decides only for a point at the edge of a token, or a token at the edge of a cut
    fast_ids, _ = native.distribution(logits, p)
    if set(ids.tolist()) == set(fast_ids.tolist()):
        skew = next((rule.a for rule in rules if rule.stage == "skew"), 0.0)
        place, edges = ids.tolist().index(int(fast)), [0.0, *probs.cumsum(0).tolist()]
        assert min(abs(edge - point ** math.exp(-skew)) for edge in edges[max(place - 1, 0) : place + 3]) < 1e-4
    else:
        strays = set(ids.tolist()) ^ set(fast_ids.tolist())
        common = [i for i in ids.tolist() if i not in strays]
        assert len(strays) <= max(2, len(common) // 50), (strays, common)


def test_the_kernels_number_the_stages_as_the_table_does() -> None:
    header = (paths.csrc_dir() / "cpu" / "sample.h").read_text(encoding="utf-8")
    (names,) = re.findall(r"enum class Stage : int \{ ([a-z_, ]+) \}", header)
    assert tuple(names.split(", ")) == STAGES == (*ORDER, "skew")


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(1, 1000)
    assert both(logits, [SampleParams((Rule("top_k", 1),))]) == [[0], [0]]
    assert both(logits, [SampleParams((Rule("top_k", 3),), 0.5)]) == [[1], [1]]
    assert both(logits, [SampleParams((Rule("top_k", 3),), 0.99)]) == [[2], [2]]


def test_top_p_keeps_the_token_that_crosses_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    for mass, kept in ((0.6, [0, 1]), (0.01, [0]), (0.8000001, [0, 1, 2])):
        p = SampleParams((Rule("top_p", mass),))
        assert distribution(logits, p).ids.tolist() == native.distribution(logits, p)[0].tolist() == kept


def test_typical_takes_the_surprise_of_the_logarithm_and_keeps_the_crossing_token() -> None:
    """A peer takes x + log x for log x, and drops the token that crosses. Here the entropy is 1.28 bits, so the second comes first."""
    logits = torch.tensor([0.6, 0.3, 0.08, 0.02]).log()
    p = SampleParams((Rule("typical", 0.5),))
    assert distribution(logits, p).ids.tolist() == native.distribution(logits, p)[0].tolist() == [0, 1]


def test_xtc_spares_the_least_likely_of_the_best_and_what_it_must_not_touch() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    sure = (Rule("xtc", 1.0, 0.15),)
    for spared, want in ((None, [2, 3]), (torch.tensor([0]), [0, 2, 3]), (torch.tensor([2]), [1, 2, 3])):
        p = SampleParams(sure, spared=spared)
        assert sorted(distribution(logits, p).ids.tolist()) == sorted(native.distribution(logits, p)[0].tolist()) == want


def test_xtc_has_the_distribution_of_a_coin_that_is_tossed_for_each_token() -> None:
    """The original XTC leaves out the best with probability p; what the expectation gives is that mixture."""
    logits, chance = torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), 0.3
    with_xtc = {2: 2 / 3, 3: 1 / 3}
    mixture = {i: (1 - chance) * float(logits[i].exp()) + chance * with_xtc.get(i, 0.0) for i in range(4)}
    ids, probs, _ = distribution(logits, SampleParams((Rule("xtc", chance, 0.15),)))
    assert dict(zip(ids.tolist(), probs.tolist(), strict=True)) == pytest.approx(mixture)


def test_smoothing_is_the_same_in_every_row_of_a_batch() -> None:
    """A peer divides the temperature within the batch loop."""
    logits = random_logits(3, 50)
    p = SampleParams((Rule("smoothing", 0.2), Rule("temperature", 1.5)), 0.7)
    rows = native.sample(logits.expand(4, -1).contiguous(), [p] * 4)
    assert (rows == rows[0]).all()


HISTORIES = st.lists(st.integers(0, 19), max_size=60)


@settings(max_examples=80, deadline=None)
@given(
    history=HISTORIES,
    repetition=st.sampled_from([1.0, 1.2, 0.8]),
    presence=st.sampled_from([0.0, 0.5]),
    frequency=st.sampled_from([0.0, 0.1, -0.2]),
    window=st.sampled_from([-1, 0, 1, 10, 100]),
    decay=st.sampled_from([0, 1, 7, 30]),
)
def test_penalties_change_the_logits_of_what_was_said(
    history: list[int], repetition: float, presence: float, frequency: float, window: int, decay: int
) -> None:
    s = off(
        token_repetition_penalty=repetition,
        token_presence_penalty=presence,
        token_frequency_penalty=frequency,
        token_repetition_range=window,
        token_repetition_decay=decay,
    )
    logits = random_logits(3, 20)
    params = Sampler(s).params(history, len(history))
    want = penalised(logits.tolist(), s, history)
    assert adjusted(logits, params).tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    probabilities = scalar(want, s)
    ids, probs = native.distribution(logits, params)
    assert dict(zip(ids.tolist(), probs.tolist(), strict=True)) == pytest.approx(probabilities, rel=1e-4, abs=1e-7)


@settings(max_examples=150, deadline=None)
@given(
    history=st.lists(st.integers(0, 4), max_size=60),
    allowed=st.integers(1, 4),
    most=st.sampled_from([3, 20]),
    window=st.sampled_from([0, 12]),
    breakers=st.sampled_from([(), (3,), (0, 4)]),
)
def test_dry_lowers_what_would_go_on_with_a_passage(
    history: list[int], allowed: int, most: int, window: int, breakers: tuple[int, ...]
) -> None:
    s = off(dry_multiplier=0.7, dry_base=1.6, dry_allowed_length=allowed, dry_max_ngram=most, dry_range=window)
    params = Sampler(s, lambda characters: frozenset(breakers)).params(history, len(history))
    got = {} if params.shift is None else dict(zip(params.shift[0].tolist(), (-params.shift[1]).tolist(), strict=True))
    assert got == pytest.approx(dry(s, history, frozenset(breakers)), rel=1e-5)


def test_dry_of_an_absurd_strength_stays_finite() -> None:
    s = off(dry_multiplier=100.0, dry_base=10.0, dry_max_ngram=1000)
    shift = Sampler(s).params([1] * 900, 900).shift
    assert shift is not None and bool(torch.isfinite(shift[1]).all())


@settings(max_examples=80, deadline=None)
@given(data=st.data(), window=st.sampled_from([-1, 0, 3, 12]), decay=st.sampled_from([0, 5]))
def test_what_a_sampler_remembers_follows_a_history_that_grows_and_is_rewound(data: st.DataObject, window: int, decay: int) -> None:
    s = off(
        token_frequency_penalty=0.3,
        token_repetition_range=window,
        token_repetition_decay=decay,
        dry_multiplier=0.5,
        mirostat=True,
        adaptive_target=0.3,
    )
    sampler, history, seen = Sampler(s), [], {}
    for _ in range(8):
        history = history[: data.draw(st.integers(0, len(history)))] + data.draw(st.lists(st.integers(0, 10), max_size=8))
        position = len(history)
        old, new = sampler.params(list(history), position), Sampler(s).params(list(history), position)
        assert old.penalties is not None and new.penalties is not None
        for a, b in (
            (old.penalties.seen, new.penalties.seen),
            (old.penalties.counts, new.penalties.counts),
            (old.penalties.weights, new.penalties.weights),
        ):
            assert a.tolist() == pytest.approx(b.tolist(), abs=1e-5)
        assert (old.shift is None) == (new.shift is None)
        seen = {at: rules for at, rules in seen.items() if at < position}
        sampler.observe(position, 0.25, 0.5)
        seen[position] = old.rules
        assert sampler.params(list(history), position).rules == old.rules, "a draw that is taken back leaves no trace"
        sampler.observe(position, 0.25, 0.5)


def test_mirostat_follows_the_surprise_of_what_was_drawn() -> None:
    s = off(mirostat=True, mirostat_tau=3.0, mirostat_eta=0.2)
    sampler, mu = Sampler(s), 6.0
    for position, probability in enumerate([0.5, 0.01, 0.3]):
        assert sampler.params([], position).rules[-1] == Rule("mirostat", pytest.approx(mu))
        sampler.observe(position, probability, probability)
        mu += 0.2 * (3.0 + math.log2(probability))
    assert sampler.params([], 3).rules[-1].a == pytest.approx(mu)
    assert Sampler(replace(s, mirostat_mu=4.5)).params([], 0).rules[-1].a == 4.5


def test_mirostat_reaches_its_target() -> None:
    """Over many draws from one distribution the mean surprise comes near tau."""
    logits = random_logits(5, 400, 1.0)[None]
    for tau in (2.0, 5.0):
        sampler, surprise = Sampler(off(mirostat=True, mirostat_tau=tau, mirostat_eta=0.1)), []
        for position in range(1500):
            _, probability, prior = native.sample(logits, [sampler.params([], position)])[0].tolist()
            sampler.observe(position, probability, prior)
            surprise.append(-math.log2(probability))
        assert np.mean(surprise[300:]) == pytest.approx(tau, abs=0.1)


def test_adaptive_p_aims_so_that_the_average_comes_back_to_the_target() -> None:
    s = off(adaptive_target=0.4, adaptive_decay=0.8)
    sampler, total, weight = Sampler(s), 0.4 / 0.2, 1 / 0.2
    for position, prior in enumerate([0.9, 0.9, 0.1, 0.5]):
        assert sampler.params([], position).rules[-1].a == pytest.approx(min(max(0.8 - total / weight, 0), 1))
        sampler.observe(position, 0.123, prior)
        total, weight = prior + 0.8 * total, 1 + 0.8 * weight


def test_adaptive_p_reports_the_probability_before_it() -> None:
    logits = random_logits(2, 40)
    p = SampleParams((Rule("top_k", 5), Rule("adaptive", 0.2)), 0.6)
    for function in (sample, native.sample):
        token, _, prior = function(logits[None], [p])[0].tolist()
        assert prior == pytest.approx(float(logits.topk(5).values.softmax(0)[logits.topk(5).indices.tolist().index(int(token))]), rel=1e-5)


def test_two_samplers_of_the_same_settings_do_not_meet() -> None:
    """A peer keeps mirostat's bound in the settings, so that jobs spoil each other's."""
    s = off(mirostat=True, dry_multiplier=1.0)
    one, other = Sampler(s), Sampler(s)
    one.params([1, 2, 3, 1, 2], 5)
    one.observe(5, 0.001, 0.001)
    assert other.params([], 6).rules[-1].a == pytest.approx(3.0) != one.params([1], 6).rules[-1].a


def test_biases_bans_and_what_is_allowed() -> None:
    logits = torch.zeros(1, 70)
    for sampler, want in (
        (Sampler(OFF, bias={69: 50.0}, width=70), {69}),
        (Sampler(OFF, bias={i: -math.inf for i in range(70) if i != 31}, width=70), {31}),
        (Sampler(OFF, allowed=[32, 33], width=70), {32, 33}),
        (Sampler(OFF, allowed=[32, 33], bias={32: -math.inf}, width=70), {33}),
        (Sampler(off(dry_multiplier=100.0, dry_allowed_length=1), bias={7: 50.0, 8: 50.0}, width=70), {8}),
    ):
        drawn = {token for at in range(40) for row in both(logits, [sampler.params([5, 7, 5], at)]) for token in row}
        assert drawn == want


def test_where_nothing_is_left_to_draw_a_row_says_so_and_the_others_are_drawn() -> None:
    logits = torch.zeros(2, 40)
    none, some = Sampler(OFF, allowed=[], width=40).params([], 0), Sampler(OFF, allowed=[3], width=40).params([], 0)
    assert both(logits, [none, some]) == [[EXCLUDED, 3], [EXCLUDED, 3]]
    assert len(native.distribution(logits[0], none)[0]) == len(distribution(logits[0], none).ids) == 0


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0, 9.0]])
    assert both(logits, [Sampler(off(temperature=0.0), width=2).params([3, 2], 0)]) == [[1], [1]]


def test_a_point_depends_on_seed_and_position_alone() -> None:
    points = [uniform(5, i)[0] for i in range(2000)]
    assert points[1000:1010] == uniform(5, 1000, 10)
    assert points[:10] != uniform(6, 0, 10)
    assert all(0 <= point < 1 for point in points)
    assert abs(np.mean(points) - 0.5) < 0.03  # four standard errors
    assert len(set(points)) == len(points)


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    rows = torch.stack([random_logits(i, 500) for i in range(5)])
    each = [Sampler(Sampling(seed=i)).params([1, 2], 2) for i in range(5)]
    together = native.sample(rows, each)
    for i in range(5):
        assert together[i].tolist() == native.sample(rows[i : i + 1], [each[i]])[0].tolist()


@pytest.mark.parametrize("s", [Sampling(temperature=0.0), Sampling(temperature=0.001), Sampling(top_k=1), Sampling(temperature=5, top_k=1)])
def test_greedy_takes_the_largest(s: Sampling) -> None:
    logits = random_logits(1, 100)[None]
    assert both(logits, [Sampler(s).params([], 0)]) == [[int(logits.argmax())]] * 2


def test_greedy_still_obeys_penalties() -> None:
    p = Sampler(Sampling(temperature=0.0, token_presence_penalty=1.0)).params([0], 1)
    assert both(torch.tensor([[2.0, 1.9, 0.0]]), [p]) == [[1], [1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", [sample, native.sample])
@pytest.mark.parametrize("s", [Sampling(temperature=0.0), Sampling()])
def test_a_broken_model_is_reported_and_not_sampled(function, bad: float, s: Sampling) -> None:
    logits = random_logits(0, 200)[None].clone()
    logits[0, 77] = bad
    with pytest.raises(ModelError, match="no finite number"):
        function(logits, [Sampler(s).params([], 0)])


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 300), float("-inf"))
    logits[0, [5, 9]] = 0.0
    drawn = {token for point in (0.0, 0.3, 0.6, 0.999999) for row in both(logits, [SampleParams((), point)]) for token in row}
    assert drawn == {5, 9}


# ── the table of settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_has_every_setting_once() -> None:
    assert sorted(setting.name for setting in SETTINGS) == sorted(field.name for field in fields(Sampling))
    validate(Sampling())


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_says_what_it_is_and_is_refused_outside_its_range(setting) -> None:
    assert setting.help.endswith(".") and len(setting.help) < 90 and setting.label and setting.group
    if setting.kind in ("number", "whole"):
        for value in (setting.low - 1, setting.high * 2 + 1, "x", True):
            with pytest.raises(SamplingError, match=f"{setting.name} is .* must"):
                Sampler(Sampling(**{setting.name: value}))
        Sampler(Sampling(**{setting.name: int(setting.low) if setting.kind == "whole" else setting.low}))
    else:
        with pytest.raises(SamplingError, match=f"{setting.name} is 1, it must be"):
            Sampler(Sampling(**{setting.name: 1}))


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.off is not None], ids=lambda setting: setting.name)
def test_a_setting_at_its_off_value_changes_nothing(setting) -> None:
    logits = random_logits(4, 80)
    ids, probs, _ = distribution(logits, Sampler(replace(OFF, **{setting.name: setting.off})).params([1, 2, 1, 2], 4))
    assert probs.tolist() == pytest.approx(logits.double().softmax(0)[ids].tolist())


@pytest.mark.parametrize(("name", "value"), [("top_k", 1.5), ("seed", "7"), ("temperature", "hot"), ("min_p", None), ("mirostat", 1)])
def test_what_is_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"{name} is .*must be"):
        Sampler(Sampling(**{name: value}))


def test_an_order_names_stages_each_once() -> None:
    assert stages(Sampling()) == ORDER
    assert stages(Sampling(order="min_p, temperature")) == ("min_p", "temperature")
    assert stages(Sampling(temperature_last=True)).index("temperature") == ORDER.index("mirostat")
    with pytest.raises(SamplingError, match="'tempo', which is no stage"):
        Sampler(Sampling(order="tempo"))
    with pytest.raises(SamplingError, match="min_p twice"):
        Sampler(Sampling(order="min_p,temperature,min_p"))
    assert BY_NAME["order"].default == ""


def test_the_page_explains_every_setting_and_every_stage() -> None:
    page = (Path(__file__).parent.parent / "docs" / "sampling.md").read_text(encoding="utf-8")
    for name in (*BY_NAME, *ORDER):
        assert f"`{name}`" in page


def test_an_order_of_ones_own_leaves_out_what_it_does_not_name() -> None:
    logits = random_logits(4, 80)
    ids, _, _ = distribution(logits, Sampler(Sampling(order="temperature")).params([], 0))
    assert len(ids) == 80


def test_the_likeliest_token_of_a_gpu_is_that_of_the_reference() -> None:
    """Greedy rows are drawn where the logits are; ties go to the lowest id, and ids past the width do not exist."""
    logits = torch.randn(4, 97, generator=torch.Generator().manual_seed(1))
    logits[0, [7, 50]] = 9.0
    logits[1, 96] = 20.0
    logits[3] = -torch.inf
    greedy = (Rule("top_k", 1),)
    params = [SampleParams(greedy), SampleParams(greedy, width=90), SampleParams(greedy, width=90), SampleParams(greedy)]
    drawn = sample_on_gpu(logits, params)
    assert torch.equal(drawn, OPS["sample"].reference(logits, params))
    assert drawn[0, 0] == 7 and drawn[1, 0] < 90 and drawn[3, 0] == EXCLUDED
    for wrong in (torch.nan, torch.inf):
        logits[2, 3] = wrong
        with pytest.raises(ModelError, match="no finite number"):
            sample_on_gpu(logits, params)
