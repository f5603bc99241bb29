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
WHOLE = ("top_k", "token_repetition_range", "seed")
COLDEST = 0.01  # below, exp(logit / temperature) loses all but the largest; such a temperature is greedy


def validate(sampling: Sampling) -> None:
    """Raise SamplingError for a value that is no number, or outside its range."""
    hint = "docs/sampling.md explains each setting"
    for field in fields(sampling):
        name, value = field.name, getattr(sampling, field.name)
        low, high = RANGES[name]
        if value is None and name == "seed":
            continue
        if not isinstance(value, int if name in WHOLE else (int, float)):
            raise SamplingError(f"{name} is {value!r}, it must be a {'whole ' if name in WHOLE else ''}number", hint)
        if not (math.isfinite(value) and low <= value <= high):
            raise SamplingError(f"{name} is {value}, it must lie between {low:g} and {high:g}", hint)


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
        self.greedy = sampling.temperature < COLDEST or sampling.top_k == 1
        penalises = sampling.token_repetition_penalty != 1.0 or sampling.token_presence_penalty or sampling.token_frequency_penalty
        self._occurrences = Occurrences(sampling.token_repetition_range) if penalises else None

    def params(self, history: list[int], position: int) -> SampleParams:
        """For the token at ``position``, after the ids of ``history`` (prompt and reply)."""
        s = self.sampling
        seen, counts = self._occurrences.of(history) if self._occurrences else (None, None)
        return SampleParams(
            temperature=0.0 if self.greedy else s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            repetition=s.token_repetition_penalty,
            presence=s.token_presence_penalty,
            frequency=s.token_frequency_penalty,
            seen=seen,
            counts=counts,
            point=0.0 if self.greedy else uniform(self.seed, position),
        )


class Occurrences:
    """How often each token occurs among the last ``window`` of a history (of all, if negative). Counts only what is new since last time."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._counts = np.zeros(0, dtype=np.float32)  # by token id
        self._counted: list[int] = []
        self._start = 0  # counts are of _counted[_start:]

    def of(self, history: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct token ids [m] i64 and their counts [m] f32."""
        if history[: len(self._counted)] != self._counted:  # it was rewound
            self._counts[:] = 0
            self._counted, self._start = [], 0
        new = history[len(self._counted) :]
        highest = max(new, default=0)
        if highest >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(highest + 1 - len(self._counts), dtype=np.float32)])
        np.add.at(self._counts, np.array(new, dtype=np.int64), 1.0)
        self._counted += new
        start = max(len(history) - self._window, 0) if self._window >= 0 else 0
        np.subtract.at(self._counts, np.array(self._counted[self._start : start], dtype=np.int64), 1.0)
        self._start = start
        seen = np.flatnonzero(self._counts)
        return torch.from_numpy(seen), torch.from_numpy(self._counts[seen])


def uniform(seed: int, position: int) -> float:
    """A point in [0, 1) that depends on nothing but ``seed`` and ``position``."""
    bits = np.random.Philox(key=seed, counter=position).random_raw()
    return float(bits >> 11) * 2.0**-53
