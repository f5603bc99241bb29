"""The torch reference of every row: slow, obvious, for any device, dtype and number of rows. Never optimised.

Activations come in and go out in the op set's dtype (f32 on the CPU, f16 on a GPU); arithmetic in between is f32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exltui.engine.ops import kv_codec
from exltui.engine.ops.table import row
from exltui.engine.ops.types import PAGE, Activation, Attention, Batch, CacheLayer, Expert, Heads, Norm, Rope, Routing, Weight
from exltui.errors import ShapeError


def expect(op: str, dimension: str, got: int, wanted: int) -> None:
    """Raise ShapeError unless ``got`` equals ``wanted``."""
    if got != wanted:
        raise ShapeError(f"{op}: {dimension} is {got}, expected {wanted}")


def nbytes(*values: Any) -> int:
    """Bytes of all tensors and weights among ``values``, looking into tuples."""
    total = 0
    for value in values:
        if isinstance(value, tuple):
            total += nbytes(*value)
        elif isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif hasattr(value, "nbytes"):
            total += value.nbytes
    return total


# ── small functions that the rows compose ────────────────────────────────────────────────────────────────────────────────────────


def normalise(x: Tensor, norm: Norm | None, op: str) -> Tensor:
    """``x`` [.., k] through ``norm``, in f32. Statistics are f32."""
    y = x.float()
    if norm is None:
        return y
    expect(op, "k of x", x.shape[-1], norm.weight.shape[-1])
    weight = norm.weight.float() + norm.offset
    if norm.kind == "rms":
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) * weight
    y = y - y.mean(-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) * weight
    return y if norm.bias is None else y + norm.bias.float()


def multiply(x: Tensor, weight: Weight, op: str) -> Tensor:
    """``x`` [t, k] f32 times ``weight`` plus its bias -> [t, n] f32."""
    expect(op, "k of x", x.shape[-1], weight.shape[1])
    bias = None if weight.bias is None else weight.bias.float()
    return functional.linear(weight.seen(x.float()), weight.dense().float(), bias)


def act(x: Tensor, activation: Activation) -> Tensor:
    if activation == "clamped_swiglu":
        x = x.clamp_max(7.0)
        return x * torch.sigmoid(1.702 * x)
    if activation == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def multiply_gate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """``act(gate) * up``, all f32."""
    return act(gate, activation) * (up.clamp(-7.0, 7.0) + 1.0 if activation == "clamped_swiglu" else up)


def turns_at(table: Tensor, rope: Rope, batch: Batch) -> Tensor:
    """The rows of ``table`` for each token -> [t, 1, d_rot/2]. With M-RoPE, each section of pairs takes its own plane's row."""
    if batch.planes is None or not rope.sections:
        return table[batch.positions.long()].unsqueeze(1)
    rows = [table[plane.long()].split(rope.sections, dim=-1)[i] for i, plane in enumerate(batch.planes)]
    return torch.cat(rows, dim=-1).unsqueeze(1)


def rotate(x: Tensor, rope: Rope, batch: Batch) -> Tensor:
    """``x`` [t, heads, d] f32 with RoPE at the batch's positions; dimensions past the rotated part pass through."""
    half = rope.cos.shape[1]
    cos, sin = (turns_at(table, rope, batch) for table in (rope.cos, rope.sin))
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rope.interleaved:
        left, right = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((left * cos - right * sin, right * cos + left * sin), dim=-1).flatten(-2)
    else:
        left, right = turned[..., :half], turned[..., half:]
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return torch.cat((turned, rest), dim=-1)


def read_cache(codes: Tensor, scales: Tensor | None, bits: int, pages: Tensor, length: int) -> Tensor:
    """The first ``length`` rows of the sequence that lies in ``pages`` -> [length, g, d] f32."""
    rows = codes[pages.long()].flatten(0, 1)[:length]
    if scales is None:
        return rows.float()
    return kv_codec.dequantise(rows, scales[pages.long()].flatten(0, 1)[:length], bits).float()


