"""A job's sampler: its settings, its seed, and what the penalties have to remember."""

from __future__ import annotations

import math
import secrets
from dataclasses import fields

import numpy as np
import torch

from exltui.engine.ops.sample import SampleParams
from exltui.errors import SamplingError
from exltui.protocol import Sampling

# Smallest and largest sensible value of each setting.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1_000_000),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "token_repetition_penalty": (0.01, 100.0),
    "token_presence_penalty": (-100.0, 100.0),
    "token_frequency_penalty": (-100.0, 100.0),
    "token_repetition_range": (-1, 100_000_000),
    "seed": (0, 2**63 - 1),
}
COLDEST = 0.01  # below, exp(logit / temperature) loses all but the largest; such a temperature is greedy


def validate(sampling: Sampling) -> None:
    """Raise SamplingError for a value outside its range."""
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        low, high = RANGES[field.name]
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise SamplingError(
                f"{field.name} is {value}, it must lie between {low:g} and {high:g}", "docs/sampling.md explains each setting"
            )


def new_seed() -> int:
    return secrets.randbits(48)


class Sampler:
    """Turns a job's settings and history into the parameters of its next draw.

    The random point of the token at ``position`` is a function of (seed, position) alone (Philox counter), so that neither other jobs in
    the batch nor a rewind change what a seed gives.
    """

    def __init__(self, sampling: Sampling) -> None:
        validate(sampling)
        self.sampling = sampling
        self.seed = new_seed() if sampling.seed is None else sampling.seed

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < COLDEST or self.sampling.top_k == 1

    @property
    def penalises(self) -> bool:
        s = self.sampling
        some = s.token_repetition_penalty != 1.0 or bool(s.token_presence_penalty) or bool(s.token_frequency_penalty)
        return some and s.token_repetition_range != 0

    def params(self, history: list[int], position: int) -> SampleParams:
        """For the token at ``position``, after the ids of ``history`` (prompt and reply)."""
        s = self.sampling
        seen = counts = None
        if self.penalises:
            window = history if s.token_repetition_range < 0 else history[-s.token_repetition_range :]
            seen, occurrences = torch.unique(torch.tensor(window, dtype=torch.int64), return_counts=True)
            counts = occurrences.float()
        return SampleParams(
            0.0 if self.greedy else s.temperature,
            s.top_k,
            s.top_p,
            s.min_p,
            s.token_repetition_penalty,
            s.token_presence_penalty,
            s.token_frequency_penalty,
            seen,
            counts,
            0.0 if self.greedy else uniform(self.seed, position),
        )


def uniform(seed: int, position: int) -> float:
    """A point in [0, 1) that depends on nothing but ``seed`` and ``position``."""
    bits = np.random.Philox(key=seed, counter=position).random_raw()
    return float(bits >> 11) * 2.0**-53
