"""The rows of the op table on NVIDIA (and, through hipify, AMD) GPUs.

Up to ``SMALL_ROWS`` tokens a product runs as a kernel that reads the packed weights, with the norm before and the residual, gate or
soft cap after it inside. More tokens take the weights through fp16 and cuBLAS. Every function takes the arguments of its reference and
hands calls that its kernels do not cover (M-RoPE, other than f16 activations) to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exltui.engine.ops import cuda_sample, references
from exltui.engine.ops.cuda_layout import TILE, Packed, inverse_order
from exltui.engine.ops.cuda_slabs import SLAB, panels, slabs
from exltui.engine.ops.references import expect
from exltui.engine.ops.table import register_native
from exltui.engine.ops.types import PAGE, Activation, Attention, Batch, CacheLayer, Heads, Norm, Rope, Weight

SMALL_ROWS = 32  # one pass over the packed weights; two passes lose to dequantise + cuBLAS (docs/cuda.md)
DECODE_ROWS = 8  # query tokens of a sequence that the decode attention takes one by one
ATTEND_DIMS = (64, 128, 256)
PREFILL_DIMS = (64, 128)
ATTEND_BITS = ((16, 16), (8, 8), (8, 4), (4, 4))
ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}
NORMS = {"rms": 1, "layer": 2}
MAX_PANELS = 18

_native: Any = torch.ops.exltui_cuda  # its operators are looked up at their first call


def enter() -> None:
    """Enter the rows of the extension, which is loaded, in the table."""
    for function in (embed, norm_linear, linear_add, norm_gate_up, norm_head, rope_store, attend, cuda_sample.sample):
        register_native("cuda", function.__name__, function)


# ── products ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _order(weight: Any) -> Tensor | None:
    return weight.order if isinstance(weight, Packed) else None


def _one_launch(weights: Sequence[Any]) -> bool:
    """Whether one launch can run them: the same k and order of x, few enough panels, outputs in whole units of 32."""
    panels = sum(len(w.panels) if isinstance(w, Packed) else 1 for w in weights)
    same = all(_order(w) is _order(weights[0]) and w.shape[1] == weights[0].shape[1] for w in weights)
    return same and panels <= MAX_PANELS and all(w.shape[0] % TILE == 0 for w in weights[:-1])


def _product(
    x: Tensor,
    norm: Norm | None,
    weights: Sequence[Any],
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    scale: float = 1.0,
    head: float | None = None,
) -> Tensor:
    """Passes over the packed weights -> f16 [t, n], or f32 logits with ``head`` as their soft cap (0: none)."""
    if norm is not None and norm.kind == "layer":
        x, norm = _norm_rows(x, norm, None), None
    gated = activation is not None and len(weights) == 2
    words, scales, fields = panels(weights, gated=gated)
    order = _order(weights[0])
    return _native.linear_small(
        x.contiguous(),
        words,
        scales,
        fields,
        order,
        None if order is None else inverse_order(order),
        None if norm is None else norm.weight,
        weights[0].bias if gated else _joined_bias(weights),
        weights[1].bias if gated else None,
        residual,
        [0.0 if norm is None else norm.eps, 0.0 if norm is None else norm.offset, scale, head or 0.0],
        ACTIVATIONS[activation],
        gated,
        weights[0].shape[0] if gated else sum(w.shape[0] for w in weights),
        head is not None,
    )


def _joined_bias(weights: Sequence[Any]) -> Tensor | None:
    if all(w.bias is None for w in weights):
        return None
    if len(weights) == 1:
        return weights[0].bias
    like = next(w.bias for w in weights if w.bias is not None)
    return torch.cat([like.new_zeros(w.shape[0]) if w.bias is None else w.bias for w in weights])


def _norm_rows(x: Tensor, norm: Norm | None, order: Tensor | None) -> Tensor:
    """``x`` normalised and in ``order``."""
    if norm is None and order is None:
        return x
    if norm is None:
        return _native.norm_rows(x.contiguous(), None, None, order, 0.0, 0.0, 0)
    return _native.norm_rows(x.contiguous(), norm.weight, norm.bias, order, norm.eps, norm.offset, NORMS[norm.kind])


def _wide(x: Tensor, norm: Norm | None, weights: Sequence[Any]) -> Tensor:
    """Many rows: slabs of the weights as fp16 rows in stored order, x in the same order, cuBLAS -> [t, sum n]."""
    out = torch.empty((x.shape[0], sum(w.shape[0] for w in weights)), dtype=x.dtype, device=x.device)
    staged: dict[int, Tensor] = {}  # x by order: weights that read the same input share it as a rule
    at = 0
    for order, slab in slabs(weights):
        key = id(order)
        if key not in staged:
            staged[key] = _norm_rows(x, norm, order)
        torch.mm(staged[key], slab.t(), out=out[:, at : at + slab.shape[0]])
        at += slab.shape[0]
    bias = _joined_bias(weights)
    return out if bias is None else out.add_(bias)


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.float16 and x.shape[1] % 8 == 0


def _check(op: str, x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> None:
    for weight in weights:
        expect(op, "k of x", x.shape[-1], weight.shape[1])
    if norm is not None:
        expect(op, "k of x", x.shape[-1], norm.weight.shape[-1])


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def embed(tokens: Tensor, table: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if table.dtype != torch.float16 or dtype != torch.float16 or table.shape[1] % 8 or not table.is_contiguous():
        return references.embed(tokens, table, scale, dtype)
    return _native.embed(tokens.contiguous(), table, scale)


def norm_linear(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> Tensor:
    _check("norm_linear", x, norm, weights)
    if not _takes(x):
        return references.norm_linear(x, norm, weights)
    if x.shape[0] > SMALL_ROWS:
        return _wide(x, norm, weights)
    if _one_launch(weights):
        return _product(x, norm, weights)
    return torch.cat([_product(x, norm, (weight,)) for weight in weights], dim=-1)


def linear_add(x: Tensor, weight: Any, residual: Tensor, scale: float = 1.0) -> Tensor:
    _check("linear_add", x, None, (weight,))
    expect("linear_add", "n of residual", residual.shape[-1], weight.shape[0])
    expect("linear_add", "t of residual", residual.shape[0], x.shape[0])
    if not _takes(x):
        return references.linear_add(x, weight, residual, scale)
    if residual.dtype == torch.float32:
        given = (
            _product(x, None, (weight,), scale=scale, head=0.0) if x.shape[0] <= SMALL_ROWS else _wide(x, None, (weight,)).float() * scale
        )
        return residual + given
    if x.shape[0] <= SMALL_ROWS:
        return _product(x, None, (weight,), residual=residual.contiguous(), scale=scale)
    if weight.bias is not None or weight.shape[0] * weight.shape[1] > SLAB:
        return torch.add(residual, _wide(x, None, (weight,)), alpha=scale)
    ((order, slab),) = slabs((weight,))
    return torch.addmm(residual, _norm_rows(x, None, order), slab.t(), alpha=scale)


def norm_gate_up(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    _check("norm_gate_up", x, norm, weights)
    expect("norm_gate_up", "n of gate", weights[0].shape[0], weights[-1].shape[0])
    if not _takes(x) or activation not in ACTIVATIONS:
        return references.norm_gate_up(x, norm, weights, activation)
    if x.shape[0] <= SMALL_ROWS and _one_launch(weights):
        return _product(x, norm, weights, activation=activation)
    if weights[0].shape[0] % 8:
        return references.norm_gate_up(x, norm, weights, activation)
    return _native.gate_up(_wide(x, norm, weights), ACTIVATIONS[activation], len(weights) == 1)


def norm_head(x: Tensor, norm: Norm | None, weight: Weight, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    _check("norm_head", x, norm, (weight,))
    if not _takes(x):
        return references.norm_head(x, norm, weight, scale, softcap)
    if x.shape[0] <= SMALL_ROWS:
        return _product(x, norm, (weight,), scale=scale, head=softcap)
    return references.capped(_wide(x, norm, (weight,)).float(), scale, softcap)


def rope_store(qkv: Tensor, rope: Rope | None, batch: Batch, layer: CacheLayer, heads: Heads) -> Tensor:
    expect("rope_store", "(h+2g)*d of qkv", qkv.shape[-1], (heads.h + 2 * heads.g) * heads.d)
    expect("rope_store", "t of slots", batch.slots.shape[0], qkv.shape[0])
    norms = [norm for norm in (heads.q_norm, heads.k_norm) if norm is not None]
    plain = all(norm.kind == "rms" and norm.bias is None and norm.weight.dim() == 1 for norm in norms)
    same = len({(norm.eps, norm.offset) for norm in norms}) <= 1
    halves = qkv.dtype == torch.float16 and all(store.dtype != torch.float32 for store in (layer.k, layer.v))
    strange = heads.over_all or heads.clip > 0 or (batch.planes is not None and rope is not None and bool(rope.sections))
    if strange or not (plain and same and halves and heads.d <= 256):
        return references.rope_store(qkv, rope, batch, layer, heads)
    return _native.rope_store(
        qkv.contiguous(),
        None if rope is None else rope.cos,
        None if rope is None else rope.sin,
        rope is not None and rope.interleaved,
        batch.positions,
        batch.slots,
        layer.k,
        layer.v,
        layer.k_scale,
        layer.v_scale,
        [layer.k_bits, layer.v_bits],
        [heads.h, heads.g, heads.d],
        None if heads.q_norm is None else heads.q_norm.weight,
        None if heads.k_norm is None else heads.k_norm.weight,
        norms[0].eps if norms else 0.0,
        norms[0].offset if norms else 0.0,
    )


def decodes(d: int, bits: tuple[int, int]) -> bool:
    """Whether the decode attention takes a head dimension and a cache's key and value bits: such a step can be captured in a graph."""
    return d in ATTEND_DIMS and bits in ATTEND_BITS


