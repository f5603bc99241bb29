"""The formulas of docs/sampling.md a second time: plain Python floats, one token at a time, no torch and no NumPy."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

from exltui.protocol import Sampling

DEFAULT_ORDER = (
    "top_n_sigma, smoothing, temperature, top_k, top_p, top_a, min_p, tfs, typical, mirostat, dynamic_temperature, xtc, adaptive"
)


def penalised(logits: list[float], s: Sampling, history: list[int]) -> list[float]:
    """The logits after repetition, presence and frequency penalties."""
    window = len(history) if s.token_repetition_range < 0 else s.token_repetition_range
    share: dict[int, float] = {}
    count: Counter = Counter()
    for age, token in enumerate(reversed(history)):
        if age < window:
            weight = 1.0
        elif age < window + s.token_repetition_decay:
            weight = 1.0 - (age - window + 1) / (s.token_repetition_decay + 1)
        else:
            break
        share[token] = max(share.get(token, 0.0), weight)
        count[token] += weight
    out = list(logits)
    for token, weight in share.items():
        if token < len(out):
            factor = 1.0 + (s.token_repetition_penalty - 1.0) * weight
            value = out[token] / factor if out[token] > 0 else out[token] * factor
            out[token] = value - s.token_presence_penalty * weight - s.token_frequency_penalty * count[token]
    return out


def dry(s: Sampling, history: list[int], breakers: frozenset[int]) -> dict[int, float]:
    """What DRY takes off each token's logit."""
    if s.dry_multiplier == 0:
        return {}
    if s.dry_range:
        history = history[-s.dry_range :]
    longest: dict[int, int] = {}
    for end in range(len(history) - 1):  # a passage that ended here was followed by history[end + 1]
        length = 0
        while length < s.dry_max_ngram and length <= end:
            token = history[len(history) - 1 - length]
            if token in breakers or history[end - length] != token:
                break
            length += 1
        longest[history[end + 1]] = max(longest.get(history[end + 1], 0), length)
    return {
        token: s.dry_multiplier * s.dry_base ** (length - s.dry_allowed_length)
        for token, length in longest.items()
        if length >= s.dry_allowed_length
    }


def softmax(scores: dict[int, float]) -> dict[int, float]:
    top = max(scores.values())
    weights = {i: math.exp(z - top) for i, z in scores.items()}
    total = math.fsum(weights.values())
    return {i: w / total for i, w in weights.items()}


def ranked(x: dict[int, float]) -> list[int]:
    return sorted(x, key=lambda i: (-x[i], i))


def reach(x: dict[int, float], order: list[int], mass: float) -> list[int]:
    """The first of ``order`` until their sum reaches ``mass``."""
    kept, total = [], 0.0
    for i in order:
        kept.append(i)
        total += x[i]
        if total >= mass:
            break
    return kept


def tail_free(x: dict[int, float], z: float) -> list[int]:
    order = ranked(x)
    if len(order) < 3:
        return order
    first = [x[a] - x[b] for a, b in pairwise(order)]
    second = [abs(a - b) for a, b in pairwise(first)]
    total = sum(second)
    if total == 0:
        return order
    kept, mass = 1, 0.0
    for value in second:
        mass += value / total
        if mass > z:
            break
        kept += 1
    return order[:kept]


def excluded(x: dict[int, float], s: Sampling, spared: frozenset[int]) -> dict[int, float]:
    """XTC: the probabilities after each of the best but the least likely of them was lowered."""
    best = [i for i in ranked(x) if x[i] >= s.xtc_threshold and i not in spared][:-1]
    taken = set(best)
    mass, others = sum(x[i] for i in best), sum(p for i, p in x.items() if i not in taken)
    if not best or others < 1e-9:
        return x
    rest = (others + s.xtc_probability * mass) / others
    return {i: p for i in x if (p := x[i] * (1 - s.xtc_probability if i in best else rest)) > 0}


def distribution(
    logits: list[float], s: Sampling, mu: float = 0.0, target: float = 0.0, spared: frozenset[int] = frozenset()
) -> dict[int, float]:
    """Probabilities by id. ``mu`` is mirostat's bound, ``target`` that of adaptive-p."""
    z = {i: float(value) for i, value in enumerate(logits) if value > -math.inf}
    top = max(z.values())
    z = {i: value - top for i, value in z.items()}
    order = s.order or DEFAULT_ORDER
    names = [part.strip() for part in order.split(",") if part.strip()]
    dynamic = s.max_temp > s.min_temp
    if s.temperature_last and not s.order:
        names.remove("temperature")
        if not dynamic:
            names.insert(names.index("dynamic_temperature"), "temperature")
    elif s.temperature_last and dynamic and "temperature" in names:
        names.remove("temperature")
    for name in names:
        if len(z) == 1:
            break
        z = _stage(name, z, s, mu, target, spared)
    return softmax(z)


def _stage(name: str, z: dict[int, float], s: Sampling, mu: float, target: float, spared: frozenset[int]) -> dict[int, float]:
    x = softmax(z)
    order, top = ranked(z), max(z.values())
    kept = order
    if name == "top_n_sigma" and s.top_n_sigma > 0:
        mean = sum(z.values()) / len(z)
        sigma = math.sqrt(sum((value - mean) ** 2 for value in z.values()) / len(z))
        kept = [i for i in order if z[i] >= top - s.top_n_sigma * sigma]
    elif name == "smoothing" and s.smoothing_factor > 0:
        return {i: -((top - value) ** 2) * s.smoothing_factor for i, value in z.items()}
    elif name == "temperature":
        return {i: (value - top) / s.temperature for i, value in z.items()}
    elif name == "top_k" and s.top_k:
        kept = order[: s.top_k]
    elif name == "top_p" and 0 < s.top_p < 1:
        kept = reach(x, order, s.top_p)
    elif name == "top_a":
        kept = [i for i in order if x[i] >= s.top_a * max(x.values()) ** 2] or order[:1]
    elif name == "min_p":
        kept = [i for i in order if x[i] >= s.min_p * max(x.values())]
    elif name == "tfs" and 0 < s.tfs < 1:
        kept = tail_free(x, s.tfs)
    elif name == "typical" and 0 < s.typical < 1:
        entropy = -sum(p * math.log(p) for p in x.values() if p > 0)
        kept = reach(x, sorted(order, key=lambda i: abs(-math.log(x[i]) - entropy)), s.typical)
    elif name == "mirostat" and s.mirostat:
        kept = [i for i in order if x[i] >= 2**-mu] or order[:1]
    elif name == "dynamic_temperature" and s.max_temp > s.min_temp:
        share = -sum(p * math.log(p) for p in x.values() if p > 0) / math.log(len(x))
        temperature = s.min_temp + (s.max_temp - s.min_temp) * share**s.temp_exponent
        return {i: (value - top) / max(temperature, 0.01) for i, value in z.items()}
    elif name == "xtc" and s.xtc_probability > 0:
        return {i: math.log(p) for i, p in excluded(x, s, spared).items() if p > 0}
    elif name == "adaptive" and s.adaptive_target < 1:
        far = {i: abs(p - target) / 0.3 for i, p in x.items()}
        return {i: -10 * d * d / (1 + d) for i, d in far.items()}
    return {i: z[i] for i in kept}
