"""Builds, checks and times every CUDA kernel in one command; needs a GPU and a CUDA compiler.

    python benchmarks/gpu.py [--check] [--time] [--step] [--json FILE]

Checks compare with float64 on fresh random inputs, poison what is not written, and want two runs bit-equal. Times are medians of
graph replays; each graph calls the op 20 times or more on weights that rotate over five times the second-level cache, and the last
column is the percent of a large device-to-device copy measured in the same run (bytes read plus bytes written).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from exltui.engine.model.weights.dense import DenseWeight  # noqa: E402  (the checkout comes first on the path)
from exltui.engine.ops import build, cuda, cuda_sample, references  # noqa: E402
from exltui.engine.ops.cuda_layout import DENSE_BITS, GPTQ_TAG, Packed, Panel  # noqa: E402
from exltui.engine.ops.rope import RopeSpec, tables  # noqa: E402
from exltui.engine.ops.sample import Rule, SampleParams, Tally  # noqa: E402
from exltui.engine.ops.types import PAGE, Attention, Batch, CacheLayer, Heads, Norm  # noqa: E402

DEVICE = torch.device("cuda")
failures: list[str] = []


def load() -> None:
    began = time.perf_counter()
    build.load("cuda", lambda done, total: print(f"building: {done} of {total} files, {time.perf_counter() - began:.0f} s", flush=True))
    cuda.enter()
    print(f"extension ready after {time.perf_counter() - began:.1f} s on {torch.cuda.get_device_name()}, torch {torch.__version__}")


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def random_words(count: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32, device=DEVICE)


def random_weight(n: int, widths: list[tuple[int, int]], group: int = 128, like: Packed | None = None) -> Any:
    """A weight of random valid content in kernel order: ``widths`` lists (tag, stored rows). ``like``: take its order of x."""
    panels, first, k = [], 0, sum(rows for _, rows in widths)
    if widths[0][0] == DENSE_BITS:
        return DenseWeight((torch.randn(n, k, device=DEVICE) * k**-0.5).half())
    for tag, rows in widths:
        tiles, columns, bits = rows // 32, n // 32, 4 if tag == GPTQ_TAG else tag
        size = min(group, rows) // 32
        while tiles % size or size & (size - 1):
            size -= 1
        row = 8 if tag == GPTQ_TAG else 4
        scales = (torch.rand((columns, tiles // size, 8, row), device=DEVICE) + 0.5) * (2.0 / (1 << bits)) * k**-0.5
        if tag == GPTQ_TAG:
            scales[..., 4:] = torch.randint(-8, 8, scales[..., 4:].shape, device=DEVICE)
        words = random_words(tiles * columns * bits * 32)
        panels.append(Panel(tag, words, scales.half(), tiles, columns, size.bit_length() - 1, first))
        first += tiles
    order = torch.randperm(k, device=DEVICE).to(torch.int16) if like is None else like.order
    return Packed(n, k, tuple(panels), order)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def nmse(y: torch.Tensor, reference: torch.Tensor) -> float:
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    return float((y.double() - reference).square().sum() / reference.square().sum().clamp_min(1e-30))


def report(name: str, error: float, bound: float, equal: bool = True) -> None:
    good = error <= bound and equal
    if not good:
        failures.append(name)
    print(f"{'ok  ' if good else 'FAIL'} {name:64s} nmse {error:.2e} (bound {bound:.0e}){'' if equal else '  NOT BIT-EQUAL'}")


def check_linear() -> None:
    cases = {
        "2": [(2, 512)],
        "3": [(3, 512)],
        "4": [(4, 512)],
        "5": [(5, 512)],
        "6": [(6, 512)],
        "8": [(8, 512)],
        "gptq": [(GPTQ_TAG, 512)],
        "f16": [(DENSE_BITS, 512)],
        "8/6/5/4/3/2": [(8, 32), (6, 64), (5, 96), (4, 128), (3, 96), (2, 96)],
        "4 big": [(4, 4096)],
        "4 long": [(4, 14336)],
        "5/4 big": [(5, 1024), (4, 3072)],
        "f16 ragged": [(DENSE_BITS, 544)],
    }
    for label, widths in cases.items():
        k = sum(rows for _, rows in widths)
        worst, equal = 0.0, True
        for n in (32, 96, 1056) if k < 4096 else (6144,) if k == 4096 else (4096,):
            packed = random_weight(n, widths)
            w = packed.dense().double()
            for t in (1, 2, 5, 7, 8, 9, 16):
                x = torch.randn(t, k, device=DEVICE).half()
                norm = Norm(torch.rand(k, device=DEVICE) + 0.5, 1e-5)
                y = cuda._product(x, norm, (packed,))
                equal &= torch.equal(y, cuda._product(x, norm, (packed,)))
                worst = max(worst, nmse(y, references.normalise(x.double(), norm, "").double() @ w.T))
                residual = torch.randn(t, n, device=DEVICE).half()
                y = cuda._product(x, None, (packed,), residual=residual, scale=0.5)
                worst = max(worst, nmse(y, residual.double() + 0.5 * (x.double() @ w.T)))
                y = cuda._product(x, None, (packed,), scale=0.7, head=3.0)
                worst = max(worst, nmse(y, 3 * torch.tanh(0.7 * (x.double() @ w.T) / 3)))
        report(f"linear_small {label}", worst, 1e-6, equal)
    check_fused()


def check_fused() -> None:
    k = 1024
    x = torch.randn(3, k, device=DEVICE).half()
    q = random_weight(512, [(4, k)])
    kv = random_weight(128, [(5, 256), (3, 768)], like=q)
    for rows in (x, x[:1]):
        y = cuda._product(rows, None, (q, kv, kv))
        reference = torch.cat([rows.double() @ w.dense().double().T for w in (q, kv, kv)], dim=-1)
        report(f"linear_small q, k, v side by side, t {len(rows)}", nmse(y, reference), 1e-6)
    up = random_weight(512, [(4, k)], like=q)
    gelu = torch.nn.functional.gelu
    for activation, function in (("silu", torch.nn.functional.silu), ("gelu_tanh", partial(gelu, approximate="tanh")), ("gelu", gelu)):
        y = cuda._product(x, None, (q, up), activation=activation)
        g, u = (x.double() @ w.dense().double().T for w in (q, up))
        report(f"linear_small gate and up, {activation}", nmse(y, function(g) * u), 1e-6)


def check_dequantise() -> None:
    for widths in ([(8, 32), (6, 64), (5, 96), (4, 128), (3, 96), (2, 96)], [(GPTQ_TAG, 512)]):
        weight = random_weight(1056, widths)
        ((order, slab),) = cuda._slabs((weight,))
        found = torch.empty_like(slab)
        found[:, order.long() & 0xFFFF] = slab
        report(f"dequantise, values that differ, {widths[0][0]}", float((found != weight.dense()).sum()), 0)
    weights = [random_weight(512, [(4, 1024)]) for _ in range(2)]
    x = torch.randn(100, 1024, device=DEVICE).half()
    expected = torch.cat([x.double() @ w.dense().double().T for w in weights], dim=-1)
    report("dequantise, cuBLAS, two orders", nmse(cuda._wide(x, None, weights), expected), 1e-6)


def make_batch(lengths: list[int], queries: list[int], width: int) -> Batch:
    starts, positions, slots = [0], [], []
    table = torch.randperm(len(lengths) * width).view(len(lengths), width).to(torch.int32)
    for i, (length, rows) in enumerate(zip(lengths, queries, strict=True)):
        starts.append(starts[-1] + rows)
        for p in range(length - rows, length):
            positions.append(p)
            slots.append(int(table[i, p // PAGE]) * PAGE + p % PAGE)

    def put(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    return Batch(put(positions), put(slots), put(starts), put(lengths), table.to(DEVICE))


def make_cache(pages: int, g: int, d: int, k_bits: int, v_bits: int) -> CacheLayer:
    """Pages full of NaN (codes 255 and NaN scales)."""

    def store(bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if bits == 16:
            return torch.full((pages, PAGE, g, d), float("nan"), dtype=torch.float16, device=DEVICE), None
        scales = torch.full((pages, PAGE, g, d // 32), float("nan"), dtype=torch.float16, device=DEVICE)
        return torch.full((pages, PAGE, g, d * bits // 8), 255, dtype=torch.uint8, device=DEVICE), scales

    (k, k_scale), (v, v_scale) = store(k_bits), store(v_bits)
    return CacheLayer(k, v, k_scale, v_scale, k_bits, v_bits)


def same_cache(a: CacheLayer, b: CacheLayer) -> int:
    """Elements that differ, bit for bit."""
    different = 0
    for x, y in ((a.k, b.k), (a.v, b.v), (a.k_scale, b.k_scale), (a.v_scale, b.v_scale)):
        if x is not None and y is not None:
            view = torch.int16 if x.dtype == torch.float16 else torch.uint8
            different += int((x.view(view) != y.view(view)).sum())
    return different


def check_attention() -> None:
    for d, h, g, bits in (
        (128, 32, 8, (16, 16)),
        (128, 32, 8, (8, 8)),
        (128, 32, 8, (8, 4)),
        (128, 32, 8, (4, 4)),
        (64, 9, 3, (16, 16)),
        (64, 9, 3, (4, 4)),
        (256, 16, 8, (16, 16)),
        (256, 16, 8, (8, 4)),
        (128, 40, 2, (16, 16)),
    ):
        lengths = [1, 15, 17, 255, 256, 257, 1000, 2300]
        layer = make_cache(len(lengths) * 9, g, d, *bits)
        twin = make_cache(len(lengths) * 9, g, d, *bits)
        heads = Heads(h, g, d, *(Norm(torch.rand(d, device=DEVICE) + 0.5, 1e-6) for _ in range(2)))
        rope = tables(RopeSpec(10000.0, d), 4096, DEVICE)
        whole = make_batch(lengths, lengths, 9)
        qkv = torch.randn(sum(lengths), (h + 2 * g) * d, device=DEVICE).half()
        q = cuda.rope_store(qkv, rope, whole, layer, heads)
        expected = references.rope_store(qkv, rope, whole, twin, heads)
        name = f"d {d} h {h} g {g} cache {bits[0]}/{bits[1]}"
        report(f"rope_store q, {name}", nmse(q, expected.double()), 1e-6)
        # fp32 sums in another order may round a stored half or a code differently: a few in a million.
        differ = same_cache(layer, twin) / (2 * sum(lengths) * g * d)
        report(f"rope_store cache: share that differs, {name}", differ, 2e-3)
        rows = [1, 2, 1, 3, 1, 1, 4, 1]
        step = Batch(whole.positions, whole.slots, *_last_rows(whole, lengths, rows))
        take = torch.cat([torch.arange(e - r, e) for e, r in zip(whole.query_start[1:].tolist(), rows, strict=True)]).to(DEVICE)
        step = Batch(whole.positions[take], whole.slots[take], step.query_start, step.lengths, step.page_table)
        for attention in (Attention(d**-0.5), Attention(d**-0.5, 20.0), Attention(d**-0.5, 0.0, 100)):
            y = cuda.attend(q[take], layer, step, attention)
            equal = torch.equal(y, cuda.attend(q[take], layer, step, attention))
            expected = references.attend(q[take].float(), layer, step, attention).double()
            label = f"attend decode, {name}, cap {attention.softcap:.0f} window {attention.window}"
            report(label, nmse(y, expected), 1e-6 if bits == (16, 16) else 2e-6, equal)
            if attention.softcap == 0:
                report(
                    label.replace("decode", "prefill"),
                    nmse(cuda.attend(q, layer, whole, attention), references.attend(q.float(), layer, whole, attention).double()),
                    2e-6,
                )


def _last_rows(whole: Batch, lengths: list[int], rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    starts = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    return starts, whole.lengths, whole.page_table


def check_rows() -> None:
    x = torch.randn(37, 1032, device=DEVICE).half()
    weight, bias = torch.randn(1032, device=DEVICE), torch.randn(1032, device=DEVICE)
    order = torch.randperm(1032, device=DEVICE).to(torch.int16)
    for norm in (Norm(weight, 1e-5), Norm(weight, 1e-5, bias, "layer"), Norm(weight, 1e-5, None, "rms", 1.0)):
        expected = references.normalise(x.double(), norm, "").double()[:, order.long()]
        report(f"norm_rows {norm.kind} {norm.offset}", nmse(cuda._norm_rows(x, norm, order), expected), 1e-6)
    up = torch.randn_like(x)
    y = torch.ops.exltui_cuda.gate_up(torch.cat((x, up), dim=1), 1, False)
    report("gate_up", nmse(y, torch.nn.functional.silu(x.double()) * up.double()), 1e-6)
    tokens = torch.randint(0, 37, (5,), device=DEVICE, dtype=torch.int32)
    report("embed", nmse(cuda.embed(tokens, x, 2.0, torch.float16), x[tokens.long()].double() * 2), 1e-7)


def check() -> None:
    torch.manual_seed(time.time_ns() % 2**31)
    torch.use_deterministic_algorithms(True, warn_only=True)  # also fills new tensors with NaN, so an unwritten output shows
    with torch.inference_mode():
        check_rows()
        check_dequantise()
        check_linear()
        check_attention()
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(False)


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def time_graph(calls: list, repeats: int = 15) -> float:
    """Median microseconds of one call: ``calls`` are captured in one graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        times = []
        for i in range(repeats + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 3:
                times.append(begin.elapsed_time(end))
    return median(times) * 1000 / len(calls)


@dataclass
class Row:
    op: str
    shape: str
    us: float
    nbytes: int


def copy_rate() -> float:
    """GB/s, bytes read plus bytes written, of a kernel that copies a gigabyte."""
    source = torch.randn(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    us = time_graph([lambda: torch.mul(source, 1.0, out=target)] * 4)
    return 2 * source.numel() * 4 / us / 1e3


def rotations(nbytes: int) -> int:
    return max(2, -(-5 * torch.cuda.get_device_properties(0).L2_cache_size // max(nbytes, 1)))


def time_linear(
    rows: list[Row], label: str, shapes: list[tuple[int, list[tuple[int, int]]]], tokens: tuple[int, ...], **options: Any
) -> None:
    """``shapes``: (n, widths) of each fused weight."""
    k = sum(r for _, r in shapes[0][1])

    def make() -> tuple[Any, ...]:
        first = random_weight(*shapes[0])
        like = first if isinstance(first, Packed) else None
        return (first, *(random_weight(n, widths, like=like) for n, widths in shapes[1:]))

    first = make()
    nbytes = sum(w.nbytes for w in first)
    copies = [first, *(make() for _ in range(min(rotations(nbytes), 40) - 1))]
    for t in tokens:
        x = torch.randn(t, k, device=DEVICE).half()
        extra = dict(options)
        if extra.pop("add", False):
            extra["residual"] = torch.randn(t, first[0].shape[0], device=DEVICE).half()
        norm = None if "residual" in extra else Norm(torch.rand(k, device=DEVICE), 1e-5)
        calls = [partial(cuda._product, x, norm, w, **extra) for w in copies * -(-20 // len(copies))]
        rows.append(Row(label, f"t {t}", time_graph(calls), nbytes))


def time_attention(rows: list[Row]) -> None:
    h, g, d = 32, 8, 128
    for length in (128, 4096, 16384):
        for bits in ((16, 16), (8, 8), (8, 4), (4, 4)):
            per_token = g * (d * sum(bits) // 8 + sum(d // 32 * 2 for b in bits if b != 16))
            nbytes = per_token * length
            width = -(-length // PAGE)
            layers = []
            for _ in range(min(rotations(nbytes), 24)):
                layer = make_cache(width, g, d, *bits)
                for store in (layer.k, layer.v):
                    if store.dtype == torch.uint8:
                        store.random_(0, 256)
                    else:
                        store.normal_()
                for scale in (layer.k_scale, layer.v_scale):
                    if scale is not None:
                        scale.uniform_(0.01, 0.1)
                layers.append(layer)
            batch = make_batch([length], [1], width)
            q = torch.randn(1, h, d, device=DEVICE).half()
            calls = [partial(cuda.attend, q, layer, batch, Attention(d**-0.5)) for layer in layers * -(-20 // len(layers))]
            us = time_graph(calls)
            rows.append(Row(f"attend {bits[0]}/{bits[1]}", f"context {length}", us, nbytes))


def time_small_rows(rows: list[Row]) -> None:
    h, g, d = 32, 8, 128
    qkv = torch.randn(1, (h + 2 * g) * d, device=DEVICE).half()
    rope, batch = tables(RopeSpec(10000.0, d), 4096, DEVICE), make_batch([100], [1], 1)
    for bits in ((16, 16), (4, 4)):
        layer = make_cache(1, g, d, *bits)
        us = time_graph([lambda c=layer: cuda.rope_store(qkv, rope, batch, c, Heads(h, g, d))] * 20)
        rows.append(Row(f"rope_store {bits[0]}/{bits[1]}", "t 1", us, qkv.numel() * 4))
    table, tokens = torch.randn(32000, 4096, device=DEVICE).half(), torch.tensor([77], dtype=torch.int32, device=DEVICE)
    rows.append(Row("embed", "t 1", time_graph([lambda: cuda.embed(tokens, table, 1.0, torch.float16)] * 20), 16384))


def time_many(rows: list[Row]) -> None:
    """Where dequantise + cuBLAS overtakes two or more passes of linear_small."""
    copies = [random_weight(28672, [(4, 4096)]) for _ in range(5)]
    for t in (8, 16, 32, 48, 64):
        x = torch.randn(t, 4096, device=DEVICE).half()
        for label, function in (("linear_small", cuda._product), ("dequantise, cuBLAS", cuda._wide)):
            us = time_graph([partial(function, x, None, (w,)) for w in copies * 4])
            rows.append(Row(f"gate+up size: {label}", f"t {t}", us, copies[0].nbytes))
    x = torch.randn(2048, 4096, device=DEVICE).half()
    ((_, slab),) = cuda._slabs(copies[:1])
    rows.append(
        Row("dequantise 28672 x 4096", "4 bits", time_graph([partial(list, cuda._slabs((w,))) for w in copies * 2]), slab.numel() * 2)
    )
    rows.append(Row("cuBLAS 28672 x 4096", "t 2048", time_graph([partial(torch.mm, x, slab.t())] * 4), slab.numel() * 2))


DRAWS = {
    "greedy": (Rule("top_k", 1),),
    "defaults": (Rule("temperature", 0.8), Rule("top_k", 50), Rule("top_p", 0.9), Rule("min_p", 0.05)),
    "top-p of all": (Rule("top_p", 0.9),),
    "uncut": (),
}


def time_sample(rows: list[Row]) -> None:
    """The bytes of the logits count; with "4,096 seen" the kernel tallies a history of so many tokens."""
    for v in (32_000, 128_256, 262_144):
        for r in (1, 32):
            logits, drawn = torch.randn(r, v, device=DEVICE) * 3, torch.empty(r, 3, dtype=torch.float64, device=DEVICE)
            lengths = torch.full((r,), 4096, dtype=torch.int32, device=DEVICE)
            for name, rules in (*DRAWS.items(), ("defaults, 4,096 seen", DRAWS["defaults"])):
                tally = Tally(torch.randint(0, v, (4096,)).tolist(), 1, -1, 0, 1.1, 0.0, 0.0) if "seen" in name else None
                given = cuda_sample.upload([SampleParams(rules, 0.37)] * r, v, DEVICE, [tally] * r)
                call = partial(torch.ops.exltui_cuda.sample, logits, given.rows, given.points, lengths, drawn, None)
                rows.append(Row(f"sample, {name}", f"{r} of {v:,}", time_graph([call] * 20), logits.numel() * 4))


def time_all() -> list[Row]:
    rows: list[Row] = []
    with torch.inference_mode():
        for bits in (2, 3, 4, 5, 6, 8, GPTQ_TAG, DENSE_BITS):
            name = {GPTQ_TAG: "gptq", DENSE_BITS: "f16"}.get(bits, str(bits))
            time_linear(rows, f"gate_up 4096 -> 2 x 14336, {name}", [(14336, [(bits, 4096)])] * 2, (1, 8), activation="silu")
        qkv = [(4096, [(4, 4096)]), (1024, [(4, 4096)]), (1024, [(4, 4096)])]
        time_linear(rows, "qkv 4096 -> 6144, 4", qkv, (1, 8))
        time_linear(rows, "o 4096 -> 4096, 4", [(4096, [(4, 4096)])], (1, 8), add=True)
        time_linear(rows, "down 14336 -> 4096, 4", [(4096, [(4, 14336)])], (1, 8), add=True)
        time_linear(rows, "gate_up, 5/4 mixed", [(14336, [(5, 1024), (4, 3072)])] * 2, (1, 8), activation="silu")
        time_linear(rows, "head 4096 -> 128256, 6", [(128256, [(6, 4096)])], (1, 8), head=0.0)
        time_attention(rows)
        time_small_rows(rows)
        time_sample(rows)
        time_many(rows)
    return rows


# ── a whole step ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    hidden: int
    h: int
    g: int
    d: int
    mlp: int
    vocab: int


LLAMA_8B = Shape("llama-3.1-8b, 4.0 bpw, 6-bit head", 32, 4096, 32, 8, 128, 14336, 128256)
TINY = Shape("tinyllama-1.1b, 4.0 bpw, 6-bit head", 22, 2048, 32, 4, 64, 5632, 32000)


class Step:
    """One decode step of ``shape`` with synthetic weights, from token to token, as the decoder calls the rows."""

    def __init__(self, shape: Shape, b: int, length: int, bits: tuple[int, int]) -> None:
        s = self.shape = shape

        def weight(n: int, k: int, width: int = 4, like: Packed | None = None) -> Packed:
            return random_weight(n, [(width, k)], like=like)

        def norm() -> Norm:
            return Norm(torch.ones(s.hidden, device=DEVICE), 1e-5)

        self.layers = []
        width = -(-(length + 1) // PAGE)
        for _ in range(s.layers):
            q = weight(s.h * s.d, s.hidden)
            k, v = (weight(s.g * s.d, s.hidden, like=q) for _ in range(2))
            gate = weight(s.mlp, s.hidden)
            up = weight(s.mlp, s.hidden, like=gate)
            cache = make_cache(b * width, s.g, s.d, *bits)
            for tensor in (cache.k, cache.v):
                tensor.normal_() if tensor.dtype == torch.float16 else tensor.random_(0, 256)
            for tensor in (cache.k_scale, cache.v_scale):
                if tensor is not None:
                    tensor.uniform_(0.01, 0.1)
            self.layers.append((norm(), (q, k, v), weight(s.hidden, s.h * s.d), norm(), (gate, up), weight(s.hidden, s.mlp), cache))
        self.table = torch.randn(s.vocab, s.hidden, device=DEVICE).half()
        self.norm, self.head = norm(), weight(s.vocab, s.hidden, 6)
        self.heads, self.rope = Heads(s.h, s.g, s.d), tables(RopeSpec(500000.0, s.d), length + 256, DEVICE)
        self.batch = make_batch([length + 1] * b, [1] * b, width)
        self.tokens = torch.zeros(b, dtype=torch.int32, device=DEVICE)
        weights = [w for layer in self.layers for w in (*layer[1], layer[2], *layer[4], layer[5])]
        self.nbytes = sum(w.nbytes for w in [*weights, self.head])

    def run(self) -> None:
        s, attention = self.shape, Attention(self.shape.d**-0.5)
        x = cuda.embed(self.tokens, self.table, 1.0, torch.float16)
        for attention_norm, qkv, o, mlp_norm, gate_up, down, cache in self.layers:
            y = cuda.norm_linear(x, attention_norm, qkv)
            q = cuda.rope_store(y, self.rope, self.batch, cache, self.heads)
            y = cuda.attend(q, cache, self.batch, attention)
            x = cuda.linear_add(y, o, x)
            y = cuda.norm_gate_up(x, mlp_norm, gate_up, "silu")
            x = cuda.linear_add(y, down, x)
        logits = cuda.norm_head(x, self.norm, self.head)
        self.tokens.copy_(logits[:, : s.vocab].argmax(-1))


def time_steps(cases: list[tuple[Shape, int, int, tuple[int, int]]]) -> list[Row]:
    rows = []
    for shape, b, length, bits in cases:
        with torch.inference_mode():
            step = Step(shape, b, length, bits)
            us = time_graph([step.run])
        rows.append(Row(f"step {shape.name}", f"batch {b} context {length} cache {bits[0]}/{bits[1]}", us, step.nbytes))
        print(
            f"{rows[-1].op}  {rows[-1].shape}: {us / 1000:.3f} ms, {b * 1e6 / us:.0f} tokens/s, weights {step.nbytes / us / 1e3:.0f} GB/s",
            flush=True,
        )
        del step
    return rows


def print_table(rows: list[Row], rate: float) -> None:
    print(f"\ncopy in this run: {rate:.0f} GB/s")
    for row in rows:
        speed = row.nbytes / row.us / 1e3
        print(f"{row.op:40s} {row.shape:34s} {row.us:9.2f} us {speed:7.0f} GB/s {100 * speed / rate:5.1f} %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("check", "time", "step"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    everything = not (options.check or options.time or options.step)
    load()
    rows: list[Row] = []
    if options.check or everything:
        check()
    rate = copy_rate()
    if options.time or everything:
        rows += time_all()
        print_table(rows, rate)
    if options.step or everything:
        full, packed4 = (16, 16), (4, 4)
        cases = [(LLAMA_8B, 1, n, full) for n in (128, 4096, 16384)] + [(LLAMA_8B, 1, n, packed4) for n in (4096, 16384)]
        cases += [(LLAMA_8B, 8, 128, full), (LLAMA_8B, 8, 4096, full), (TINY, 1, 4096, full)]
        rows += time_steps(cases)
    if options.json:
        options.json.write_text(json.dumps({"copy_gb_s": rate, "rows": [vars(row) for row in rows]}, indent=1))
    print(f"{len(failures)} failures: {failures}" if failures else "no failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
