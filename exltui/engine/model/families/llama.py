"""Llama and the families that differ from it in a value or two."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import TEXT_PART, attend_with, each_layer, impossible, read_attention, read_base, windowed
from exltui.engine.model.spec import ArchSpec


def read_llama(config: Config) -> ArchSpec:
    """Pre-norm RMS, RoPE, grouped-query attention, gated SiLU. Biases are used where the file has them."""
    return read_base(config, read_attention(config))


def read_mistral(config: Config) -> ArchSpec:
    """Llama with a sliding window on every layer, if the config names one."""
    return windowed(config, read_llama(config), lambda i: True)


def read_seeing_mistral(config: Config) -> ArchSpec:
    """The text part of Pixtral, Mistral 3 and LLaVA; what their text_config leaves out is Mistral's own."""
    config = config.under(
        tie_word_embeddings=True, vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-6, max_position_embeddings=131_072,
    )  # fmt: skip
    return replace(read_mistral(config), renames=TEXT_PART)


def read_seeing_qwen2(config: Config) -> ArchSpec:
    """The text part of Qwen2-VL and Qwen2.5-VL: M-RoPE, whose three positions are the same for text."""
    return replace(read_qwen2(config.under(tie_word_embeddings=True)), renames=TEXT_PART)


def read_qwen2(config: Config) -> ArchSpec:
    """Llama with biases on q, k and v and an optional window on the layers from max_window_layers on."""
    spec = read_llama(config)
    if not config.get(bool, "use_sliding_window", default=False):
        return spec
    first = config.get(int, "max_window_layers", default=0)
    return windowed(config, spec, lambda i: i >= first)


def read_qwen3(config: Config) -> ArchSpec:
    """Qwen2 with an RMSNorm over each head of q and k."""
    return with_head_norms(read_qwen2(config))


def with_head_norms(spec: ArchSpec) -> ArchSpec:
    names = [linear.name.removesuffix("q_proj") for linear in (layer.qkv[0] for layer in spec.layers)]
    spec = each_layer(spec, lambda i, layer: replace(layer, q_norm=f"{names[i]}q_norm", k_norm=f"{names[i]}k_norm"))
    return attend_with(spec, lambda i, attention: replace(attention, head_norm="head"))


def read_smollm3(config: Config) -> ArchSpec:
    """Llama where every fourth layer (or those that no_rope_layers marks with 0) has no RoPE."""
    spec, count = read_llama(config.under(tie_word_embeddings=True)), config.size("num_hidden_layers")
    step = config.size("no_rope_layer_interval", default=4)
    turned = config.get(list, "no_rope_layers", default=[int((i + 1) % step != 0) for i in range(count)])
    if len(turned) != count:
        raise impossible(config, f"no_rope_layers has {len(turned)} entries for {count} layers")
    spec = attend_with(spec, lambda i, attention: attention if turned[i] else replace(attention, rope=None))
    return windowed(config, spec, lambda i: not turned[i]) if config.get(bool, "use_sliding_window", default=False) else spec


def read_granite(config: Config) -> ArchSpec:
    """Llama with multipliers on the embedding, the scores and what each layer adds, and a divisor of the logits."""
    spec = attend_with(read_llama(config), lambda i, a: replace(a, scale=config.get(float, "attention_multiplier", default=1.0)))
    scaling = config.get(float, "logits_scaling", default=1.0)
    return replace(
        spec,
        embed_scale=config.get(float, "embedding_multiplier", default=1.0),
        residual_scale=config.get(float, "residual_multiplier", default=1.0),
        logit_scale=1.0 / scaling if scaling else 1.0,
    )


def read_minicpm(config: Config) -> ArchSpec:
    """Llama with a scaled embedding, layers that add less the more there are, and logits divided by the width over a base width."""
    spec = read_llama(config)
    base = config.size("dim_model_base", default=spec.hidden)
    return replace(
        spec,
        embed_scale=config.get(float, "scale_emb", default=1.0),
        residual_scale=config.get(float, "scale_depth", default=len(spec.layers) ** 0.5) / len(spec.layers) ** 0.5,
        logit_scale=base / spec.hidden,
    )


def read_orion(config: Config) -> ArchSpec:
    """Llama with LayerNorm."""
    return replace(read_llama(config), norm="layer")


def read_index(config: Config) -> ArchSpec:
    """Llama, with norm_head a head whose rows have length 1."""
    return replace(read_llama(config), normalised_head=bool(config.get(int, "norm_head", default=0)))


def read_yi(config: Config) -> ArchSpec:
    """Llama under other names for its norms."""
    return replace(read_llama(config), renames=((r"\.ln1\.", ".input_layernorm."), (r"\.ln2\.", ".post_attention_layernorm.")))