def write_cache(layer: CacheLayer, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store ``k`` and ``v`` [t, g, d] at ``slots`` [t]."""
    index = slots.long()
    for values, store, scales, bits in ((k, layer.k, layer.k_scale, layer.k_bits), (v, layer.v, layer.v_scale, layer.v_bits)):
        if scales is None:
            store.view(-1, *store.shape[2:])[index] = values.to(store.dtype)
        else:
            codes, scale = kv_codec.quantise(values.half(), bits)
            store.view(-1, *store.shape[2:])[index] = codes
            scales.view(-1, *scales.shape[2:])[index] = scale


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@row(
    "tokens[t] i32, table[v,k] -> x[t,k]",
    nmse=1e-7,
    moves=lambda tokens, table, scale, dtype: tokens.numel() * table.shape[1] * (table.element_size() + dtype.itemsize),
)
def embed(tokens: Tensor, table: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Rows of ``table`` for ``tokens``, times ``scale``, as ``dtype``."""
    return (table[tokens.long()].float() * scale).to(dtype)


@row(
    "x[t,k], norm, weights: (Weight[n_i,k], ..) -> y[t, sum n_i]",
    nmse=1e-6,
    moves=lambda x, norm, weights: nbytes(x, weights) + x.shape[0] * sum(w.shape[0] for w in weights) * x.element_size(),
)
def norm_linear(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> Tensor:
    """``x`` normalised and multiplied with each weight; the results side by side (q, k and v of a layer)."""
    y = normalise(x, norm, "norm_linear")
    return torch.cat([multiply(y, weight, "norm_linear") for weight in weights], dim=-1).to(x.dtype)


@row(
    "x[t,k], weight: Weight[n,k], residual[t,n], scale -> y[t,n]",
    nmse=1e-6,
    moves=lambda x, weight, residual, scale=1.0: nbytes(x, weight, residual, residual),
)
def linear_add(x: Tensor, weight: Weight, residual: Tensor, scale: float = 1.0) -> Tensor:
    """``residual + scale * (x @ W.T + bias)``."""
    expect("linear_add", "n of residual", residual.shape[-1], weight.shape[0])
    expect("linear_add", "t of residual", residual.shape[0], x.shape[0])
    return (residual.float() + multiply(x, weight, "linear_add") * scale).to(residual.dtype)


@row(
    "x[t,k], norm, weights: (gate[n,k], up[n,k]) or (up[n,k],), activation -> y[t,n]",
    nmse=1e-6,
    moves=lambda x, norm, weights, activation: nbytes(x, weights) + x.shape[0] * weights[-1].shape[0] * x.element_size(),
)
def norm_gate_up(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    """``act(gate(norm(x))) * up(norm(x))``, or ``act(up(norm(x)))`` where there is no gate."""
    y = normalise(x, norm, "norm_gate_up")
    up = multiply(y, weights[-1], "norm_gate_up")
    if len(weights) == 1:
        return act(up, activation).to(x.dtype)
    expect("norm_gate_up", "n of gate", weights[0].shape[0], weights[1].shape[0])
    return multiply_gate(multiply(y, weights[0], "norm_gate_up"), up, activation).to(x.dtype)


@row(
    "gate_up[t,2n] or up[t,n], activation, gated -> y[t,n]",
    nmse=1e-6,
    moves=lambda x, activation, gated: 2 * nbytes(x),
)
def activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    """What norm_gate_up does after its products: for what must be added to them first."""
    if not gated:
        return act(x.float(), activation).to(x.dtype)
    gate, up = x.float().chunk(2, dim=-1)
    return multiply_gate(gate, up, activation).to(x.dtype)


@row(
    "y[t,n], x[t,k], norm, a[r,k], b[n,r], mix[t,r] f32, scale -> y[t,n]",
    nmse=1e-6,
    moves=lambda y, x, norm, a, b, mix, scale=1.0: nbytes(y, y, x, a, b, mix),
)
def lora_add(y: Tensor, x: Tensor, norm: Norm | None, a: Tensor, b: Tensor, mix: Tensor, scale: float = 1.0) -> Tensor:
    """``y + scale * ((norm(x) @ A.T) * mix) @ B.T``: low-rank changes of a product, each rank weighed for each token."""
    expect("lora_add", "k of x", x.shape[-1], a.shape[1])
    expect("lora_add", "n of y", y.shape[-1], b.shape[0])
    expect("lora_add", "r of mix", mix.shape[-1], a.shape[0])
    inner = (normalise(x, norm, "lora_add") @ a.float().t()) * mix
    return (y.float() + (inner @ b.float().t()) * scale).to(y.dtype)


@row(
    "x[t,k], norm, dtype -> y[t,k]",
    nmse=1e-6,
    moves=lambda x, norm, dtype: nbytes(x) + x.numel() * dtype.itemsize,
)
def normed(x: Tensor, norm: Norm | None, dtype: torch.dtype) -> Tensor:
    """``norm(x)`` as ``dtype``: what products read where the residual is wider than they are."""
    return normalise(x, norm, "normed").to(dtype)


@row(
    "x[t,n], norm, residual[t,n], scale -> y[t,n]",
    nmse=1e-6,
    moves=lambda x, norm, residual, scale=1.0: nbytes(x, residual, residual),
)
def norm_add(x: Tensor, norm: Norm, residual: Tensor, scale: float = 1.0) -> Tensor:
    """``residual + scale * norm(x)``: what a layer adds, in families that norm it first."""
    expect("norm_add", "t of residual", residual.shape[0], x.shape[0])
    return (residual.float() + normalise(x, norm, "norm_add") * scale).to(residual.dtype)


@row(
    "x[t,k], norm, router: Weight[e,k], routing -> weights[t,e] f32",
    nmse=1e-6,
    moves=lambda x, norm, router, routing: nbytes(x, router) + x.shape[0] * router.shape[0] * 4,
)
def route(x: Tensor, norm: Norm | None, router: Weight, routing: Routing) -> Tensor:
    """How much each expert counts for each token; 0 for those that were not chosen."""
    likely = multiply(normalise(x, norm, "route"), router, "route").softmax(-1)
    chosen = likely if routing.correction is None else likely + routing.correction
    kept = torch.zeros_like(likely, dtype=torch.bool).scatter_(1, chosen.topk(routing.top, dim=-1).indices, True)
    weights = likely * kept
    return weights / weights.sum(-1, keepdim=True) if routing.renormalise else weights


@row(
    "x[t,k], norm, weights[t,e] f32, experts: (Expert, ..), activation, residual[t,k], scale, most -> y[t,k]",
    nmse=4e-6,  # two products, with f16 between them
    moves=lambda x, norm, weights, experts, activation, residual, scale=1.0, most=None: nbytes(x, weights, experts, residual, residual),
)
def experts(
    x: Tensor,
    norm: Norm | None,
    weights: Tensor,
    experts: tuple[Expert, ...],
    activation: Activation,
    residual: Tensor,
    scale: float = 1.0,
    most: int | None = None,
) -> Tensor:
    """``residual + scale * sum_e weights[:, e] * expert_e(norm(x))``, over the experts with a weight that is not 0.

    ``most``: a token takes no more than so many, which a GPU must know without looking; None: all.
    """
    expect("experts", "e of weights", weights.shape[1], len(experts))
    expect("experts", "t of weights", weights.shape[0], x.shape[0])
    y, total = normalise(x, norm, "experts"), torch.zeros(residual.shape, dtype=torch.float32, device=x.device)
    for index, expert in enumerate(experts):
        rows = weights[:, index].nonzero().flatten()
        if len(rows):
            inner = norm_gate_up(y[rows], None, expert.gate_up, activation)
            total[rows] += multiply(inner, expert.down, "experts") * weights[rows, index].unsqueeze(1)
    return (residual.float() + total * scale).to(residual.dtype)


@row(
    "x[t,k], norm, weight: Weight[v,k], scale, softcap -> logits[t,v] f32",
    nmse=1e-6,
    moves=lambda x, norm, weight, scale=1.0, softcap=0.0: nbytes(x, weight) + x.shape[0] * weight.shape[0] * 4,
)
def norm_head(x: Tensor, norm: Norm | None, weight: Weight, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    """Final norm and output head: ``c * tanh(scale * logits / c)`` where ``softcap`` c > 0."""
    return capped(multiply(normalise(x, norm, "norm_head"), weight, "norm_head"), scale, softcap)


def capped(logits: Tensor, scale: float, softcap: float) -> Tensor:
    """``logits`` times ``scale``, held between ``-softcap`` and ``softcap`` where that is more than 0."""
    if scale != 1.0:
        logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits


@row(
    "qkv[t,(h+2g)*d], rope, batch, layer, heads -> q[t,h,d]; writes k[t,g,d], v[t,g,d] to layer",
    nmse=1e-6,
    moves=lambda qkv, rope, batch, layer, heads: 2 * nbytes(qkv),
)
def rope_store(qkv: Tensor, rope: Rope | None, batch: Batch, layer: CacheLayer, heads: Heads) -> Tensor:
    """Clip, norm q and k, rotate them to their positions, store k and v in the cache, return q."""
    h, g, d = heads.h, heads.g, heads.d
    expect("rope_store", "(h+2g)*d of qkv", qkv.shape[-1], (h + 2 * g) * d)
    expect("rope_store", "t of slots", batch.slots.shape[0], qkv.shape[0])
    values = qkv.float().clamp(-heads.clip, heads.clip) if heads.clip > 0 else qkv.float()
    q, k, v = (part.unflatten(-1, (-1, d)) for part in values.split((h * d, g * d, g * d), dim=1))
    if heads.over_all:
        q, k = (normalise(x.flatten(1), norm, "rope_store").view_as(x) for x, norm in ((q, heads.q_norm), (k, heads.k_norm)))
    else:
        q, k = normalise(q, heads.q_norm, "rope_store"), normalise(k, heads.k_norm, "rope_store")
    if rope is not None:
        q, k = rotate(q, rope, batch), rotate(k, rope, batch)
    write_cache(layer, k, v, batch.slots)
    return q.to(qkv.dtype)


def _attend_bytes(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> int:
    per_token = sum(nbytes(t) for t in (layer.k, layer.v, layer.k_scale, layer.v_scale)) / max(layer.k.shape[0] * PAGE, 1)
    return int(2 * nbytes(q) + float(batch.lengths.sum()) * per_token)


@row("q[t,h,d], layer, batch, attention -> y[t,h*d]", nmse=1e-6, moves=_attend_bytes)
def attend(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    """Causal attention of each token to its own sequence's pages, its own key included; query heads share key/value heads in order."""
    expect("attend", "d of q", q.shape[-1], layer.k.shape[-1] * (1 if layer.k_scale is None else 8 // layer.k_bits))
    expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    starts = batch.query_start.tolist()
    for i, length in enumerate(batch.lengths.tolist()):
        here = slice(starts[i], starts[i + 1])
        pages = batch.page_table[i, : -(-length // PAGE)]
        k = read_cache(layer.k, layer.k_scale, layer.k_bits, pages, length)
        v = read_cache(layer.v, layer.v_scale, layer.v_bits, pages, length)
        share = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[here].float(), k) * attention.scale
        if attention.softcap > 0:
            scores = attention.softcap * torch.tanh(scores / attention.softcap)
        distance = batch.positions[here].unsqueeze(1) - torch.arange(length, device=q.device)
        hidden = distance < 0
        if attention.window > 0:
            hidden |= distance >= attention.window
        scores = scores.masked_fill(hidden, float("-inf"))
        if attention.sinks is not None:
            sinks = attention.sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        out[here] = torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :length], v)
    return out.flatten(1).to(q.dtype)
