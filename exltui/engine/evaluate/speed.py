"""How fast a loaded model runs: prompts of some lengths, decoding at some contexts and batch sizes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from exltui.engine.model.loading import Model
from exltui.engine.ops.sample import Rule, SampleParams, Seat
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache
from exltui.engine.run.graphs import Flight, Place
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence as Part
from exltui.engine.run.step import Step
from exltui.errors import DeviceError

WARM = 4  # decode steps before the clock starts
GREEDY = SampleParams(rules=(Rule("top_k", 1),))


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. ``nbytes`` is what a decode step must read; 0 for a prompt, which arithmetic bounds."""

    what: str  # "prefill" or "decode"
    tokens: int  # of the prompt, or of the context of each sequence
    batch: int
    milliseconds: float  # of the prompt, or of one step
    tokens_per_second: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int  # timed decode steps of a measurement
    chunk: int  # prompt tokens in one step

    @property
    def longest(self) -> int:
        """Tokens that a sequence must have room for."""
        return max(*self.prompts, 0, *(context + WARM + self.steps + 1 for context in self.contexts))


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a kernel copies on ``device``, read and written ones counted."""
    count = (1 << 28) if device.type == "cuda" else (1 << 25)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    seconds = [_timed(lambda: torch.mul(source, 1.0, out=target), device) for _ in range(7)]
    return 2 * count * 4 / statistics.median(seconds[2:])


def measure(model: Model, bits: tuple[int, int], plan: Plan) -> Iterator[Figure]:
    """The figures of ``plan``, one after the other; combinations whose cache does not fit are left out."""
    for prompt in plan.prompts:
        runner = _runner(model, bits, prompt, 1)
        if runner is not None:
            yield _prefill(runner, prompt, plan.chunk)
    for batch in plan.batches:
        for context in plan.contexts:
            runner = _runner(model, bits, context + WARM + plan.steps + 1, batch)
            if runner is not None:
                yield _decode(runner, context, batch, plan.steps)


def _runner(model: Model, bits: tuple[int, int], tokens: int, batch: int) -> Runner | None:
    """A runner with random keys and values for ``batch`` sequences of ``tokens``; None if they do not fit."""
    try:
        cache = KVCache(model.spec, batch * -(-tokens // PAGE), bits, model.device)
    except DeviceError:
        return None
    for layer in cache.layers:
        for store in (layer.k, layer.v):
            _ = store.random_(0, 256) if store.dtype == torch.uint8 else store.normal_()
        for scale in (layer.k_scale, layer.v_scale):
            if scale is not None:
                scale.fill_(0.01)
    return Runner(model, cache)


def _prefill(runner: Runner, prompt: int, chunk: int) -> Figure:
    model = runner.model
    tokens = torch.randint(0, model.spec.vocab, (prompt,)).tolist()
    pages = range(-(-prompt // PAGE))

    def read() -> None:
        for start in range(0, prompt, chunk):
            part = tokens[start : start + chunk]
            runner.step(Step.build([Part(part, start, pages, "last" if start + chunk >= prompt else "none")], model.device))

    seconds = statistics.median([_timed(read, model.device) for _ in range(4)][1:])
    return Figure("prefill", prompt, 1, seconds * 1e3, prompt / seconds, 0)


def _decode(runner: Runner, context: int, batch: int, steps: int) -> Figure:
    """Greedy decoding as a job does it: every token comes to the host, on a GPU while the step behind it runs."""
    each = -(-(context + WARM + steps + 1) // PAGE)
    pages = [range(i * each, (i + 1) * each) for i in range(batch)]
    times = [time.perf_counter()]
    for _ in _ahead(runner, context, pages, WARM + steps) or _in_turn(runner, context, pages, WARM + steps):
        times.append(time.perf_counter())
    step_seconds = statistics.median(b - a for a, b in itertools.pairwise(times[WARM:]))
    return Figure("decode", context, batch, step_seconds * 1e3, batch / step_seconds, _step_bytes(runner, context, batch))


def _in_turn(runner: Runner, context: int, pages: Sequence[range], steps: int) -> Iterator[list[int]]:
    """The tokens of each step, which go into the next."""
    model, tokens = runner.model, [1] * len(pages)
    for i in range(steps):
        step = Step.build([Part([token], context + i, page) for token, page in zip(tokens, pages, strict=True)], model.device)
        tokens = [int(row[0]) for row in model.ops.sample(runner.step(step), [GREEDY] * len(pages)).tolist()]
        yield tokens


def _ahead(runner: Runner, context: int, pages: Sequence[range], steps: int) -> Iterator[list[int]] | None:
    """The same with the next step launched before the tokens are read; None where that cannot be done."""

    def launch(i: int) -> Flight:
        return runner.launch([Place(None if i else 1, context + i, page, Seat(GREEDY), 0.0) for page in pages])

    def run(flight: Flight) -> Iterator[list[int]]:
        for i in range(steps):
            following = launch(i + 1)
            yield [int(row[0]) for row in flight.read()]
            flight = following

    return run(launch(0)) if runner.launches else None


def _step_bytes(runner: Runner, context: int, batch: int) -> int:
    """Weights once, and the keys and values of every sequence."""
    decoder, cache = runner.model.decoder, runner.cache
    pages = cache.pages + (cache.scratch is not None)
    return sum(weight.nbytes for weight in decoder.weights) + decoder.head.nbytes + int(cache.nbytes / (pages * PAGE) * context * batch)


def _timed(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
