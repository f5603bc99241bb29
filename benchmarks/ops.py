"""Time rows of the op table at the starter model's shapes: microseconds, GB/s, percent of a copy measured in the same run.

    python benchmarks/ops.py [--threads N] [--only ROW] [--reference]

Weights are cycled so that they come from memory, not from a cache, as they do in a step of a model. The median of the repetitions counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from exltui.engine.model.preparation import Preparation
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import OPS, OpSet, bind, cpu
from exltui.engine.ops.types import PAGE, Attention, Batch, CacheLayer, Heads, Norm

HIDDEN, MLP, VOCAB = 576, 1536, 49152
HEADS = Heads(9, 3, 64)
COLD = 256 << 20  # bytes of different weights that are cycled
SECONDS = 0.25  # for each line
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Line:
    op: str
    shape: str
    calls: list[Callable[[], Any]]  # the same call on different weights
    nbytes: int  # that one call moves


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64).to(torch.int32)


def make_weight(kind: str, n: int, k: int) -> Any:
    """Random: ``f16``, ``bf16``, ``q4``, ``q8``, ``gptq`` in groups of 64, or ``exl2-B`` in groups of 64; ``-int8``: activations too."""
    int8, kind = kind.endswith("-int8"), kind.removesuffix("-int8")
    prepare = Preparation(CPU, True, {"q4": 4, "q8": 8}.get(kind), int8)
    if kind in ("f16", "bf16", "q4", "q8"):
        return prepare(DenseWeight(torch.randn(n, k).to(torch.bfloat16 if kind == "bf16" else torch.float16)))
    count = k // 64
    if kind == "gptq":
        scales = torch.rand(count, n).half()
        return prepare(GptqWeight(words(k // 8, n), words(count, n // 8), scales, torch.arange(k, dtype=torch.int32) // 64))
    bits = int(kind.removeprefix("exl2-"))
    pairs = torch.tensor([(bits, g * 2 * bits) for g in range(count)], dtype=torch.int16).flatten()
    scale_max = (torch.rand(count) * 0.01).half()
    perm = torch.randperm(k).to(torch.int32)
    return prepare(Exl2Weight(words(k * bits // 32, n), perm, words(count, n // 8), scale_max, pairs))


def products(ops: OpSet, kind: str, t: int) -> list[Line]:
    norm = Norm(torch.randn(HIDDEN), 1e-5)
    x, wide = torch.randn(t, HIDDEN), torch.randn(t, MLP)

    def line(op: str, sizes: list[tuple[int, int]], arguments: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Line:
        copies = max(1, COLD // sum(make_weight(kind, n, k).nbytes for n, k in sizes))
        sets = [tuple(make_weight(kind, n, k) for n, k in sizes) for _ in range(min(copies, 40))]
        function, moves = getattr(ops, op), OPS[op].moves
        packs = [arguments(weights) for weights in sets]
        shape = f"{kind} t={t} " + "+".join(f"{n}x{k}" for n, k in sizes)
        return Line(op, shape, [lambda a=pack: function(*a) for pack in packs], moves(*packs[0]))

    return [
        line("norm_linear", [(576, HIDDEN), (192, HIDDEN), (192, HIDDEN)], lambda w: (x, norm, w)),
        line("linear_add", [(HIDDEN, HIDDEN)], lambda w: (x, w[0], x)),
        line("norm_gate_up", [(MLP, HIDDEN), (MLP, HIDDEN)], lambda w: (x, norm, w, "silu")),
        line("linear_add", [(HIDDEN, MLP)], lambda w: (wide, w[0], x)),
        *([line("norm_head", [(VOCAB, HIDDEN)], lambda w: (x, norm, w[0]))] if t == 1 else []),
    ]


def attention(ops: OpSet, bits: tuple[int, int], context: int, t: int) -> Line:
    """The last ``t`` tokens of ``context``, over as many layers as 30."""
    pages = -(-context // PAGE)
    positions = torch.arange(context - t, context, dtype=torch.int32)
    table = torch.arange(pages, dtype=torch.int32).view(1, -1)
    batch = Batch(positions, positions, torch.tensor([0, t], dtype=torch.int32), torch.tensor([context], dtype=torch.int32), table)
    qkv = torch.randn(context, (HEADS.h + 2 * HEADS.g) * HEADS.d)
    slots = torch.arange(context, dtype=torch.int32)
    layers = []
    for _ in range(30):
        parts: list[Any] = []
        for width in bits:
            size = (pages, PAGE, HEADS.g, HEADS.d if width == 16 else HEADS.d * width // 8)
            parts.append(torch.zeros(size, dtype=torch.float16 if width == 16 else torch.uint8))
            parts.append(None if width == 16 else torch.zeros(pages, PAGE, HEADS.g, HEADS.d // 32, dtype=torch.float16))
        layer = CacheLayer(parts[0], parts[2], parts[1], parts[3], *bits)
        ops.rope_store(qkv, None, Batch(slots, slots, batch.query_start, batch.lengths, table), layer, HEADS)
        layers.append(layer)
    q = torch.randn(t, HEADS.h, HEADS.d)
    calls = [lambda layer=layer: ops.attend(q, layer, batch, Attention(0.125)) for layer in layers]
    return Line("attend", f"k{bits[0]} v{bits[1]} t={t} context={context}", calls, OPS["attend"].moves(q, layers[0], batch, None))


def time_line(line: Line) -> float:
    """Seconds of one call: the median over rounds through all weights."""
    for call in line.calls[:2]:
        call()
    rounds: list[float] = []
    begin = time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        for call in line.calls:
            call()
        rounds.append((time.perf_counter() - start) / len(line.calls))
        if time.perf_counter() - begin > 8 * SECONDS:
            break
    return statistics.median(rounds)


def copy_rate() -> float:
    """Bytes a second that torch copies, read and written ones counted."""
    source = torch.ones(COLD // 4)
    target = torch.empty_like(source)
    seconds = time_line(Line("copy", "", [lambda: target.copy_(source)], 0))
    return 2 * COLD / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="only groups such as f16, exl2-4, gptq, t=1 or attend")
    parser.add_argument("--reference", action="store_true", help="time the torch references instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ops = bind(CPU, native=not options.reference)
    copy = copy_rate()
    isa = "references" if options.reference else cpu.configure()
    print(f"{isa}, {options.threads} threads, copy {copy / 1e9:.1f} GB/s")
    print(f"{'row':<13} {'shape':<36} {'us':>9} {'GB/s':>7} {'of copy':>8}")
    makers: list[tuple[str, Callable[[], list[Line]]]] = [
        (f"{kind} t={t}", lambda kind=kind, t=t: products(ops, kind, t))
        for kind, rows in (
            ("f16", (1, 8, 256)),
            ("bf16", (1,)),
            ("exl2-4", (1, 8, 256)),
            ("exl2-6", (1,)),
            ("exl2-3", (1,)),
            ("gptq", (1, 256)),
            ("q4", (1,)),
            ("q4-int8", (1, 8, 256)),
            ("q8-int8", (1, 256)),
            ("exl2-4-int8", (1, 256)),
            ("gptq-int8", (1,)),
        )
        for t in rows
    ]
    makers += [
        (f"attend k{bits[0]} v{bits[1]}", lambda bits=bits, c=context, t=t: [attention(ops, bits, c, t)])
        for bits in ((16, 16), (8, 8), (8, 4), (4, 4))
        for context, t in ((512, 1), (4096, 1), (512, 256))
    ]
    for label, make in makers:
        if options.only and options.only not in label:
            continue
        for line in make():
            seconds = time_line(line)
            rate = line.nbytes / seconds
            print(f"{line.op:<13} {line.shape:<36} {seconds * 1e6:>9.1f} {rate / 1e9:>7.1f} {rate / copy:>8.0%}", flush=True)


if __name__ == "__main__":
    main()
