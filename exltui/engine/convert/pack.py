"""From codes and scales to the tensors of an EXL2 file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import pack_columns, pack_nibbles
from exltui.errors import ModelError


@dataclass(frozen=True, slots=True)
class Width:
    """A share of a layer's rows: ``bits`` bits for ``fraction`` of them, in groups of ``group`` rows."""

    bits: int
    fraction: float
    group: int


@dataclass(frozen=True, slots=True)
class QuantisedGroup:
    """``codes`` [r, n] i32, 0 .. 2^bits - 1; ``steps`` [n] i32, 1 .. 16; ``scale_max`` [] f16."""

    bits: int
    codes: Tensor
    steps: Tensor
    scale_max: Tensor


def split_rows(k: int, widths: Sequence[Width]) -> list[tuple[int, int]]:
    """(bits, rows) of each group of a layer with ``k`` in-features, widths in descending order; the last group may be short.

    Raises ModelError if the fractions leave rows over, or ``k`` is too small for them.
    """
    counts, left = [], k
    for width in widths:
        counts.append(math.ceil(min(k * width.fraction, left) / width.group))
        left -= counts[-1] * width.group
    if left > 0 or min(counts) < 0 or k % 32:
        raise ModelError(
            f"a layer with {k} in-features cannot be cut into groups of {', '.join(f'{w.group} rows at {w.bits} bits' for w in widths)}",
            "EXL2 wants multiples of 32 in-features, and more of them for several widths",
        )
    groups, left = [], k
    for width, count in zip(widths, counts, strict=True):
        for _ in range(count):
            if left > 0:
                groups.append((width.bits, min(width.group, left)))
            left -= width.group
    return groups


def pack(groups: Sequence[QuantisedGroup], order: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of one layer by their suffix in the file. ``order`` [k] i64: the in-feature of each stored row."""
    words = [pack_columns(group.codes, group.bits) for group in groups]
    pairs, first = [], 0
    for group, part in zip(groups, words, strict=True):
        pairs += [group.bits, first]
        first += part.shape[0]
    if first > 32767:
        raise ModelError(f"a layer of {order.shape[0]} in-features has {first} packed rows, EXL2 can number 32,767", "use fewer bits")
    tensors = {
        "q_weight": torch.cat(words),
        "q_invperm": torch.argsort(order).to(torch.int32),
        "q_scale": pack_nibbles(torch.stack([group.steps - 1 for group in groups])),
        "q_scale_max": torch.stack([group.scale_max for group in groups]),
        "q_groups": torch.tensor(pairs, dtype=torch.int16),
    }
    return tensors if bias is None else {**tensors, "bias": bias.half()}
