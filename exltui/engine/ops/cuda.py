"""The rows of the op table on NVIDIA (and, through hipify, AMD) GPUs.

Up to ``SMALL_ROWS`` tokens a product runs as one kernel that reads the packed weights, with the norm before and the residual, gate or
soft cap after it inside. More tokens take the weights through fp16 and cuBLAS. Weights are packed on first use and kept as long as
their tensors live. Every function takes the arguments of its reference and hands calls that its kernels do not cover (a head dimension
of 96, more than 16-bit floats) to the reference.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exltui.engine.ops import cuda_layout, references
from exltui.engine.ops.cuda_layout import Packed
from exltui.engine.ops.references import expect
from exltui.engine.ops.table import register_native
from exltui.engine.ops.types import PAGE, Activation, Attention, Batch, CacheLayer, Heads, Norm, Rope, Weight

SMALL_ROWS = 16  # two passes over the packed weights still beat dequantise + cuBLAS; measured in docs/cuda-notes.md
DECODE_ROWS = 8  # query tokens of a sequence that the decode attention takes one by one
ATTEND_DIMS = (64, 128, 256)
ATTEND_BITS = ((16, 16), (8, 8), (8, 4), (4, 4))
ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}

_packed: dict[int, Packed] = {}


def pack(weight: Weight) -> Packed:
    """``weight`` in kernel order, made once. Keyed by the tensor that holds its codes, and dropped with it."""
    source: Any = weight
    storage = source.q_weight if weight.format == "exl2" else source.qweight if weight.format == "gptq" else source.weight
    known = _packed.get(id(storage))
    if known is None:
        with torch.inference_mode(False):
            known = _pack(source)
        _packed[id(storage)] = known
        weakref.finalize(storage, _packed.pop, id(storage), None)
    return known


def _pack(weight: Any) -> Packed:
    if weight.format == "exl2":
        names = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")
        return cuda_layout.pack_exl2({name: getattr(weight, name) for name in names}, weight.prescale, weight.bias)
    if weight.format == "gptq":
        tensors = {name: getattr(weight, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        packed = cuda_layout.pack_gptq(tensors, weight.v2, weight.bias)
        return packed if packed is not None else cuda_layout.pack_dense(weight.dense(), weight.bias)
    return cuda_layout.pack_dense(weight.weight, weight.bias)


def _panel_arguments(weights: tuple[Packed, ...], *, gated: bool = False) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Words, scales and fields of all panels. Weights lie side by side in the output, or share units as the halves of a gate."""
    words, scales, fields, unit = [], [], [], 0
    for index, weight in enumerate(weights):
        for panel in weight.panels:
            words.append(panel.words)
            scales.append(panel.words if panel.scales is None else panel.scales)
            first, part = (0, index) if gated else (unit, 0)
            fields += [panel.tag, panel.tiles, panel.columns, panel.group_shift, panel.first_tile, first, part]
        unit += weight.panels[0].columns
    return words, scales, fields


def _same_order(weights: tuple[Packed, ...]) -> bool:
    """Whether one permuted x serves all weights. Compared once a set: q, k and v of a file share their permutation, or not."""
    first = weights[0].order
    for other in weights[1:]:
        if (first is None) != (other.order is None):
            return False
        if first is not None and other.order is not None and not _equal(first, other.order):
            return False
    return True


_equal_orders: dict[tuple[int, int], bool] = {}


def _equal(a: Tensor, b: Tensor) -> bool:
    key = (id(a), id(b))
    if key not in _equal_orders:
        _equal_orders[key] = a.shape == b.shape and bool(torch.equal(a, b))
        for tensor in (a, b):
            weakref.finalize(tensor, _equal_orders.pop, key, None)
    return _equal_orders[key]


