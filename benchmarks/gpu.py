"""Builds, checks and times every CUDA kernel in one command; needs a GPU and a CUDA compiler.

    python benchmarks/gpu.py [--check] [--small] [--time] [--step] [--json FILE]

Checks compare with float64 on fresh random inputs, poison what is not written, and want two runs bit-equal. Times are medians of
graph replays; each graph calls the op 20 times or more on weights that rotate over five times the second-level cache, and the last
column is the percent of a large device-to-device copy measured in the same run (bytes read plus bytes written). --small: fewer and
smaller checks, for compute-sanitizer (scripts/sanitize_cuda.sh).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_inputs import DEVICE, Row, copy_rate, load, make_batch, make_cache, random_weight, rotations, time_graph
from gpu_step import CASES, time_steps

from exltui.engine.ops import cuda, cuda_sample, cuda_slabs, references
from exltui.engine.ops.cuda_layout import DENSE_BITS, GPTQ_TAG, Packed
from exltui.engine.ops.rope import RopeSpec, tables
from exltui.engine.ops.sample import Rule, SampleParams, Tally
from exltui.engine.ops.types import PAGE, Attention, Batch, CacheLayer, Heads, Norm

failures: list[str] = []


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


def check_linear(small: bool = False) -> None:
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
        if small and k >= 4096:
            continue
        worst, equal = 0.0, True
        for n in (32, 96) if small else (32, 96, 1056) if k < 4096 else (6144,) if k == 4096 else (4096,):
            packed = random_weight(n, widths)
            w = packed.dense().double()
            for t in (1, 2, 8, 24) if small else (1, 2, 5, 7, 8, 9, 16, 17, 24, 32):
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


def check_dequantise(small: bool = False) -> None:
    for widths in ([(8, 32), (6, 64), (5, 96), (4, 128), (3, 96), (2, 96)], [(GPTQ_TAG, 512)]):
        weight = random_weight(1056, widths)
        ((order, slab),) = cuda_slabs.slabs((weight,))
        found = torch.empty_like(slab)
        found[:, order.long() & 0xFFFF] = slab
        report(f"dequantise, values that differ, {widths[0][0]}", float((found != weight.dense()).sum()), 0)
    if small:  # under racecheck cuBLAS's product faults on an H200
        return
    weights = [random_weight(512, [(4, 1024)]) for _ in range(2)]
    x = torch.randn(100, 1024, device=DEVICE).half()
    expected = torch.cat([x.double() @ w.dense().double().T for w in weights], dim=-1)
    report("dequantise, cuBLAS, two orders", nmse(cuda._wide(x, None, weights), expected), 1e-6)


def same_cache(a: CacheLayer, b: CacheLayer) -> int:
    """Elements that differ, bit for bit."""
    different = 0
    for x, y in ((a.k, b.k), (a.v, b.v), (a.k_scale, b.k_scale), (a.v_scale, b.v_scale)):
        if x is not None and y is not None:
            view = torch.int16 if x.dtype == torch.float16 else torch.uint8
            different += int((x.view(view) != y.view(view)).sum())
    return different


def check_attention(small: bool = False) -> None:
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
        lengths = [1, 15, 17, 100, 255, 256, 257, 300] if small else [1, 15, 17, 255, 256, 257, 1000, 2300]
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
        ends, few = whole.query_start[1:].tolist(), [1, 2, 1, 3, 1, 1, 4, 1]
        take = torch.cat([torch.arange(e - r, e) for e, r in zip(ends, few, strict=True)]).to(DEVICE)
        step = Batch(whole.positions[take], whole.slots[take], *_last_rows(whole, lengths, few))
        for attention in (Attention(d**-0.5), Attention(d**-0.5, 20.0), Attention(d**-0.5, 0.0, 100)):
            y = cuda.attend(q[take], layer, step, attention)
            equal = torch.equal(y, cuda.attend(q[take], layer, step, attention))
            expected = references.attend(q[take].float(), layer, step, attention).double()
            label = f"attend decode, {name}, cap {attention.softcap:.0f} window {attention.window}"
            report(label, nmse(y, expected), 1e-6 if bits == (16, 16) else 2e-6, equal)
            for kind, given in (("prefill", [*lengths]), ("continued", [min(length, 70) for length in lengths])):
                rows = torch.cat([torch.arange(e - r, e) for e, r in zip(ends, given, strict=True)]).to(DEVICE)
                batch = Batch(whole.positions[rows], whole.slots[rows], *_last_rows(whole, lengths, given))
                y = cuda.attend(q[rows], layer, batch, attention)
                equal = torch.equal(y, cuda.attend(q[rows], layer, batch, attention))
                expected = references.attend(q[rows].float(), layer, batch, attention).double()
                report(label.replace("decode", kind), nmse(y, expected), 2e-6, equal)


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


def check(small: bool) -> None:
    torch.manual_seed(time.time_ns() % 2**31)
    torch.use_deterministic_algorithms(True, warn_only=True)  # also fills new tensors with NaN, so an unwritten output shows
    with torch.inference_mode():
        check_rows()
        check_dequantise(small)
        check_linear(small)
        check_attention(small)
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(False)


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """Where dequantise + cuBLAS overtakes passes over the packed weights."""
    copies = [random_weight(28672, [(4, 4096)]) for _ in range(5)]
    for t in (8, 16, 32, 48, 64):
        x = torch.randn(t, 4096, device=DEVICE).half()
        for label, function in (("linear_small", cuda._product), ("dequantise, cuBLAS", cuda._wide)):
            us = time_graph([partial(function, x, None, (w,)) for w in copies * 4])
            rows.append(Row(f"gate+up size: {label}", f"t {t}", us, copies[0].nbytes))
    x = torch.randn(2048, 4096, device=DEVICE).half()
    ((_, slab),) = cuda_slabs.slabs(copies[:1])
    rows.append(
        Row("dequantise 28672 x 4096", "4 bits", time_graph([partial(list, cuda_slabs.slabs((w,))) for w in copies * 2]), slab.numel() * 2)
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


def print_table(rows: list[Row], rate: float) -> None:
    print(f"\ncopy in this run: {rate:.0f} GB/s")
    for row in rows:
        speed = row.nbytes / row.us / 1e3
        print(f"{row.op:40s} {row.shape:34s} {row.us:9.2f} us {speed:7.0f} GB/s {100 * speed / rate:5.1f} %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("check", "small", "time", "step"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    everything = not (options.check or options.time or options.step)
    load()
    rows: list[Row] = []
    if options.check or everything:
        check(options.small)
    rate = copy_rate()
    if options.time or everything:
        rows += time_all()
        print_table(rows, rate)
    if options.step or everything:
        rows += time_steps(CASES)
    if options.json:
        options.json.write_text(json.dumps({"copy_gb_s": rate, "rows": [vars(row) for row in rows]}, indent=1))
    print(f"{len(failures)} failures: {failures}" if failures else "no failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
