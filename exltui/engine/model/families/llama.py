"""Llama and the families that differ from it in a value or two: Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exltui.engine.model.config import Config
from exltui.engine.model.spec import ArchSpec, AttentionSpec, LayerSpec, MlpSpec
from exltui.engine.ops.rope import RopeScaling, RopeSpec
from exltui.engine.ops.types import Activation
from exltui.errors import ModelError

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}


def read_llama(config: Config) -> ArchSpec:
    """Pre-norm RMS, RoPE, grouped-query attention, gated SiLU."""
    hidden = config.size("hidden_size")
    h = config.size("num_attention_heads")
    g = config.size("num_key_value_heads", default=h)
    d = config.size("head_dim", default=hidden // h)
    if h % g or d % 2:
        raise ModelError(f"{config.where}: {h} heads of width {d} over {g} key/value heads is impossible", "check config.json")
    attention = AttentionSpec(h=h, g=g, d=d, scale=d**-0.5, rope=read_rope(config, d))
    name = config.get(str, "hidden_act", default="silu")
    if name not in ACTIVATIONS:
        raise ModelError(f"{config.where}: the activation {name} is not known", f"known are {', '.join(ACTIVATIONS)}")
    mlp = MlpSpec(config.size("intermediate_size"), ACTIVATIONS[name])
    count = config.size("num_hidden_layers", limit=10_000)
    return ArchSpec(
        architecture=config.architecture,
        vocab=config.size("vocab_size"),
        hidden=hidden,
        layers=tuple(LayerSpec(f"model.layers.{i}.", attention, mlp) for i in range(count)),
        eps=config.get(float, "rms_norm_eps"),
        trained_context=config.size("max_position_embeddings", default=2048),
        tied=config.get(bool, "tie_word_embeddings", default=False),
    )


def read_mistral(config: Config) -> ArchSpec:
    """Llama with a sliding window on every layer, if the config names one."""
    window = config.get(int, "sliding_window", default=0)
    return _windowed(config, window, first=0)


def read_qwen2(config: Config) -> ArchSpec:
    """Llama with biases on q, k and v (read where the file has them) and an optional window on the layers from max_window_layers on."""
    used = config.get(bool, "use_sliding_window", default=False)
    window = config.get(int, "sliding_window", default=0) if used else 0
    return _windowed(config, window, first=config.get(int, "max_window_layers", default=0))


def read_qwen3(config: Config) -> ArchSpec:
    """Qwen2 with an RMSNorm over each head of q and k."""
    spec = read_qwen2(config)
    layers = tuple(replace(layer, attention=replace(layer.attention, head_norm=True)) for layer in spec.layers)
    return replace(spec, layers=layers)


def _windowed(config: Config, window: int, first: int) -> ArchSpec:
    """Llama with ``window`` on the layers that ``layer_types`` names, or from layer ``first`` on where the config has no such list."""
    spec = read_llama(config)
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(len(spec.layers))]
    kinds = config.get(list, "layer_types", default=default)
    if len(kinds) != len(spec.layers) or not all(kind in ("sliding_attention", "full_attention") for kind in kinds):
        raise ModelError(f"{config.where}: layer_types in config.json does not name a known kind for each layer", "check config.json")
    windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    layers = zip(spec.layers, windows, strict=True)
    return replace(spec, layers=tuple(replace(layer, attention=replace(layer.attention, window=w)) for layer, w in layers))


def read_rope(config: Config, d: int) -> RopeSpec:
    """RoPE from ``rope_parameters`` (newer files) or ``rope_theta`` and ``rope_scaling``. An unknown scaling is refused."""
    theta = config.get(float, "rope_parameters.rope_theta", "rope_theta", default=10_000.0)
    width = int(d * config.get(float, "rope_parameters.partial_rotary_factor", "partial_rotary_factor", default=1.0))
    if width < 2 or width > d or width % 2 or theta <= 0:
        raise ModelError(f"{config.where}: RoPE over {width} of {d} dimensions with theta {theta:g} is impossible", "check config.json")
    values: dict[str, Any] = config.get(dict, "rope_scaling", "rope_parameters", default={})
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta, width)
    inner = Config(values, f"{config.where}, rope_scaling")
    if kind == "linear":
        return RopeSpec(theta, width, scaling=RopeScaling("linear", inner.get(float, "factor")))
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            inner.get(float, "factor"),
            inner.get(float, "low_freq_factor"),
            inner.get(float, "high_freq_factor"),
            inner.get(int, "original_max_position_embeddings"),
        )
        return RopeSpec(theta, width, scaling=scaling)
    raise ModelError(f"{config.where}: the RoPE scaling {kind!r} is not known", "known are default, linear and llama3")