def _product(
    x: Tensor,
    norm: Norm | None,
    weights: tuple[Packed, ...],
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    head: tuple[float, float] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """One launch of linear_small (two where x exceeds eight rows): fp16 [t, n], or fp32 logits where ``head`` = (scale, soft cap)."""
    if norm is not None and (norm.kind == "layer" or norm.bias is not None):
        x, norm = _norm_rows(x, norm), None
    gated = activation is not None and len(weights) == 2
    words, scales, fields = _panel_arguments(weights, gated=gated)
    bias = weights[0].bias if gated else _joined_bias(weights)
    factor, softcap = head if head is not None else (scale, 0.0)
    scalars = [0.0 if norm is None else norm.eps, 0.0 if norm is None else norm.offset, factor, softcap]
    n = weights[0].n if gated else sum(w.n for w in weights)
    return torch.ops.exltui_cuda.linear_small(
        x.contiguous(),
        words,
        scales,
        fields,
        weights[0].order,
        None if norm is None else norm.weight,
        bias,
        weights[1].bias if gated else None,
        residual,
        scalars,
        ACTIVATIONS[activation],
        gated,
        n,
        head is not None,
    )


def _joined_bias(weights: tuple[Packed, ...]) -> Tensor | None:
    if all(w.bias is None for w in weights):
        return None
    parts = [torch.zeros(w.n, dtype=torch.float16, device=w.panels[0].words.device) if w.bias is None else w.bias for w in weights]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norm_rows(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    return torch.ops.exltui_cuda.norm_rows(x.contiguous(), norm.weight, norm.bias, norm.eps, norm.offset, norm.kind == "layer")


def _dense_product(x: Tensor, weight: Packed) -> Tensor:
    """Many rows: the weight as fp16 rows in stored order, x in the same order, cuBLAS."""
    words, scales, fields = _panel_arguments((weight,))
    dense = torch.ops.exltui_cuda.dequantise(words, scales, fields)
    if weight.order is not None:
        x = x.index_select(1, weight.order.view(torch.uint16).to(torch.int32))
    elif dense.shape[1] != weight.k:
        dense = dense[:, : weight.k]
    return functional.linear(x, dense[: weight.n], weight.bias)


def _splits_evenly(x: Tensor, weights: tuple[Packed, ...]) -> bool:
    """Whether outputs of the weights can lie side by side in one launch: whole units of 32, rows of 16-byte pieces."""
    return x.shape[1] % 8 == 0 and all(w.n % 32 == 0 for w in weights[:-1]) and len({w.k for w in weights}) == 1


def _check(op: str, x: Tensor, weights: tuple[Weight, ...]) -> None:
    for weight in weights:
        expect(op, "k of x", x.shape[-1], weight.shape[1])


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def embed(tokens: Tensor, table: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if table.dtype != torch.float16 or dtype != torch.float16 or table.shape[1] % 8:
        return references.embed(tokens, table, scale, dtype)
    return torch.ops.exltui_cuda.embed(tokens.contiguous(), table, scale)


def norm_linear(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> Tensor:
    _check("norm_linear", x, weights)
    if x.dtype != torch.float16:
        return references.norm_linear(x, norm, weights)
    packed = tuple(pack(weight) for weight in weights)
    if x.shape[0] > SMALL_ROWS:
        y = _norm_rows(x, norm)
        return torch.cat([_dense_product(y, weight) for weight in packed], dim=-1)
    if _splits_evenly(x, packed) and _same_order(packed):
        return _product(x, norm, packed)
    y = _norm_rows(x, norm)
    return torch.cat([_product(y, None, (weight,)) for weight in packed], dim=-1)


def linear_add(x: Tensor, weight: Weight, residual: Tensor, scale: float = 1.0) -> Tensor:
    _check("linear_add", x, (weight,))
    expect("linear_add", "n of residual", residual.shape[-1], weight.shape[0])
    expect("linear_add", "t of residual", residual.shape[0], x.shape[0])
    if x.dtype != torch.float16:
        return references.linear_add(x, weight, residual, scale)
    packed = pack(weight)
    if x.shape[0] > SMALL_ROWS:
        return torch.add(residual, _dense_product(x, packed), alpha=scale)
    return _product(x, None, (packed,), residual=residual.contiguous(), scale=scale)


def norm_gate_up(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    _check("norm_gate_up", x, weights)
    if len(weights) == 2:
        expect("norm_gate_up", "n of gate", weights[0].shape[0], weights[1].shape[0])
    if x.dtype != torch.float16:
        return references.norm_gate_up(x, norm, weights, activation)
    packed = tuple(pack(weight) for weight in weights)
    if x.shape[0] <= SMALL_ROWS and _splits_evenly(x, packed) and _same_order(packed):
        return _product(x, norm, packed, activation=activation)
    y = _norm_rows(x, norm)
    parts = [_dense_product(y, weight) for weight in packed]
    return torch.ops.exltui_cuda.gate_up(parts[0].contiguous(), parts[1].contiguous() if len(parts) == 2 else None, ACTIVATIONS[activation])


def norm_head(x: Tensor, norm: Norm | None, weight: Weight, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    _check("norm_head", x, (weight,))
    if x.dtype != torch.float16:
        return references.norm_head(x, norm, weight, scale, softcap)
    packed = pack(weight)
    if x.shape[0] <= SMALL_ROWS:
        return _product(x, norm, (packed,), head=(scale, softcap))
    logits = _dense_product(_norm_rows(x, norm), packed).float() * scale
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits


def rope_store(qkv: Tensor, rope: Rope | None, batch: Batch, layer: CacheLayer, heads: Heads) -> Tensor:
    expect("rope_store", "(h+2g)*d of qkv", qkv.shape[-1], (heads.h + 2 * heads.g) * heads.d)
    expect("rope_store", "t of slots", batch.slots.shape[0], qkv.shape[0])
    norms = [norm for norm in (heads.q_norm, heads.k_norm) if norm is not None]
    plain = all(norm.kind == "rms" and norm.bias is None and norm.weight.dim() == 1 for norm in norms)
    same = len({(norm.eps, norm.offset) for norm in norms}) <= 1
    halves = qkv.dtype == torch.float16 and (layer.k_scale is not None or layer.k.dtype == torch.float16)
    if not (plain and same and halves and heads.d <= 256):
        return references.rope_store(qkv, rope, batch, layer, heads)
    return torch.ops.exltui_cuda.rope_store(
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


def attend(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    expect("attend", "d of q", q.shape[-1], layer.k.shape[-1] * (1 if layer.k_scale is None else 8 // layer.k_bits))
    expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
    if q.dtype != torch.float16 or (layer.k_scale is None and layer.k.dtype != torch.float16):
        return references.attend(q, layer, batch, attention)
    t, b = q.shape[0], batch.lengths.shape[0]
    if q.shape[2] in ATTEND_DIMS and (layer.k_bits, layer.v_bits) in ATTEND_BITS and t <= DECODE_ROWS * b:
        return torch.ops.exltui_cuda.attend_decode(
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
        )
    if attention.softcap > 0:
        return references.attend(q, layer, batch, attention)
    return _prefill(q, layer, batch, attention)


def _prefill(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    """Many query tokens: each sequence's keys and values in order as fp16, then torch's attention with a lower-right causal mask."""
    out = torch.empty((q.shape[0], q.shape[1], q.shape[2]), dtype=q.dtype, device=q.device)
    starts, lengths, d = batch.query_start.tolist(), batch.lengths.tolist(), q.shape[2]
    for i, length in enumerate(lengths):
        here, rows = slice(starts[i], starts[i + 1]), starts[i + 1] - starts[i]
        if rows == 0:
            continue
        pages = batch.page_table[i, : -(-length // PAGE)].contiguous()
        k = torch.ops.exltui_cuda.gather_pages(layer.k, layer.k_scale, layer.k_bits, pages, length, d)
        v = torch.ops.exltui_cuda.gather_pages(layer.v, layer.v_scale, layer.v_bits, pages, length, d)
        query = q[here].transpose(0, 1).unsqueeze(0)
        mask, causal = None, rows == length and attention.window == 0
        if not causal:
            at = torch.arange(length - rows, length, device=q.device).unsqueeze(1)
            distance = at - torch.arange(length, device=q.device)
            mask = distance >= 0
            if attention.window > 0:
                mask &= distance < attention.window
        y = functional.scaled_dot_product_attention(
            query, k.unsqueeze(0), v.unsqueeze(0), attn_mask=mask, is_causal=causal, scale=attention.scale, enable_gqa=True
        )
        out[here] = y[0].transpose(0, 1)
    return out.flatten(1)


ROWS: dict[str, Callable[..., Tensor]] = {
    "embed": embed,
    "norm_linear": norm_linear,
    "linear_add": linear_add,
    "norm_gate_up": norm_gate_up,
    "norm_head": norm_head,
    "rope_store": rope_store,
    "attend": attend,
}


def register() -> None:
    """Load (and build if need be) the extension and enter its rows in the table. Raises BuildError."""
    from exltui.engine.ops import build

    build.load_extension()
    enter()


def enter() -> None:
    """Enter the rows of an extension that is already loaded."""
    for name, function in ROWS.items():
        register_native("cuda", name, function)
