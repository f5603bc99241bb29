"""Drawing on a GPU: against the reference and the CPU kernel on any rules, and the penalties that it keeps by itself.

The rule: a token is right if its share of the cumulative distribution, the reference's in f64 or the CPU kernel's in f32, holds the random
point up to 1e-4. f32 decides otherwise only for a token at the edge of a cut: three in a thousand draws may be such.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from sampling_reference import penalised
from test_sampling import SHAPES, expected, off, random_logits

from exltui.engine.generate.sampling import Sampler, bits
from exltui.engine.ops import OPS, bind, cpu
from exltui.engine.ops.cuda_sample import upload
from exltui.engine.ops.sample import EXCLUDED, Rule, SampleParams, Tally, distribution, sample
from exltui.errors import ModelError, ShapeError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda")
EDGE = 1e-4
CHOICES = {
    "top_n_sigma": [(0.5,), (2.5,)],
    "smoothing": [(0.1,), (0.5,)],
    "temperature": [(0.05,), (0.7,), (3.0,)],
    "top_k": [(1,), (2,), (40,), (1000,), (3000,)],
    "top_p": [(0.05,), (0.5,), (0.9,), (0.999,)],
    "top_a": [(0.1,), (0.8,)],
    "min_p": [(0.0001,), (0.02,), (0.3,), (1.0,)],
    "tfs": [(0.3,), (0.95,)],
    "typical": [(0.2,), (0.9,)],
    "mirostat": [(0.5,), (3.0,), (8.0,)],
    "dynamic_temperature": [(0.2, 1.0, 0.5), (0.2, 3.0, 2.0)],
    "xtc": [(0.4, 0.05), (1.0, 0.3), (0.4, 0.0)],
    "skew": [(-1.0,), (1.0,)],
}


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    assert "norm_linear" in bind("cuda").native, "the extension does not build"


def on_gpu(logits: torch.Tensor, params: list[SampleParams]) -> torch.Tensor:
    return OPS["sample"].impls["cuda"](logits.to(DEVICE), params)


def random_rules(picks: np.random.Generator) -> tuple[Rule, ...]:
    names = picks.choice(list(CHOICES), picks.integers(0, 5), replace=False)
    return tuple(Rule(name, *CHOICES[name][picks.integers(len(CHOICES[name]))]) for name in names)


def random_params(picks: np.random.Generator, size: int) -> SampleParams:
    """Rules in any order, nine shifted ids, a tenth of the tokens excluded, every fifth spared by XTC."""
    ids = torch.from_numpy(picks.choice(size, min(size, 9), replace=False))
    shift = torch.tensor([-math.inf, 5, -3, 2, 2, 1, 0, -1, 9])[: len(ids)]
    allowed = np.flatnonzero(picks.random(size) < 0.9)
    mask = bits([*allowed.tolist(), size - 1], size)
    return SampleParams(random_rules(picks), picks.random(), None, (ids, shift), mask, torch.arange(0, size, 5))


def holds(ids: torch.Tensor, probs: torch.Tensor, token: int, p: SampleParams) -> bool:
    """Whether the share of ``token`` holds the random point, up to EDGE."""
    places = (ids == token).nonzero().flatten().tolist()
    if not places:
        return False
    point = p.point ** math.exp(-next((rule.a for rule in p.rules if rule.stage == "skew"), 0.0))
    edges = [0.0, *probs.cumsum(0).tolist()]
    return edges[places[0]] - EDGE <= point <= edges[places[0] + 1] + EDGE


@pytest.mark.parametrize(
    ("size", "rounds"),
    [(1, 2), (2, 2), (63, 6), (64, 6), (127, 6), (300, 8), (5000, 12), (20_000, 4), (128_256, 1), (262_144, 1)],
)
def test_any_rules_draw_what_the_reference_draws(size: int, rounds: int) -> None:
    picks, strays = np.random.default_rng(size), []
    for index in range(rounds):
        logits = torch.stack([random_logits(index * 32 + row, size, picks.choice([0.5, 3.0, 6.0])) for row in range(32)])
        params = [random_params(picks, size) for _ in range(32)]
        drawn = on_gpu(logits, params)
        assert torch.equal(drawn, on_gpu(logits, params)), "two runs differ"
        for row, p in enumerate(params):
            token = int(drawn[row, 0])
            if token == int(cpu.sample(logits[row : row + 1], [p])[0, 0]):
                continue
            ids, probs, _ = distribution(logits[row], p)
            if not holds(ids, probs, token, p) and not holds(*cpu.distribution(logits[row], p), token, p):
                strays.append((p.rules, p.point, token))
    assert len(strays) <= 0.003 * 32 * rounds + (size > 1000), strays


@pytest.mark.parametrize("name", SHAPES)
def test_draws_follow_the_distribution(name: str) -> None:
    """Chi-square over 100,000 draws, as for the CPU kernel."""
    s, logits, count = SHAPES[name], random_logits(7, 60, 1.5), 100_000
    want = expected(logits, s)
    if s.skew:
        edge, edges = 0.0, {}
        for i in sorted(want, key=lambda i: (-want[i], i)):
            edges[i] = min(edge + want[i], 1.0) ** math.exp(s.skew) - min(edge, 1.0) ** math.exp(s.skew)
            edge += want[i]
        want = edges
    p = Sampler(s, width=60).params([], 0)
    points = torch.from_numpy(np.random.default_rng(11).random(count)).to(DEVICE)
    drawn = torch.empty(count, 3, dtype=torch.float64, device=DEVICE)
    for part, at in zip(drawn.chunk(2), points.chunk(2), strict=True):  # a call takes at most 65,535 rows
        rows = upload([p], 60, DEVICE).rows.expand(len(part), -1).contiguous()
        torch.ops.exltui_cuda.sample(logits.to(DEVICE).expand(len(part), -1).contiguous(), rows, at, None, part, None)
    counts = Counter(drawn[:, 0].long().tolist())
    assert set(counts) <= set(want)
    common = [i for i in want if want[i] * count >= 5]
    chi = sum((counts[i] - want[i] * count) ** 2 / (want[i] * count) for i in common)
    freedom = max(len(common) - 1, 1)
    assert chi < freedom + 3.8 * math.sqrt(2 * freedom) + 8


def test_probabilities_are_those_of_the_cpu() -> None:
    logits = random_logits(5, 40_000, 4.0)
    for rules in ((), (Rule("top_k", 50), Rule("adaptive", 0.3)), (Rule("min_p", 0.05), Rule("typical", 0.9)), (Rule("temperature", 2.0),)):
        for point in (0.0, 0.3, 0.9):
            p = SampleParams(rules, point)
            assert on_gpu(logits[None], [p])[0].tolist() == pytest.approx(cpu.sample(logits[None], [p])[0].tolist(), rel=1e-4)


def test_ties_go_to_the_lowest_id() -> None:
    for size in (1000, 150_000):
        logits = torch.zeros(1, size)
        for rules, point, want in (
            ((Rule("top_k", 1),), 0.0, 0),
            ((Rule("top_k", 3),), 0.5, 1),
            ((Rule("top_k", 3),), 0.99, 2),
            ((), 0.25, size // 4),
            ((Rule("top_p", 0.5),), 0.999, size // 2 - 1 - size // 2000),
        ):
            token = int(on_gpu(logits, [SampleParams(rules, point)])[0, 0])
            assert abs(token - want) <= (0 if len(rules) and rules[0].stage == "top_k" else 1), (size, rules)


def test_what_cannot_be_drawn_is_said() -> None:
    logits = torch.randn(3, 500)
    p = SampleParams((), 0.5, mask=torch.zeros(16, dtype=torch.int32))
    assert on_gpu(logits, [SampleParams(), p, SampleParams()])[1].tolist() == [EXCLUDED, 0.0, 0.0]
    for bad in (math.nan, math.inf):
        logits[1, 77] = bad
        with pytest.raises(ModelError, match="finite"):
            on_gpu(logits, [SampleParams()] * 3)
        assert int(on_gpu(logits[:1], [SampleParams((Rule("top_k", 1),))])[0, 0]) == int(logits[0].argmax())  # no trace is left
    with pytest.raises(ShapeError):
        on_gpu(logits, [SampleParams()])


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    logits = torch.randn(2, 500)
    logits[:, 400:] = 50.0
    for p in (SampleParams((Rule("top_k", 1),), width=400), SampleParams((), 0.9999, width=400)):
        assert bool((on_gpu(logits, [p, p])[:, 0] < 400).all())


@pytest.mark.parametrize("decay", [0, 7])
@pytest.mark.parametrize("window", [-1, 0, 1, 10, 100])
@pytest.mark.parametrize(("repetition", "presence", "frequency"), [(1.3, 0.0, 0.0), (0.8, 0.5, 0.1), (1.0, 0.0, -0.2)])
def test_penalties_are_those_of_the_formulas(window: int, decay: int, repetition: float, presence: float, frequency: float) -> None:
    """From lists that the host makes, and from the history that the kernel keeps, step after step."""
    s = off(
        token_repetition_penalty=repetition,
        token_presence_penalty=presence,
        token_frequency_penalty=frequency,
        token_repetition_range=window,
        token_repetition_decay=decay,
        temperature=0.0,
    )
    picks = np.random.default_rng(3)
    tokens = picks.integers(0, 70, 40).tolist()
    given = upload([SampleParams((Rule("top_k", 1),))], 70, DEVICE, [Tally(tokens, 30, window, decay, repetition, presence, frequency)])
    drawn = torch.empty(1, 3, dtype=torch.float64, device=DEVICE)
    sampler = Sampler(s, width=70)
    for step in range(30):
        logits = random_logits(step, 70)
        length = torch.tensor([len(tokens)], dtype=torch.int32, device=DEVICE)
        torch.ops.exltui_cuda.sample(logits.to(DEVICE)[None], given.rows, given.points, length, drawn, None)
        want = penalised(logits.tolist(), s, tokens)
        token = int(drawn[0, 0])
        assert want[token] == pytest.approx(max(want), abs=1e-5)
        p = sampler.params(tokens, len(tokens))
        assert int(on_gpu(logits[None], [p])[0, 0]) == int(sample(logits[None], [p])[0, 0])
        tokens.append(token)


def test_a_captured_draw_reads_new_points() -> None:
    logits = random_logits(1, 10_000, 2.0).to(DEVICE)[None]
    given = upload([SampleParams((Rule("top_p", 0.9),), 0.1)], 10_000, DEVICE)
    drawn, tokens = torch.empty(1, 3, dtype=torch.float64, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        torch.ops.exltui_cuda.sample(logits, given.rows, given.points, None, drawn, tokens)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            torch.ops.exltui_cuda.sample(logits, given.rows, given.points, None, drawn, tokens)
    for point in (0.05, 0.5, 0.95):
        given.points.fill_(point)
        graph.replay()
        want = int(cpu.sample(logits.cpu(), [SampleParams((Rule("top_p", 0.9),), point)])[0, 0])
        assert int(tokens[0]) == int(drawn[0, 0]) == want
