"""A job's sampler: its settings, its seed, and what the penalties, DRY, mirostat and adaptive-p have to remember."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exltui import sampling as table
from exltui.engine.ops.sample import COLDEST, Penalties, Rule, SampleParams, Seat, Tally
from exltui.protocol import Sampling

Array = np.ndarray[Any, np.dtype[Any]]
Shift = tuple[Array, Array]  # distinct ids, and what is added to their logits

NEAR = 256  # ids of a history that are compared with those of last time; no rewind goes on for longer between two draws
POINTS = 64  # random points that are made together
STRONGEST = 1e6  # a DRY penalty is at most this; it excludes a token as well as more would


def new_seed() -> int:
    return secrets.randbits(48)


class Sampler:
    """Turns a job's settings and history into the parameters of its next draw. Raises SamplingError for a bad setting.

    The random point of the token at ``position`` is a function of (seed, position) alone (Philox counter), so that neither other jobs in
    the batch nor a rewind change what a seed gives. ``ids_with`` gives the ids whose text holds one of some characters, and the special
    ones. ``bias`` is added to the logits of its ids; -inf bans. Only ``allowed`` ids can be drawn, if given, of the first ``width``.
    """

    def __init__(
        self,
        sampling: Sampling,
        ids_with: Callable[[str], Collection[int]] = lambda characters: (),
        *,
        bias: Mapping[int, float] | None = None,
        allowed: Collection[int] | None = None,
        width: int = 0,
    ) -> None:
        table.validate(sampling)
        self.sampling = s = sampling
        self.seed = new_seed() if s.seed is None else s.seed
        self.greedy = s.temperature < COLDEST
        self.width = width
        self._rules = (Rule("top_k", 1),) if self.greedy else rules(s)
        self._feedback = Feedback(s) if not self.greedy and (s.mirostat or s.adaptive_target < 1.0) else None
        self._history = History()
        penalises = s.token_repetition_penalty != 1.0 or s.token_presence_penalty or s.token_frequency_penalty
        self._occurrences = Occurrences(s.token_repetition_range, s.token_repetition_decay) if penalises else None
        self._dry = Dry(s, ids_with(s.dry_sequence_breakers)) if s.dry_multiplier > 0.0 else None
        self._bias = (np.array(list(bias), dtype=np.int64), np.array(list(bias.values()), dtype=np.float32)) if bias else None
        self._allowed = None if allowed is None else bits(allowed, width)
        spares = sorted(ids_with(s.xtc_ignore_tokens)) if s.xtc_probability > 0.0 else []
        self._spared = torch.tensor(spares, dtype=torch.int64) if spares else None
        self._points: tuple[int, list[float]] = (-1, [])  # the first position, and the points from there on

    @property
    def observes(self) -> bool:
        """Whether ``observe`` must be told what was drawn."""
        return self._feedback is not None

    def params(self, history: list[int], position: int, mask: Tensor | None = None, banned: Collection[int] = ()) -> SampleParams:
        """For the token at ``position``, after the ids of ``history`` (prompt and reply).

        ``mask``: bits of what a grammar allows; ``banned``: ids that must not come here.
        """
        s = self.sampling
        penalties, shift = None, self._bias
        if self._occurrences or self._dry:
            kept = self._history.follow(history, self._occurrences)
            if self._occurrences:
                penalties = Penalties(
                    s.token_repetition_penalty, s.token_presence_penalty, s.token_frequency_penalty, *self._occurrences.of(kept)
                )
            if self._dry:
                shift = _joined(shift, self._dry.shift(kept))
        if banned:
            shift = _joined(shift, (np.array(sorted(banned), dtype=np.int64), np.full(len(banned), -math.inf, dtype=np.float32)))
        if self._allowed is not None:
            mask = self._allowed if mask is None else self._allowed & mask
        return SampleParams(
            rules=self._feedback.aimed(self._rules, position) if self._feedback else self._rules,
            point=self.point(position),
            penalties=penalties,
            shift=None if shift is None else (torch.from_numpy(shift[0]), torch.from_numpy(shift[1])),
            mask=mask,
            spared=self._spared,
            width=self.width,
        )

    def point(self, position: int) -> float:
        """The random point of the token at ``position``."""
        if self.greedy:
            return 0.0
        first = position - position % POINTS
        if self._points[0] != first:
            self._points = first, uniform(self.seed, first, POINTS)
        return self._points[1][position - first]

    def seat(self, history: list[int], room: int) -> Seat | None:
        """What the next ``room`` draws after ``history`` need; None where each depends on what the host makes of the last."""
        s = self.sampling
        if self._feedback or self._dry:
            return None
        penalties = (s.token_repetition_penalty, s.token_presence_penalty, s.token_frequency_penalty)
        tally = Tally(tuple(history), room, s.token_repetition_range, s.token_repetition_decay, *penalties) if self._occurrences else None
        shift = None if self._bias is None else (torch.from_numpy(self._bias[0]), torch.from_numpy(self._bias[1]))
        return Seat(SampleParams(self._rules, 0.0, None, shift, self._allowed, self._spared, self.width), tally)

    def observe(self, position: int, probability: float, prior: float) -> None:
        """The token at ``position`` was drawn; it had these probabilities (see the row ``sample``)."""
        if self._feedback:
            self._feedback.observe(position, probability, prior)


def rules(s: Sampling) -> tuple[Rule, ...]:
    """The stages that are on, in their order."""
    dynamic = s.max_temp > s.min_temp
    found = {
        "top_n_sigma": Rule("top_n_sigma", s.top_n_sigma) if s.top_n_sigma > 0 else None,
        "smoothing": Rule("smoothing", s.smoothing_factor) if s.smoothing_factor > 0 else None,
        "temperature": Rule("temperature", s.temperature) if s.temperature != 1.0 and not (s.temperature_last and dynamic) else None,
        "top_k": Rule("top_k", s.top_k) if s.top_k > 0 else None,
        "top_p": Rule("top_p", s.top_p) if 0.0 < s.top_p < 1.0 else None,
        "top_a": Rule("top_a", s.top_a) if s.top_a > 0 else None,
        "min_p": Rule("min_p", s.min_p) if s.min_p > 0 else None,
        "tfs": Rule("tfs", s.tfs) if 0.0 < s.tfs < 1.0 else None,
        "typical": Rule("typical", s.typical) if 0.0 < s.typical < 1.0 else None,
        "mirostat": Rule("mirostat") if s.mirostat else None,
        "dynamic_temperature": Rule("dynamic_temperature", s.min_temp, s.max_temp, s.temp_exponent) if dynamic else None,
        "xtc": Rule("xtc", s.xtc_probability, s.xtc_threshold) if s.xtc_probability > 0 else None,
        "adaptive": Rule("adaptive") if s.adaptive_target < 1.0 else None,
    }
    shaped = [rule for stage in table.stages(s) if (rule := found[stage]) is not None]
    return (*shaped, *([Rule("skew", s.skew)] if s.skew else []))


class Feedback:
    """Mirostat's bound and adaptive-p's average, which follow the tokens that were drawn. A rewind goes back to what they were."""

    def __init__(self, s: Sampling) -> None:
        self._s = s
        mu = 2.0 * s.mirostat_tau if s.mirostat_mu is None else s.mirostat_mu
        weight = 1.0 / (1.0 - s.adaptive_decay)
        self._states = [(-1, mu, s.adaptive_target * weight, weight)]  # position; then what holds behind it

    def aimed(self, rules: tuple[Rule, ...], position: int) -> tuple[Rule, ...]:
        """``rules`` with the numbers that hold for the draw at ``position``."""
        while self._states[-1][0] >= position:
            self._states.pop()
        _, mu, total, weight = self._states[-1]
        target = min(max(2.0 * self._s.adaptive_target - total / weight, 0.0), 1.0)
        numbers = {"mirostat": mu, "adaptive": target}
        return tuple(Rule(rule.stage, numbers[rule.stage]) if rule.stage in numbers else rule for rule in rules)

    def observe(self, position: int, probability: float, prior: float) -> None:
        s = self._s
        _, mu, total, weight = self._states[-1]
        mu += s.mirostat_eta * (s.mirostat_tau + math.log2(max(probability, 1e-30)))
        self._states.append((position, mu, prior + s.adaptive_decay * total, 1.0 + s.adaptive_decay * weight))


class History:
    """The ids of a history as an array, of which only what is new is copied."""

    def __init__(self) -> None:
        self._ids = np.zeros(1024, dtype=np.int64)
        self._length = 0

    def follow(self, history: list[int], occurrences: Occurrences | None) -> Array:
        """[n] i64. ``occurrences`` forgets what was taken back since last time."""
        same = min(self._length, len(history))
        near = max(same - NEAR, 0)
        differ = np.flatnonzero(self._ids[near:same] != np.array(history[near:same], dtype=np.int64))
        same = near + int(differ[0]) if len(differ) else same
        if occurrences:
            occurrences.forget(self._ids[: self._length], same)
        if len(history) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(len(history), dtype=np.int64)])
        self._ids[same : len(history)] = history[same:]
        self._length = len(history)
        return self._ids[: self._length]


class Occurrences:
    """How often each token occurs among the last ``window`` of a history (of all, if negative), fading over ``decay`` more."""

    def __init__(self, window: int, decay: int) -> None:
        self._window, self._decay = window, decay
        self._counts = np.zeros(0, dtype=np.float32)  # by token id, of ids[_start:_end]
        self._start = self._end = 0

    def forget(self, ids: Array, length: int) -> None:
        """Of ``ids`` only the first ``length`` are still true."""
        self._add(ids[max(length, self._start) : self._end], -1.0)
        self._end = min(self._end, length)
        self._start = min(self._start, self._end)

    def of(self, ids: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct token ids [m] i64, what share of a penalty each takes [m] f32, and how often it occurred [m] f32."""
        start = max(len(ids) - self._window, 0) if self._window >= 0 else 0
        self._add(ids[self._end :], 1.0)
        self._add(ids[self._start : start], -1.0)
        self._add(ids[start : self._start], 1.0)
        self._start, self._end = start, len(ids)
        fading = ids[max(start - self._decay, 0) : start]
        if not len(fading):
            seen = np.flatnonzero(self._counts)
            return torch.from_numpy(seen), torch.ones(len(seen)), torch.from_numpy(self._counts[seen])
        share = 1.0 - np.arange(len(fading), 0, -1, dtype=np.float32) / (self._decay + 1)
        weights = np.minimum(self._counts, 1.0)
        counts = self._counts.copy()
        np.maximum.at(weights, fading, share)
        np.add.at(counts, fading, share)
        seen = np.flatnonzero(counts)
        return torch.from_numpy(seen), torch.from_numpy(weights[seen]), torch.from_numpy(counts[seen])

    def _add(self, ids: Array, by: float) -> None:
        if not len(ids):
            return
        highest = int(ids.max())
        if highest >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(highest + 1 - len(self._counts), dtype=np.float32)])
        np.add.at(self._counts, ids, by)


