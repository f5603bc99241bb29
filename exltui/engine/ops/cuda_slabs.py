"""Low-bit weights as fp16 rows for cuBLAS, in slabs that bound the memory for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exltui.engine.ops.cuda_layout import DENSE_BITS, TILE, Packed
from exltui.engine.ops.types import Weight

SLAB = 1 << 27  # fp16 values at a time: 256 MB

_native: Any = torch.ops.exltui_cuda


def columns(weight: Weight) -> int:
    """Tiles of 32 out-features."""
    return -(-weight.shape[0] // TILE)


def panels(weights: Sequence[Any], *, gated: bool = False) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Words, scales and fields of all panels. Weights lie side by side in the output, or share units as the halves of a gate."""
    words, scales, fields, unit = [], [], [], 0
    for index, weight in enumerate(weights):
        first, part = (0, index) if gated else (unit, 0)
        if isinstance(weight, Packed):
            for panel in weight.panels:
                words.append(panel.words)
                scales.append(panel.scales)
                fields += [panel.tag, panel.tiles, panel.columns, panel.group_shift, panel.first_tile, first, part]
        else:
            words.append(weight.weight)
            scales.append(weight.weight)
            fields += [DENSE_BITS, -(-weight.shape[1] // TILE), columns(weight), 0, 0, first, part]
        unit += columns(weight)
    return words, scales, fields


def slabs(weights: Sequence[Any]) -> Iterator[tuple[Tensor | None, Tensor]]:
    """The weights as fp16 rows [.., k] one below the other, with the order of x that they need: neighbours with the same order together."""
    for group in _groups(weights):
        first = group[0]
        if not isinstance(first, Packed):
            yield None, first.weight
            continue
        units = sum(columns(weight) for weight in group)
        step = max(SLAB // (TILE * first.k), 1)
        for start in range(0, units, step):
            shape = (min(step, units - start) * TILE, first.k)
            slab = torch.empty(shape, dtype=torch.float16, device=first.panels[0].words.device)
            _native.dequantise(slab, *panels(group), start)
            yield first.order, slab


def _groups(weights: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Neighbours that can lie in one slab: low-bit ones with one order of x."""
    group: list[Any] = []
    for weight in weights:
        if group and not (isinstance(weight, Packed) and isinstance(group[0], Packed) and weight.order is group[0].order):
            yield tuple(group)
            group = []
        group.append(weight)
    yield tuple(group)
