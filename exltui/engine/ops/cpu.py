"""The CPU's kernels in the op table.

Products of a few rows (decoding) read each weight once; products of many rows (a prompt) unpack a panel of the weight at a time.
Attention reads quantised pages as they are. What the kernels do not cover (activations that are not f32, weights in the order of their
file, head norms that are not RMSNorm, attention sinks, clipping, M-RoPE) runs in the references. ``compile_decoder`` makes one call of
a decoder's forward pass, from the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exltui import paths
from exltui.engine.ops import references
from exltui.engine.ops.references import expect
from exltui.engine.ops.sample import BROKEN, SampleParams, broken, packed
from exltui.engine.ops.table import register_native
from exltui.engine.ops.types import Activation, Attention, Batch, CacheLayer, Expert, Heads, Norm, Rope, Weight
from exltui.errors import BuildError

ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu": 3}
FEW = 16  # rows up to which a product takes each as if it were alone (csrc/cpu/inputs.h)
FORMATS = ("plain", "exl2", "gptq")  # that a packed weight can be made from
KINDS = ("dense", "blocked")  # of weights that kernels read
SETS = ("portable", "neon", "avx2", "avx512", "vnni")

_native: Any = torch.ops.exltui_cpu  # its operators are looked up at their first call


def enter() -> None:
    """Enter the rows of the extension, which is loaded, in the table."""
    for function in (norm_linear, linear_add, norm_gate_up, experts, norm_head, rope_store, attend, sample):
        register_native("cpu", function.__name__, function)


def configure(threads: int | None = None) -> str:
    """Use ``threads`` threads (torch's own number if None) and the best instruction set that EXLTUI_ISA allows -> its name."""
    cap = paths.environment("EXLTUI_ISA")
    if cap not in ("", *SETS):
        raise BuildError(f"EXLTUI_ISA is {cap!r}", f"say {', '.join(SETS[:-1])} or {SETS[-1]}, or leave it out")
    wanted = torch.get_num_threads() if threads is None else threads
    return str(_native.configure(cap, max(1, min(wanted, os.cpu_count() or 1))))


def _norm(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float, bool, float]:
    if norm is None:
        return None, None, 0.0, True, 0.0
    return norm.weight, norm.bias, norm.eps, norm.kind == "rms", norm.offset


def pack(
    words: Tensor, source: str, scales: Tensor | None, zeros: Tensor | None, groups: Tensor, order: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    """The data of a packed weight (engine/model/weights/blocked.py) from plain, EXL2 or GPTQ tensors -> u8 [blocks, bytes]."""
    has_zeros = source == "gptq" or (source == "plain" and int(groups[0, 0]) == 4)
    data: Tensor = _native.pack(words.contiguous(), FORMATS.index(source), scales, zeros, groups, order, [*shape, has_zeros, 0])
    return data


def _weights(weights: tuple[Any, ...]) -> tuple[list[Tensor], list[int], list[Tensor | None]]:
    """The tensors of all weights in a row, the shapes of the packed ones, the bias of each: how csrc/bind.cpp takes them."""
    parts: list[Tensor] = []
    shapes: list[int] = []
    for weight in weights:
        if weight.format == "blocked":
            parts += (weight.data, weight.groups, _NO_ORDER if weight.order is None else weight.order)
            shapes += (4, *weight.shape, weight.zeros, weight.int8)
        else:
            parts.append(weight.dense())
            shapes.append(0)
    return parts, shapes, [weight.bias for weight in weights]


_NO_ORDER = torch.empty(0, dtype=torch.int32)


def _runs(x: Tensor, weights: tuple[Any, ...]) -> bool:
    """Whether the kernels take these."""
    return x.dtype == torch.float32 and all(weight.format in KINDS for weight in weights)


def norm_linear(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...]) -> Tensor:
    if not _runs(x, weights):
        return references.norm_linear(x, norm, weights)
    k = x.shape[-1]
    for weight in weights:
        expect("norm_linear", "k of x", k, weight.shape[1])
    return _native.norm_linear(x, *_norm(norm), *_weights(weights))


def linear_add(x: Tensor, weight: Weight, residual: Tensor, scale: float = 1.0) -> Tensor:
    if not _runs(x, (weight,)):
        return references.linear_add(x, weight, residual, scale)
    n, k = weight.shape
    expect("linear_add", "k of x", x.shape[-1], k)
    expect("linear_add", "n of residual", residual.shape[-1], n)
    expect("linear_add", "t of residual", residual.shape[0], x.shape[0])
    return _native.linear_add(x, *_weights((weight,)), residual, scale)


def norm_gate_up(x: Tensor, norm: Norm | None, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    if not _runs(x, weights) or activation not in ACTIVATIONS:
        return references.norm_gate_up(x, norm, weights, activation)
    for weight in weights:
        expect("norm_gate_up", "k of x", x.shape[-1], weight.shape[1])
    expect("norm_gate_up", "n of gate", weights[0].shape[0], weights[-1].shape[0])
    return _native.norm_gate_up(x, *_norm(norm), *_weights(weights), ACTIVATIONS[activation])


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
    """Each expert's rows through the kernels of the rows above; the sum is in the order of the experts."""
    expect("experts", "e of weights", weights.shape[1], len(experts))
    expect("experts", "t of weights", weights.shape[0], x.shape[0])
    y = residual.float().clone()
    for index, rows in [(i, weights[:, i].nonzero().flatten()) for i in range(len(experts))]:
        if len(rows):
            inner = norm_gate_up(x[rows], norm, experts[index].gate_up, activation)
            y[rows] += norm_linear(inner, None, (experts[index].down,)) * (weights[rows, index].unsqueeze(1) * scale)
    return y.to(residual.dtype)


def norm_head(x: Tensor, norm: Norm | None, weight: Weight, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    expect("norm_head", "k of x", x.shape[-1], weight.shape[1])
    return references.capped(norm_linear(x.float(), norm, (weight,)), scale, softcap)


def rope_store(qkv: Tensor, rope: Rope | None, batch: Batch, layer: CacheLayer, heads: Heads) -> Tensor:
    q_norm, k_norm = heads.q_norm, heads.k_norm
    covered = (
        qkv.dtype == torch.float32 and not heads.over_all and not heads.clip and not (batch.planes is not None and rope and rope.sections)
    )
    if not covered or not all(_plain_rms(norm) for norm in (q_norm, k_norm)):
        return references.rope_store(qkv, rope, batch, layer, heads)
    expect("rope_store", "(h+2g)*d of qkv", qkv.shape[-1], (heads.h + 2 * heads.g) * heads.d)
    expect("rope_store", "t of slots", batch.slots.shape[0], qkv.shape[0])
    tables = (None, None, False) if rope is None else (rope.cos, rope.sin, rope.interleaved)
    return _native.rope_store(
        qkv, *tables, batch.positions, batch.slots, layer.k, layer.k_scale, layer.k_bits, layer.v, layer.v_scale, layer.v_bits,
        *_head_norm(q_norm), *_head_norm(k_norm), heads.h, heads.d,
    )  # fmt: skip


def _plain_rms(norm: Norm | None) -> bool:
    """Whether a norm over a head is what the kernel computes: RMSNorm with one weight for all heads."""
    return norm is None or (norm.kind == "rms" and norm.bias is None and norm.weight.dim() == 1)


def _head_norm(norm: Norm | None) -> tuple[Tensor | None, float, float]:
    return (None, 0.0, 0.0) if norm is None else (norm.weight, norm.eps, norm.offset)


def attend(q: Tensor, layer: CacheLayer, batch: Batch, attention: Attention) -> Tensor:
    if q.dtype != torch.float32 or attention.sinks is not None:
        return references.attend(q, layer, batch, attention)
    expect("attend", "d of q", q.shape[-1], layer.k.shape[-1] * (1 if layer.k_scale is None else 8 // layer.k_bits))
    expect("attend", "t of positions", batch.positions.shape[0], q.shape[0])
    return _native.attend(
        q, layer.k, layer.k_scale, layer.k_bits, layer.v, layer.v_scale, layer.v_bits,
        batch.positions, batch.query_start, batch.lengths, batch.page_table, attention.scale, attention.softcap, attention.window,
    )  # fmt: skip


def sample(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    parts, widths = _parts(params), [p.width or logits.shape[1] for p in params]
    drawn: Tensor = _native.sample(logits, parts, widths, [p.point for p in params])
    if any(row[0] == BROKEN for row in drawn.tolist()):
        broken()
    return drawn


def _parts(params: Sequence[SampleParams]) -> list[Tensor | None]:
    """Nine tensors for each row: how csrc/bind_sample.cpp takes them."""
    parts: list[Tensor | None] = []
    for p in params:
        parts.append(packed(p.rules))
        by = p.penalties
        if by is None:
            parts += (None, None, None, None)
        else:
            parts += (torch.tensor((by.repetition, by.presence, by.frequency), dtype=torch.float64), by.seen, by.weights, by.counts)
        parts += (*(p.shift or (None, None)), p.mask, p.spared)
    return parts


def distribution(logits: Tensor, p: SampleParams) -> tuple[Tensor, Tensor]:
    """What one row [v] is drawn from: ids [m] i64 and probabilities [m] f64, the likeliest first. Empty if nothing can be drawn."""
    found: tuple[Tensor, Tensor] = _native.distribution(logits.float()[None], _parts([p]), p.width or len(logits))
    return found


class Whole:
    """All of a decoder's forward pass without adapters in one native call, up to the scale of the logits."""

    def __init__(self, native: Any, vocab: int, padded: bool) -> None:
        self.native = native
        self._vocab, self._padded = vocab, padded
        self._cache: Sequence[CacheLayer] | None = None

    def __call__(self, numbers: list[int], sizes: Sequence[int], cache: Sequence[CacheLayer]) -> Tensor:
        """The logits [r, v] f32 of a step, from its numbers and their sizes as engine/run/step.py lays them out."""
        if cache is not self._cache:  # a runner has one cache, and taking it apart takes longer than a row
            parts = [part for layer in cache for part in (layer.k, layer.v, layer.k_scale, layer.v_scale)]
            self.native.attach(parts, [width for layer in cache for width in (layer.k_bits, layer.v_bits)])
            self._cache = cache
        logits: Tensor = self.native.run(numbers, sizes)
        return logits[:, : self._vocab] if self._padded else logits


def compile_decoder(decoder: Any) -> Whole | None:
    """One call of ``decoder``; None where a row needs a reference."""
    if decoder.head.format not in KINDS or not all(_in_one_call(layer) for layer in decoder.layers):
        return None
    native, spec = torch.classes.exltui_cpu.Decoder(), decoder.spec
    for layer in decoder.layers:
        native.add(*_layer_arguments(layer), spec.residual_scale)
    native.ends(decoder.embedding.contiguous(), spec.embed_scale, decoder.positions, *_norm(decoder.final_norm), *_weights((decoder.head,)))
    return Whole(native, spec.vocab, decoder.head.shape[0] != spec.vocab)


def _in_one_call(layer: Any) -> bool:
    """Whether ``layer`` is made of nothing but rows that have kernels."""
    heads, mlp = layer.heads, layer.mlp
    if not hasattr(mlp, "down") or layer.spec.parallel or layer.attention_post_norm or layer.mlp_post_norm:
        return False
    if layer.attention_norm is None or layer.mlp_norm is None or layer.attention.sinks is not None or heads.over_all or heads.clip:
        return False
    known = mlp.activation in ACTIVATIONS and all(weight.format in KINDS for weight in layer.weights)
    return known and all(_plain_rms(norm) for norm in (heads.q_norm, heads.k_norm))


def _layer_arguments(layer: Any) -> tuple[Any, ...]:
    """A layer as csrc/bind.cpp takes it, but for the residual's scale."""
    norms, head_norms = (layer.attention_norm, layer.mlp_norm), (layer.heads.q_norm, layer.heads.k_norm)
    parts = [part for norm in norms for part in (norm.weight, norm.bias)] + [norm and norm.weight for norm in head_norms]
    scalars = [value for norm in (*norms, *head_norms) for value in ((norm.eps, norm.offset) if norm else (0.0, 0.0))]
    rope, heads, attention, mlp = layer.rope, layer.heads, layer.attention, layer.mlp
    cos, sin, interleaved = (None, None, False) if rope is None else (rope.cos, rope.sin, rope.interleaved)
    numbers = [heads.h, heads.g, heads.d, int(interleaved), attention.window, ACTIVATIONS[mlp.activation], int(norms[0].kind == "rms")]
    weights = _weights((*layer.qkv, layer.o, *mlp.gate_up, mlp.down))
    return parts, scalars, *weights, [len(layer.qkv), len(mlp.gate_up)], cos, sin, numbers, attention.scale, attention.softcap
