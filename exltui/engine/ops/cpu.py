"""The CPU's kernels in the op table.

Few rows (decoding) run in the native kernels, which read each weight once, packed as it lies in the file. Many rows (a prompt) are
bound by arithmetic, and torch's matrix product over the dense weight is faster. What the kernels do not cover (quantised pages,
activations that are not f32) runs in the references.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exltui import paths
from exltui.engine.ops import references
from exltui.engine.ops.references import expect, read_cache
from exltui.engine.ops.table import register_native
from exltui.engine.ops.types import PAGE, Activation, Attention, Batch, CacheLayer, Heads, Norm, Rope, Weight
from exltui.errors import BuildError

# Rows up to which the native products win over torch's: measured with benchmarks/ops.py on 2 cores with AVX-512 and the starter's
# shapes (f16: 1 row 12x faster, 8 rows 2x, 32 rows even).
FEW_ROWS = 16
ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu": 3}

_native: Any = torch.ops.exltui_cpu  # its operators are looked up at their first call


def enter() -> None:
    """Enter the rows of the extension, which is loaded, in the table."""
    for function in (norm_linear, linear_add, norm_gate_up, norm_head, rope_store, attend):
        register_native("cpu", function.__name__, function)


def configure(threads: int | None = None) -> str:
    """Use ``threads`` threads (torch's own number if None) and the best instruction set that EXLTUI_ISA allows -> its name."""
    cap = paths.environment("EXLTUI_ISA")
    if cap not in ("", "portable", "avx2", "avx512"):
        raise BuildError(f"EXLTUI_ISA is {cap!r}", "say portable, avx2 or avx512, or leave it out")
    wanted = torch.get_num_threads() if threads is None else threads
    return str(_native.configure(cap, max(1, min(wanted, os.cpu_count() or 1))))


def _norm(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float, bool, float]:
    if norm is None:
        return None, None, 0.0, True, 0.0
    return norm.weight, norm.bias, norm.eps, norm.kind == "rms", norm.offset


def _few(x: Tensor) -> bool:
    return x.shape[0] <= FEW_ROWS and x.dtype == torch.float32


def _packed(x: Tensor, weight: Any) -> Tensor:
    """``x`` times one EXL2 or GPTQ weight."""
    if weight.format == "exl2":
        y = _native.linear_exl2(x, weight.q_weight, weight.q_perm, weight.group_table, weight.scales, weight.bias)
    else:
        y = _native.linear_gptq(x, weight.qweight, weight.zeros, weight.scales, weight.g_idx, weight.bias)
    return y


def _normalised(x: Tensor, norm: Norm | None, op: str) -> Tensor:
    return x if norm is None else references.normalise(x, norm, op)


def _linear(x: Tensor, weight: Weight) -> Tensor:
    """Any number of rows of ``x`` f32 times any weight."""
    if _few(x):
        return _packed(x, weight) if weight.format != "dense" else _native.norm_linear(x, *_norm(None), [weight.dense()], [weight.bias])
    return functional.linear(x, weight.dense().float(), weight.bias)


def norm_linear(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> Tensor:
    for weight in weights:
        expect("norm_linear", "k of x", x.shape[-1], weight.shape[1])
    if _few(x) and all(weight.format == "dense" for weight in weights):
        return _native.norm_linear(x, *_norm(norm), [weight.dense() for weight in weights], [weight.bias for weight in weights])
    y = _normalised(x, norm, "norm_linear").float()
    return torch.cat([_linear(y, weight) for weight in weights], dim=-1).to(x.dtype)


def linear_add(x: Tensor, weight: Weight, residual: Tensor, scale: float = 1.0) -> Tensor:
    expect("linear_add", "k of x", x.shape[-1], weight.shape[1])
    expect("linear_add", "n of residual", residual.shape[-1], weight.shape[0])
    expect("linear_add", "t of residual", residual.shape[0], x.shape[0])
    if _few(x) and weight.format == "dense":
        return _native.linear_add(x, weight.dense(), weight.bias, residual, scale)
    return (residual.float() + _linear(x.float(), weight) * scale).to(residual.dtype)


def norm_gate_up(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    for weight in weights:
        expect("norm_gate_up", "k of x", x.shape[-1], weight.shape[1])
    expect("norm_gate_up", "n of gate", weights[0].shape[0], weights[-1].shape[0])
    if _few(x) and len(weights) == 2 and all(weight.format == "dense" for weight in weights):
        gate, up = weights
        return _native.norm_gate_up(x, *_norm(norm), gate.dense(), up.dense(), gate.bias, up.bias, ACTIVATIONS[activation])
    y = _normalised(x, norm, "norm_gate_up").float()
    up_values = _linear(y, weights[-1])
    if len(weights) == 1:
        return references.activate(up_values, activation).to(x.dtype)
    return (references.activate(_linear(y, weights[0]), activation) * up_values).to(x.dtype)


def norm_head(x: Tensor, norm: Norm | None, weight: Weight, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    logits = norm_linear(x.float(), norm, (weight,))
    if scale != 1.0:
        logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits


def rope_store(qkv: Tensor, rope: Rope | None, batch: Batch, layer: CacheLayer, heads: Heads) -> Tensor:
    plain = layer.k_scale is None and layer.v_scale is None
    simple = all(norm is None or (norm.kind == "rms" and norm.bias is None) for norm in (heads.q_norm, heads.k_norm))
    if not plain or not simple or qkv.dtype != torch.float32:
        return references.rope_store(qkv, rope, batch, layer, heads)
    expect("rope_store", "(h+2g)*d of qkv", qkv.shape[-1], (heads.h + 2 * heads.g) * heads.d)
    expect("rope_store", "t of slots", batch.slots.shape[0], qkv.shape[0])
    cos, sin, interleaved = (rope.cos, rope.sin, rope.interleaved) if rope is not None else (None, None, False)
    q_norm, k_norm = heads.q_norm, heads.k_norm
    eps, offset = (q_norm.eps, q_norm.offset) if q_norm is not None else (0.0, 0.0)
    return _native.rope_store(
        qkv, cos, sin, interleaved, batch.positions, batch.slots, layer.k, layer.v,
        None if q_norm is None else q_norm.weight, None if k_norm is None else k_norm.weight, eps, offset, heads.h,
    )  # fmt: skip


def attend(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    plain = layer.k_scale is None and layer.v_scale is None and q.dtype == torch.float32
    if plain and q.shape[0] <= FEW_ROWS * batch.lengths.shape[0]:
        expect("attend", "d of q", q.shape[-1], layer.k.shape[-1])
        expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
        return _native.attend(
            q, layer.k, layer.v, batch.positions, batch.query_start, batch.lengths, batch.page_table,
            attention.scale, attention.softcap, attention.window,
        )  # fmt: skip
    if attention.softcap > 0 or q.dtype != torch.float32:
        return references.attend(q, layer, batch, attention)
    return _attend_many(q, layer, batch, attention)


def _attend_many(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    """A prompt's rows through torch's blocked attention, one sequence at a time."""
    expect("attend", "d of q", q.shape[-1], layer.k.shape[-1] * (1 if layer.k_scale is None else 8 // layer.k_bits))
    expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
    out = torch.empty_like(q)
    starts = batch.query_start.tolist()
    for i, length in enumerate(batch.lengths.tolist()):
        here = slice(starts[i], starts[i + 1])
        pages = batch.page_table[i, : -(-length // PAGE)]
        k = read_cache(layer.k, layer.k_scale, layer.k_bits, pages, length).transpose(0, 1)
        v = read_cache(layer.v, layer.v_scale, layer.v_bits, pages, length).transpose(0, 1)
        distance = batch.positions[here].unsqueeze(1) - torch.arange(length)
        seen = distance >= 0
        if attention.window > 0:
            seen &= distance < attention.window
        y = functional.scaled_dot_product_attention(
            q[here].transpose(0, 1).unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), attn_mask=seen, scale=attention.scale, enable_gqa=True
        )
        out[here] = y.squeeze(0).transpose(0, 1)
    return out.flatten(1)
