"""Gemma 1, 2 and 3 (text): norms with weight + 1, an embedding times the root of the width, and from the second on four norms a layer."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import (
    TEXT_PART,
    attend_with,
    each_layer,
    layer_kinds,
    layer_name,
    read_attention,
    read_base,
    windowed,
    with_activation,
)  # fmt: skip
from exltui.engine.model.families.llama import with_head_norms
from exltui.engine.model.families.rope import read_local_rope, read_rope
from exltui.engine.model.spec import ArchSpec


def read_gemma(config: Config) -> ArchSpec:
    return _gemma(config.under(tie_word_embeddings=True, head_dim=256, rms_norm_eps=1e-6, max_position_embeddings=8192))


def _gemma(config: Config) -> ArchSpec:
    # Some files of the first Gemma name the exact GELU as hidden_act, which none was trained with.
    spec = with_activation(read_base(config, read_attention(config)), "gelu_tanh")
    return replace(spec, norm_offset=1.0, embed_scale=spec.hidden**0.5, wide_residual=True)


def _four_norms(config: Config) -> ArchSpec:
    """What Gemma 2 and 3 share: norms also over what attention and MLP add, and a scale of the scores of their own."""
    spec = each_layer(
        _gemma(config),
        lambda i, layer: replace(
            layer,
            attention_post_norm=f"{layer_name(i)}post_attention_layernorm",
            mlp_norm=f"{layer_name(i)}pre_feedforward_layernorm",
            mlp_post_norm=f"{layer_name(i)}post_feedforward_layernorm",
        ),
    )
    scale = config.size("query_pre_attn_scalar", default=256) ** -0.5
    softcap = config.get(float, "attn_logit_softcapping", default=0.0)
    spec = attend_with(spec, lambda i, attention: replace(attention, scale=scale, softcap=max(softcap, 0.0)))
    return replace(spec, logit_softcap=max(config.get(float, "final_logit_softcapping", default=0.0), 0.0))


def read_gemma2(config: Config) -> ArchSpec:
    """Every other layer has a window, the first one included."""
    config = config.under(tie_word_embeddings=True, head_dim=256, rms_norm_eps=1e-6, max_position_embeddings=8192, sliding_window=4096)
    return windowed(config, _four_norms(config), lambda i: i % 2 == 0)


def read_gemma3(config: Config) -> ArchSpec:
    """Head norms; five layers with a window and a theta of their own to each one without."""
    config = config.under(
        tie_word_embeddings=True, vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4, head_dim=256, rms_norm_eps=1e-6,
        max_position_embeddings=131_072, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0, sliding_window=4096,
    )  # fmt: skip
    every = config.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    spec = with_head_norms(windowed(config, _four_norms(config), lambda i: (i + 1) % every != 0))
    d = spec.layers[0].attention.d
    wide, local = read_rope(config, d, layers="full_attention"), read_local_rope(config, d, "rope_local_base_freq")
    slides = layer_kinds(config, len(spec.layers), lambda i: (i + 1) % every != 0)
    spec = attend_with(spec, lambda i, attention: replace(attention, rope=local if slides[i] else wide))
    return replace(spec, renames=TEXT_PART)