class Dry:
    """Don't Repeat Yourself: what would go on with a passage that the history ends with and had before is lowered.

    The penalty of a token is ``multiplier * base ** (L - allowed)``, where L is the length of the longest such passage that it followed.
    A passage reaches back to the nearest breaker, at most ``dry_max_ngram`` tokens. After p-e-w's DRY.
    """

    def __init__(self, s: Sampling, breakers: Collection[int]) -> None:
        self._s = s
        self._breakers = frozenset(breakers)

    def shift(self, ids: Array) -> Shift | None:
        """Distinct ids and what is added to their logits, or None."""
        s = self._s
        if s.dry_range:
            ids = ids[max(len(ids) - s.dry_range, 0) :]
        longest = self._reach(ids)
        if longest < s.dry_allowed_length:
            return None
        last = len(ids) - 1
        ends = np.flatnonzero(ids[:last] == ids[last])  # where what came before ends
        lengths = np.zeros(len(ids), dtype=np.int64)
        for length in range(1, longest + 1):
            lengths[ends] = length
            ends = ends[ends >= length]
            ends = ends[ids[ends - length] == ids[last - length]] if length < longest else ends
        found = np.flatnonzero(lengths >= s.dry_allowed_length)
        if not len(found):
            return None
        tokens, index = np.unique(ids[found + 1], return_inverse=True)
        deepest = np.zeros(len(tokens), dtype=np.int64)
        np.maximum.at(deepest, index, lengths[found])
        exponent = np.minimum((deepest - s.dry_allowed_length) * math.log(s.dry_base), math.log(STRONGEST))
        return tokens, -np.minimum(s.dry_multiplier * np.exp(exponent), STRONGEST).astype(np.float32)

    def _reach(self, ids: Array) -> int:
        """Tokens behind the last breaker, at most the longest passage that counts."""
        most = min(self._s.dry_max_ngram, len(ids) - 1)
        tail = ids[len(ids) - most :].tolist() if most > 0 else []
        return next((i for i, token in enumerate(reversed(tail)) if token in self._breakers), len(tail))


def _joined(left: Shift | None, right: Shift | None) -> Shift | None:
    if left is None or right is None:
        return right if left is None else left
    ids, index = np.unique(np.concatenate([left[0], right[0]]), return_inverse=True)
    values = np.zeros(len(ids), dtype=np.float32)
    np.add.at(values, index, np.concatenate([left[1], right[1]]))
    return ids, values


def bits(ids: Collection[int], width: int) -> Tensor:
    """[width / 32] i32 with bit ``id % 32`` of word ``id / 32`` set for each id, as the row ``sample`` takes a mask."""
    array = np.fromiter(ids, dtype=np.int64, count=len(ids))
    flags = np.zeros(-(-width // 32) * 32, dtype=np.uint8)
    flags[array] = 1
    return torch.from_numpy(np.packbits(flags, bitorder="little").view(np.int32))


def uniform(seed: int, position: int, count: int = 1) -> list[float]:
    """Points in [0, 1) for ``count`` positions from ``position`` on. Each depends on nothing but ``seed`` and its position."""
    raw = np.random.Philox(key=seed, counter=position).random_raw(4 * count)[::4]  # a counter gives four numbers
    points: list[float] = ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    return points
