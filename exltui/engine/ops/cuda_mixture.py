"""Rows of the op table on GPUs beside those of a Llama-like layer: routers and experts, adapters, norms after a block, fp32 residuals.

As in ``cuda``, each function takes the arguments of its reference, and what its kernels do not cover goes to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from exltui.engine.ops import cuda, references
from exltui.engine.ops.cuda_layout import DENSE_BITS, TILE, Packed
from exltui.engine.ops.references import expect
from exltui.engine.ops.table import register_native
from exltui.engine.ops.types import Activation, Expert, Norm, Routing, Weight

KINDS = {"rms": 1.0, "layer": 2.0}
ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu": 3, "clamped_swiglu": 4}
FEW = 32  # tokens for which each slot reads its expert by itself; more are brought together by expert
NO_NORM = [0.0, 0.0, 0.0]
MAX_EXPERTS = 6144  # what the choice has room for

_native: Any = torch.ops.exltui_cuda
_tables: Any = WeakIdKeyDictionary()  # by a tensor of the first expert: the table of a layer's experts


def enter() -> None:
    """Enter the rows of the extension, which is loaded, in the table."""
    for function in (normed, norm_add, activate, lora_add, route, experts):
        register_native("cuda", function.__name__, function)


def _takes(*rows: Tensor) -> bool:
    return all(x.dtype in (torch.float16, torch.float32) and x.dim() == 2 for x in rows)


def _parts(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, list[float]]:
    return (None, None, NO_NORM) if norm is None else (norm.weight, norm.bias, [norm.eps, norm.offset, KINDS[norm.kind]])


# ── norms, activations, adapters ─────────────────────────────────────────────────────────────────────────────────────────────────


def normed(x: Tensor, norm: Norm | None, dtype: torch.dtype) -> Tensor:
    if not _takes(x) or dtype not in (torch.float16, torch.float32):
        return references.normed(x, norm, dtype)
    return _native.norm_add(x.contiguous(), *_parts(norm), None, 1.0, dtype)


def norm_add(x: Tensor, norm: Norm, residual: Tensor, scale: float = 1.0) -> Tensor:
    expect("norm_add", "t of residual", residual.shape[0], x.shape[0])
    if not _takes(x, residual):
        return references.norm_add(x, norm, residual, scale)
    return _native.norm_add(x.contiguous(), *_parts(norm), residual.contiguous(), scale, residual.dtype)


def activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    if x.dtype != torch.float16:
        return references.activate(x, activation, gated)
    return _native.activate_rows(x.contiguous(), ACTIVATIONS[activation], gated)


def lora_add(y: Tensor, x: Tensor, norm: Norm | None, a: Tensor, b: Tensor, mix: Tensor, scale: float = 1.0) -> Tensor:
    expect("lora_add", "k of x", x.shape[-1], a.shape[1])
    expect("lora_add", "n of y", y.shape[-1], b.shape[0])
    expect("lora_add", "r of mix", mix.shape[-1], a.shape[0])
    if not _takes(x, y) or a.dtype != torch.float16 or b.dtype != torch.float16:
        return references.lora_add(y, x, norm, a, b, mix, scale)
    if x.shape[0] > FEW:
        inner = torch.mm(normed(x, norm, torch.float16), a.t()).float() * mix
        return (y.float() + torch.mm(inner, b.float().t()) * scale).to(y.dtype)
    inner = _native.row_dots(x.contiguous(), *_parts(norm), a.contiguous(), None, mix.float().contiguous())
    result = y.clone(memory_format=torch.contiguous_format)
    _native.add_ranks(result, inner, b.contiguous(), scale)
    return result


# ── mixtures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def route(x: Tensor, norm: Norm | None, router: Any, routing: Routing) -> Tensor:
    expect("route", "k of x", x.shape[-1], router.shape[1])
    if not _routes(router) or not _takes(x):
        return references.route(x, norm, router, routing)
    logits = _native.row_dots(x.contiguous(), *_parts(norm), router.weight, router.bias, None)
    return _native.choose(logits, routing.correction, routing.top, routing.renormalise)


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
    expect("experts", "e of weights", weights.shape[1], len(experts))
    expect("experts", "t of weights", weights.shape[0], x.shape[0])
    found = _table(experts) if _takes(x, residual) else None
    if found is None:
        return references.experts(x, norm, weights, experts, activation, residual, scale, most)
    weights = weights.float().contiguous()
    if x.shape[0] > FEW:
        return _by_expert(x, norm, weights, experts, activation, residual, scale)
    table, width = found
    shape = [min(most or len(experts), len(experts)), width, ACTIVATIONS[activation], int(len(experts[0].gate_up) == 2)]
    return _native.experts(x.contiguous(), *_parts(norm), weights, table, residual.contiguous(), scale, shape)


def _by_expert(
    x: Tensor, norm: Norm | None, weights: Tensor, experts: tuple[Expert, ...], activation: Activation, residual: Tensor, scale: float
) -> Tensor:
    """Many tokens: those of an expert together, one expert after the other. Waits for the GPU once, to know how many each has."""
    y, total = normed(x, norm, torch.float16), residual.to(torch.float32, copy=True)
    taken = (weights != 0).t()
    rows, ends = taken.nonzero()[:, 1], taken.sum(1).cumsum(0).tolist()
    for index, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if start == end:
            continue
        here = rows[start:end]
        inner = _gate_up(y[here], experts[index].gate_up, activation)
        given = cuda.norm_head(inner, None, experts[index].down)
        total.index_add_(0, here, given * (weights[here, index] * scale).unsqueeze(1))
    return total.to(residual.dtype)


def _gate_up(x: Tensor, weights: tuple[Weight, ...], activation: Activation) -> Tensor:
    if activation in cuda.ACTIVATIONS:
        return cuda.norm_gate_up(x, None, weights, activation)
    return activate(cuda.norm_linear(x, None, weights), activation, len(weights) == 2)


def _routes(router: Any) -> bool:
    return not isinstance(router, Packed) and router.weight.dtype == torch.float16 and router.shape[0] <= MAX_EXPERTS


def mixes(router: Any, experts: Sequence[Expert]) -> bool:
    """Whether a mixture of experts runs as kernels for few tokens: such a step can be captured in a graph."""
    return _routes(router) and fit(experts)


def fit(experts: Sequence[Expert]) -> bool:
    """Whether the kernels read them: f16 or packed, in-features in whole pieces of 16 bytes."""
    every = [weight for expert in experts for weight in (*expert.gate_up, expert.down)]
    same = len({len(expert.gate_up) for expert in experts}) == 1
    return same and all(w.shape[1] % 8 == 0 and (isinstance(w, Packed) or w.dense().dtype == torch.float16) for w in every)


def _table(experts: tuple[Expert, ...]) -> tuple[Tensor, int] | None:
    """The table of ``mixture.cuh`` in device memory, and the width of the widest expert in whole tiles; None where they do not ``fit``."""
    down: Any = experts[0].down
    key = down.panels[0].words if isinstance(down, Packed) else getattr(down, "weight", None)
    if key is None:
        return None
    if key not in _tables:
        _tables[key] = _build_table(experts, key.device) if fit(experts) else None
    return _tables[key]


def _build_table(experts: tuple[Expert, ...], device: torch.device) -> tuple[Tensor, int]:
    matrices: list[list[int]] = []
    panels: list[list[int]] = []
    for expert in experts:
        gate = expert.gate_up[0] if len(expert.gate_up) == 2 else None
        for weight in (gate, expert.gate_up[-1], expert.down):
            first, found = len(panels), [] if weight is None else _panels(weight)
            panels += found
            order, bias = getattr(weight, "order", None), None if weight is None else weight.bias
            addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (order, bias)]
            matrices.append([*addresses, first, len(found), *((0, 0) if weight is None else weight.shape)])
    width = max(-(-expert.down.shape[1] // TILE) * TILE for expert in experts)
    return torch.tensor(matrices + panels, dtype=torch.int64).to(device), width


def _panels(weight: Any) -> list[list[int]]:
    if not isinstance(weight, Packed):
        return [[weight.weight.data_ptr(), 0, DENSE_BITS, -(-weight.shape[1] // TILE), 0, 0]]
    return [[p.words.data_ptr(), p.scales.data_ptr(), p.tag, p.tiles, p.group_shift, p.first_tile] for p in weight.panels]
