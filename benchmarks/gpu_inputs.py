"""What the GPU benchmarks share: the extension, random inputs, and times of graph replays."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from exltui.engine.model.weights.dense import DenseWeight  # noqa: E402  (the checkout comes first on the path)
from exltui.engine.ops import build, cuda  # noqa: E402
from exltui.engine.ops.cuda_layout import DENSE_BITS, GPTQ_TAG, Packed, Panel  # noqa: E402
from exltui.engine.ops.types import PAGE, Batch, CacheLayer  # noqa: E402

DEVICE = torch.device("cuda")


def load() -> None:
    began = time.perf_counter()
    build.load("cuda", lambda done, total: print(f"building: {done} of {total} files, {time.perf_counter() - began:.0f} s", flush=True))
    cuda.enter()
    print(f"extension ready after {time.perf_counter() - began:.1f} s on {torch.cuda.get_device_name()}, torch {torch.__version__}")


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
