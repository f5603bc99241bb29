"""Cohere's Command models: attention and MLP side by side behind one LayerNorm without bias, logits times a scale."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import attend_with, each_layer, layer_kinds, read_attention, read_base, windowed
from exltui.engine.model.families.llama import with_head_norms
from exltui.engine.model.spec import ArchSpec


def read_cohere(config: Config) -> ArchSpec:
    """With use_qk_norm, a LayerNorm over each head of q and k, with weights for each head."""
    config = config.under(tie_word_embeddings=True, layer_norm_eps=1e-5)
    spec = read_base(config, read_attention(config, interleaved=True))
    spec = each_layer(spec, lambda i, layer: replace(layer, mlp_norm=layer.attention_norm, parallel=True))
    if config.get(bool, "use_qk_norm", default=False):
        spec = attend_with(with_head_norms(spec), lambda i, attention: replace(attention, head_norm="each head"))
    return replace(spec, norm="layer", logit_scale=config.get(float, "logit_scale", default=0.0625))


def read_cohere2(config: Config) -> ArchSpec:
    """Three layers with a window and RoPE to each one that sees everything and has no RoPE."""
    config = config.under(sliding_window=4096)
    every = config.size("sliding_window_pattern", "_sliding_window_pattern", default=4)
    spec = windowed(config, read_cohere(config), lambda i: (i + 1) % every != 0)
    slides = layer_kinds(config, len(spec.layers), lambda i: (i + 1) % every != 0)
    return attend_with(spec, lambda i, attention: attention if slides[i] else replace(attention, rope=None))
