"""Whole decode steps with synthetic weights, as graph replays; part of benchmarks/gpu.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from gpu_inputs import DEVICE, Row, make_batch, make_cache, random_weight, time_graph

from exltui.engine.ops import cuda
from exltui.engine.ops.cuda_layout import Packed
from exltui.engine.ops.rope import RopeSpec, tables
from exltui.engine.ops.types import PAGE, Attention, Heads, Norm


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
    mixed: bool = False  # a quarter of each matrix's k in 5 bits, the rest in 4


LLAMA_8B = Shape("llama-3.1-8b, 4.0 bpw, 6-bit head", 32, 4096, 32, 8, 128, 14336, 128256)
LLAMA_8B_MIXED = replace(LLAMA_8B, name="llama-3.1-8b, 5/4-bit mix, 6-bit head", mixed=True)
TINY = Shape("tinyllama-1.1b, 4.0 bpw, 6-bit head", 22, 2048, 32, 4, 64, 5632, 32000)


class Step:
    """One decode step of ``shape`` with synthetic weights, from token to token, as the decoder calls the rows."""

    def __init__(self, shape: Shape, b: int, length: int, bits: tuple[int, int]) -> None:
        s = self.shape = shape

        def weight(n: int, k: int, width: int = 4, like: Packed | None = None) -> Packed:
            fifth = k // 128 // 4 * 128 if s.mixed and width == 4 else 0
            return random_weight(n, [(5, fifth), (4, k - fifth)] if fifth else [(width, k)], like=like)

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
            down = replace(weight(s.hidden, s.mlp), order=None)  # what comes before it gives its features in the order of its rows
            self.layers.append((norm(), (q, k, v), weight(s.hidden, s.h * s.d), norm(), (gate, up), down, cache))
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


FULL, PACKED_4 = (16, 16), (4, 4)
CASES = [
    *((LLAMA_8B, 1, context, FULL) for context in (128, 4096, 16384)),
    *((LLAMA_8B, 1, context, PACKED_4) for context in (4096, 16384)),
    (LLAMA_8B_MIXED, 1, 4096, FULL),
    *((LLAMA_8B, 8, context, FULL) for context in (128, 4096)),
    (TINY, 1, 4096, FULL),
]


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
