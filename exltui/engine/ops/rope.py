"""Rotary position tables. Formulas: the model families' own papers, as collected in docs/models.md; angles in f32, tables in f32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.ops.types import Rope


@dataclass(frozen=True, slots=True)
class LinearScaling:
    factor: float
    kind: str = "linear"


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """NTK by length: beyond the trained context theta grows with the context that is loaded."""

    factor: float
    trained: int
    kind: str = "dynamic"


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int
    kind: str = "llama3"


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """``magnitude`` multiplies cos and sin; None: 0.1 ln(factor) + 1."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float | None = None
    truncate: bool = True
    kind: str = "yarn"


@dataclass(frozen=True, slots=True)
class LongScaling:
    """LongRoPE: each frequency has its own factor, ``long`` ones where more than the original context is loaded."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    magnitude: float
    kind: str = "longrope"


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What a model's RoPE is: base theta, rotated width of a head, pairing, scaling, and the user's NTK alpha."""

    theta: float
    width: int
    interleaved: bool = False
    scaling: Scaling | None = None
    alpha: float = 1.0  # NTK: theta becomes theta * alpha^(width / (width - 2))
    sections: tuple[int, ...] = ()  # M-RoPE: pairs that follow each plane of positions

    def base(self, positions: int) -> float:
        """Theta after NTK, for a context of ``positions``."""
        stretch = self.alpha
        if isinstance(self.scaling, DynamicScaling) and positions > self.scaling.trained:
            stretch *= self.scaling.factor * positions / self.scaling.trained - (self.scaling.factor - 1)
        return self.theta * stretch ** (self.width / (self.width - 2)) if stretch != 1.0 else self.theta

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        if isinstance(self.scaling, YarnScaling):
            factor = self.scaling.factor
            plain = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
            return plain if self.scaling.magnitude is None else self.scaling.magnitude
        return self.scaling.magnitude if isinstance(self.scaling, LongScaling) else 1.0


def frequencies(spec: RopeSpec, positions: int) -> Tensor:
    """The angle that each pair turns from one position to the next, where ``positions`` are loaded -> [width / 2] f32."""
    theta, scaling = spec.base(positions), spec.scaling
    turns = 1.0 / theta ** (torch.arange(0, spec.width, 2, dtype=torch.int64).float() / spec.width)
    if isinstance(scaling, LinearScaling):
        return turns / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(turns, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(turns, theta, scaling)
    if isinstance(scaling, LongScaling):
        return turns / torch.tensor(scaling.long if positions > scaling.original_context else scaling.short)
    return turns


def _llama3(turns: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1: slow frequencies divided by the factor, fast ones kept, a smooth passage between the two wavelengths."""
    wavelength = 2 * math.pi / turns
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * turns / scaling.factor + smooth * turns
    return torch.where(wavelength > low, turns / scaling.factor, torch.where(wavelength < high, turns, between))


def _yarn(turns: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    """YaRN (arXiv 2309.00071): pairs that turn often within the original context are kept, rare ones divided, a ramp in between."""
    half = len(turns)

    def pair_that_turns(times: float) -> float:
        return half * math.log(scaling.original_context / (times * 2 * math.pi)) / math.log(theta)

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return turns / scaling.factor * ramp + turns * (1 - ramp)


def tables(spec: RopeSpec, positions: int, device: torch.device | str = "cpu") -> Rope:
    """cos and sin for positions 0 .. ``positions`` - 1."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies(spec, positions))
    cos, sin = angles.cos() * spec.magnitude, angles.sin() * spec.magnitude
    return Rope(cos.to(device), sin.to(device), spec.interleaved, spec.sections)
