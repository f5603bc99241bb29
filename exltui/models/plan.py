"""What a model will need of a device's memory, reckoned from its files before anything is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exltui.protocol import LoadOptions

DEFAULT_LENGTH = 8192  # the longest context that is taken without being asked for
BITS = {"fp16": (16.0, 16.0), "q8": (8.5, 8.5), "q6": (8.5, 4.5), "q4": (4.5, 4.5)}  # of a key and a value, scales included
WORKING = 0.06  # of the weights: buffers of a forward pass, from what was measured on small models
PAGE = 256  # tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes. ``longest``: the most tokens of context that fit into ``free``; None where that is unknown."""

    weights: int
    cache: int
    buffers: int
    length: int
    free: int | None = None
    longest: int | None = None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers

    @property
    def fits(self) -> bool | None:
        """Whether it all fits; None where the free memory is unknown."""
        return None if self.free is None else self.total <= self.free


def plan(directory: Path, weights: int, trained: int | None, options: LoadOptions, free: int | None = None) -> Plan | None:
    """The plan for a model whose files have ``weights`` bytes; None if its config.json does not say enough."""
    per_token = cache_bytes(directory, options.cache)
    if per_token is None:
        return None
    length = options.length or min(trained or DEFAULT_LENGTH, DEFAULT_LENGTH)
    buffers = int(weights * WORKING)
    longest = None
    if free is not None:
        longest = max(0, int((free - weights - buffers) / per_token) // PAGE * PAGE)
    return Plan(weights, int(per_token * (options.cache_tokens or length)), buffers, length, free, longest)


def cache_bytes(directory: Path, cache: str) -> float | None:
    """Bytes of keys and values for one token with these cache bits; None if it cannot be known."""
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        groups = int(config.get("num_key_value_heads") or heads)
        layers = int(config["num_hidden_layers"])
        keys, values = BITS[cache] if cache in BITS else tuple(float(bits) + 0.5 * (bits != "16") for bits in cache.split(","))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return layers * groups * head_dim * (keys + values) / 8
