"""The sampler settings that a model's own files recommend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exltui.errors import SamplingError
from exltui.protocol import Sampling
from exltui.sampling import BY_NAME

NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical",
    "repetition_penalty": "token_repetition_penalty",
}


def recommended(directory: Path) -> Sampling | None:
    """What generation_config.json says, over settings that do nothing; None if it says nothing that can be used."""
    try:
        values: Any = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    found: dict[str, Any] = {}
    for name, ours in NAMES.items():
        value = values.get(name)
        kind = int if BY_NAME[ours].kind == "whole" else float
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                BY_NAME[ours].check(kind(value))
            except (SamplingError, ValueError, OverflowError):
                continue
            found[ours] = kind(value)
    if values.get("do_sample") is False and "temperature" not in found:
        found["temperature"] = 0.0
    return Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **found}) if found else None
