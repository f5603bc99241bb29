"""The scales of one EXL2 group: a 4-bit step for each column, and one multiplier for the group found by trying 97 of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 96  # steps between the least and the greatest multiplier
LEAST, GREATEST = 0.70, 1.2


@dataclass(frozen=True, slots=True)
class GroupScales:
    """``steps`` [n] i32, 1 .. 16; ``scale_max`` [] f16; ``scale`` [n] f16 is what a reader of the file multiplies codes with."""

    steps: Tensor
    scale_max: Tensor
    scale: Tensor


def search(rows: Tensor, bits: int) -> GroupScales:
    """The scales for ``rows`` [r, n] f32 at ``bits`` bits: the first multiplier with the least sum of |error|^3.5."""
    steps, top = column_steps(rows, bits)
    best = _multiplier(int(grid_errors(rows, bits).argmin()))
    scale_max = (top * best).half()
    return GroupScales(steps, scale_max, file_scale(steps, scale_max))


def column_steps(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Each column's step [n] i32 and the greatest column scale [] f32. A step r stands for a scale of (r / 16)^2 of the greatest."""
    base = (rows.abs().amax(0) + 1e-12) / (((1 << bits) - 1) / 2)
    top = base.max()
    return (16 * torch.sqrt(base / top)).round().clamp(1, 16).to(torch.int32), top


def grid_errors(rows: Tensor, bits: int) -> Tensor:
    """The sum of |error|^3.5 for each of the 97 multipliers -> [97] f64. Sums are f64, so that no order of adding decides."""
    steps, top = column_steps(rows, bits)
    scale = (steps.float() / 16).square() * top
    half = 1 << (bits - 1)
    sums = []
    for i in range(GRID + 1):
        trial = scale * _multiplier(i)
        error = ((rows / trial).round_().clamp_(-half, half - 1).mul_(trial) - rows).abs_()
        sums.append((error.sqrt() * error * error * error).sum(dtype=torch.float64))
    return torch.stack(sums)


def file_scale(steps: Tensor, scale_max: Tensor) -> Tensor:
    """What a reader computes, rounding twice: RN16(step^2 * RN16(scale_max / 256)) -> f16."""
    return ((steps * steps).float() * (scale_max.float() / 256).half().float()).half()


def _multiplier(index: int) -> Tensor:
    """In f32, as the format's own quantiser rounds it."""
    part = torch.tensor(index, dtype=torch.float32) / GRID
    return LEAST * (1 - part) + GREATEST * part
