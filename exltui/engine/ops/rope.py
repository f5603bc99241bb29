"""Rotary position tables. Formulas: the model families' own papers, as collected in docs/models.md; angles in f32, tables in f32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exltui.engine.ops.types import Rope


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """A change to the frequencies that a model was trained with. Fields beside ``factor`` belong to ``llama3``."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What a model's RoPE is: base theta, rotated width of a head, pairing, scaling, and the user's NTK alpha."""

    theta: float
    width: int
    interleaved: bool = False
    scaling: RopeScaling | None = None
    alpha: float = 1.0  # NTK: theta becomes theta * alpha^(width / (width - 2))


def frequencies(spec: RopeSpec) -> Tensor:
    """The angle that each pair turns from one position to the next -> [width / 2] f32."""
    theta = spec.theta * spec.alpha ** (spec.width / (spec.width - 2)) if spec.alpha != 1.0 else spec.theta
    turns = 1.0 / theta ** (torch.arange(0, spec.width, 2, dtype=torch.int64).float() / spec.width)
    if spec.scaling is None:
        return turns
    if spec.scaling.kind == "linear":
        return turns / spec.scaling.factor
    return _llama3(turns, spec.scaling)


def _llama3(turns: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: slow frequencies divided by the factor, fast ones kept, a smooth passage between the two wavelengths."""
    wavelength = 2 * math.pi / turns
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * turns / scaling.factor + smooth * turns
    return torch.where(wavelength > low, turns / scaling.factor, torch.where(wavelength < high, turns, between))


def tables(spec: RopeSpec, positions: int, device: torch.device | str = "cpu") -> Rope:
    """cos and sin for positions 0 .. ``positions`` - 1."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies(spec))
    return Rope(angles.cos().to(device), angles.sin().to(device), spec.interleaved)
