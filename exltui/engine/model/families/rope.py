"""RoPE as config.json describes it, in the newer form (``rope_parameters``) and the older (``rope_theta``, ``rope_scaling``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from exltui.engine.model.config import CONTEXT, Config
from exltui.engine.ops.rope import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, RopeSpec, Scaling, YarnScaling
from exltui.errors import ModelError

ORIGINAL = "original_max_position_embeddings"


def read_rope(config: Config, d: int, *, interleaved: bool = False, layers: str = "") -> RopeSpec:
    """RoPE for heads of width ``d``; ``layers``: of which kind of layers, where the config tells them apart ("sliding_attention", ..).

    An unknown scaling is refused.
    """
    theta = config.get(float, f"rope_parameters.{layers}.rope_theta", "rope_parameters.rope_theta", "rope_theta", default=10_000.0)
    partial = (f"rope_parameters.{layers}.partial_rotary_factor", "rope_parameters.partial_rotary_factor", "partial_rotary_factor")
    width = int(d * config.get(float, *partial, default=1.0))
    if width < 4 or width > d or width % 2 or theta <= 1:
        raise ModelError(f"{config.where}: RoPE over {width} of {d} dimensions with theta {theta:g} is impossible", "check config.json")
    values: dict[str, Any] = config.get(dict, f"rope_parameters.{layers}", "rope_scaling", "rope_parameters", default={})
    kind = values.get("rope_type", values.get("type", "default"))
    if kind in ("default", "mrope"):
        return RopeSpec(theta, width, interleaved, sections=_sections(config, values, width // 2))
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = ", ".join(["default", "mrope", *SCALINGS])
        raise ModelError(f"{config.where}: the RoPE scaling {str(kind)[:40]!r} is not known", f"known are {known}")
    inner = Config(values, f"{config.where}, rope_scaling")
    scaling = SCALINGS[kind](inner, config, width)
    return RopeSpec(theta, width, interleaved, scaling, sections=_sections(config, values, width // 2))


def _factor(inner: Config) -> float:
    return _positive(inner, "factor")


def _positive(inner: Config, name: str, default: Any = ...) -> float:
    value = inner.get(float, name) if default is ... else inner.get(float, name, default=default)
    if not value > 0:
        raise ModelError(f"{inner.where}: {name} is {value:g}, it must be above 0", "check config.json")
    return value


def _linear(inner: Config, config: Config, width: int) -> Scaling:
    return LinearScaling(_factor(inner))


def _dynamic(inner: Config, config: Config, width: int) -> Scaling:
    return DynamicScaling(_factor(inner), config.size(*CONTEXT, default=2048))


def _llama3(inner: Config, config: Config, width: int) -> Scaling:
    factor, low, high = (_positive(inner, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ModelError(f"{inner.where}: low_freq_factor {low:g} is not below high_freq_factor {high:g}", "check config.json")
    return Llama3Scaling(factor, low, high, inner.size(ORIGINAL))


def _yarn(inner: Config, config: Config, width: int) -> Scaling:
    original = inner.size(ORIGINAL, default=None) if ORIGINAL in inner.values else config.size(*CONTEXT)
    factor = _positive(inner, "factor", config.size(*CONTEXT) / original)
    magnitude = inner.get(float, "attention_factor", default=None)
    one, all_dimensions = inner.get(float, "mscale", default=0.0), inner.get(float, "mscale_all_dim", default=0.0)
    if magnitude is None and one and all_dimensions:  # DeepSeek's form
        magnitude = (0.1 * one * math.log(factor) + 1) / (0.1 * all_dimensions * math.log(factor) + 1) if factor > 1 else 1.0
    fast, slow = _positive(inner, "beta_fast", 32.0), _positive(inner, "beta_slow", 1.0)
    return YarnScaling(factor, original, fast, slow, magnitude, inner.get(bool, "truncate", default=True))


def _long(inner: Config, config: Config, width: int) -> Scaling:
    original = inner.size(ORIGINAL) if ORIGINAL in inner.values else config.size(ORIGINAL)
    factor = _positive(inner, "factor", config.size(*CONTEXT) / original)
    stated = inner.get(float, "attention_factor", default=None)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    lists = []
    for name in ("short_factor", "long_factor"):
        values = inner.get(list, name)
        if len(values) != width // 2 or not all(isinstance(v, (int, float)) and v > 0 and math.isfinite(v) for v in values):
            raise ModelError(f"{inner.where}: {name} does not hold {width // 2} numbers above 0", "check config.json")
        lists.append(tuple(float(value) for value in values))
    return LongScaling(lists[0], lists[1], original, magnitude if stated is None else stated)


SCALINGS: dict[str, Callable[[Config, Config, int], Scaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
    "su": _long,  # what the first Phi-3 models called it
}


def _sections(config: Config, values: dict[str, Any], pairs: int) -> tuple[int, ...]:
    """M-RoPE's sections, which must cover all pairs."""
    found = values.get("mrope_section")
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) != 3 or not all(type(n) is int and n >= 0 for n in found) or sum(found) != pairs:
        raise ModelError(f"{config.where}: mrope_section does not divide {pairs} pairs into three", "check config.json")
    if values.get("mrope_interleaved"):
        raise ModelError(f"{config.where}: interleaved M-RoPE is not known", "exltui runs M-RoPE in sections")
    return tuple(found)


def read_local_rope(config: Config, d: int, theta: str) -> RopeSpec:
    """RoPE of the layers with a window: their own parameters if there are any, else the plain form with the theta that ``theta`` names."""
    if config.get(dict, "rope_parameters.sliding_attention", default=None) is not None:
        return read_rope(config, d, layers="sliding_attention")
    return read_rope(Config({"rope_theta": config.get(float, theta, default=10_000.0)}, config.where), d)
