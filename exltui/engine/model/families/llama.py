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
    hidden = config.get(int, "hidden_size")
    h = config.get(int, "num_attention_heads")
    d = config.get(int, "head_dim", default=hidden // h)
    attention = AttentionSpec(
        h=h, g=config.get(int, "num_key_value_heads", default=h), d=d, scale=d**-0.5, rope=read_rope(config, d)
    )  # fmt: skip
    if attention.h % attention.g or d % 2:
        raise ModelError(
            f"{config.where}: {attention.h} heads of width {d} over {attention.g} key/value heads is impossible",
            "check config.json",
        )
    name = config.get(str, "hidden_act", default="silu")
    if name not in ACTIVATIONS:
        raise ModelError(f"{config.where}: the activation {name} is not known", f"known are {', '.join(ACTIVATIONS)}")
    mlp = MlpSpec(config.get(int, "intermediate_size"), ACTIVATIONS[name])
    count = config.get(int, "num_hidden_layers")
    return ArchSpec(
        architecture=config.architecture,
        vocab=config.get(int, "vocab_size"),
        hidden=hidden,
        layers=tuple(LayerSpec(f"model.layers.{i}.", attention, mlp) for i in range(count)),
        eps=config.get(float, "rms_norm_eps"),
        trained_context=config.get(int, "max_position_embeddings", default=2048),
        tied=config.get(bool, "tie_word_embeddings", default=False),
    )


def read_mistral(config: Config) -> ArchSpec:
    """Llama with a sliding window on every layer, if the config names one."""
    return _windowed(read_llama(config), config.get(int, "sliding_window", default=0), 0)


def read_qwen2(config: Config) -> ArchSpec:
    """Llama with biases on q, k and v (read where the file has them) and an optional window on the layers from max_window_layers on."""
    used = config.get(bool, "use_sliding_window", default=False)
    window = config.get(int, "sliding_window", default=0) if used else 0
    return _windowed(read_llama(config), window, config.get(int, "max_window_layers", default=0))


def read_qwen3(config: Config) -> ArchSpec:
    """Qwen2 with an RMSNorm over each head of q and k."""
    spec = read_qwen2(config)
    layers = tuple(replace(layer, attention=replace(layer.attention, head_norm=True)) for layer in spec.layers)
    return replace(spec, layers=layers)


def _windowed(spec: ArchSpec, window: int, first: int) -> ArchSpec:
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=window if i >= first else 0))
        for i, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=layers)


def read_rope(config: Config, d: int) -> RopeSpec:
    """RoPE from ``rope_parameters`` (newer files) or ``rope_theta`` and ``rope_scaling``. An unknown scaling is refused."""
    theta = config.get(float, "rope_parameters.rope_theta", "rope_theta", default=10_000.0)
    width = int(d * config.get(float, "rope_parameters.partial_rotary_factor", "partial_rotary_factor", default=1.0))
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