def attend(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    expect("attend", "d of q", q.shape[-1], layer.k.shape[-1] * (1 if layer.k_scale is None else 8 // layer.k_bits))
    expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
    if q.dtype != torch.float16 or layer.k.dtype == torch.float32 or q.shape[2] % 8:
        return references.attend(q, layer, batch, attention)
    if decodes(q.shape[2], (layer.k_bits, layer.v_bits)) and q.shape[0] <= DECODE_ROWS * batch.lengths.shape[0]:
        return _native.attend_decode(
            q.contiguous(),
            layer.k,
            layer.v,
            layer.k_scale,
            layer.v_scale,
            [layer.k_bits, layer.v_bits],
            batch.query_start,
            batch.lengths,
            batch.page_table,
            attention.scale,
            attention.softcap,
            attention.window,
            attention.sinks,
        )
    if not _own_prefill(q, attention) and (attention.softcap > 0 or (attention.sinks is not None and not _has_flash(q))):
        return references.attend(q, layer, batch, attention)
    return _prefill(q.contiguous(), layer, batch, attention)


def _has_flash(q: Tensor) -> bool:
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


def _own_prefill(q: Tensor, attention: Attention) -> bool:
    """Whether the kernel for many query tokens takes ``q``: it is made of products that only Hopper has."""
    hopper = torch.cuda.get_device_capability(q.device) == (9, 0)
    return hopper and q.shape[2] in PREFILL_DIMS and attention.sinks is None


def _prefill(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    """Many query tokens, sequence after sequence."""
    starts, lengths = batch.spans if batch.spans is not None else (batch.query_start.tolist(), batch.lengths.tolist())
    parts = []
    for i, length in enumerate(lengths):
        if starts[i] == starts[i + 1]:
            continue
        pages = batch.page_table[i, : -(-length // PAGE)].contiguous()
        parts.append(_attend_sequence(q[starts[i] : starts[i + 1]], layer, pages, length, attention))
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.flatten(1)


def _attend_sequence(q: Tensor, layer: CacheLayer, pages: Tensor, length: int, attention: Attention) -> Tensor:
    """q [t, h, d], the last tokens of a sequence of ``length`` in ``pages`` -> [t, h, d]. Quantised keys and values become fp16 first."""
    d, own = q.shape[2], _own_prefill(q, attention)
    if own and layer.k_bits == layer.v_bits == 16:
        return _native.attend_prefill(q, layer.k, layer.v, pages, length, attention.scale, attention.softcap, attention.window)
    k = _native.gather_pages(layer.k, layer.k_scale, layer.k_bits, pages, length, d)
    v = _native.gather_pages(layer.v, layer.v_scale, layer.v_bits, pages, length, d)
    if own:
        return _native.attend_prefill(q, k, v, None, length, attention.scale, attention.softcap, attention.window)
    return _attend_by_torch(q, k, v, attention)


def _attend_by_torch(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """q [t, h, d] at the end of k and v [length, g, d] -> [t, h, d]: torch's attention with a lower-right causal mask."""
    rows, length = q.shape[0], k.shape[0]
    if _has_flash(q):
        left = attention.window - 1 if attention.window > 0 else -1
        y, log_weights = torch.ops.aten._flash_attention_forward(
            q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), None, None, rows, length, 0.0, True, False,
            scale=attention.scale, window_size_left=left, window_size_right=0,
        )[:2]  # fmt: skip
        if attention.sinks is None:
            return y[0]
        kept = torch.sigmoid(log_weights[0].t() - attention.sinks)  # [t, h] what the sinks leave to the keys
        return (y[0] * kept.unsqueeze(2)).to(y.dtype)
    distance = torch.arange(length - rows, length, device=q.device).unsqueeze(1) - torch.arange(length, device=q.device)
    mask = distance >= 0
    if attention.window > 0:
        mask &= distance < attention.window
    query, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    y = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scale, enable_gqa=True)
    return y[0].transpose(0, 1)
