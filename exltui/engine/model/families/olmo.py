"""OLMo 2 and 3: no norm before attention and MLP but one after each, and a norm over all heads of q and of k together."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import attend_with, each_layer, layer_kinds, layer_name, windowed
from exltui.engine.model.families.llama import read_llama, with_head_norms
from exltui.engine.model.families.rope import read_local_rope, read_rope
from exltui.engine.model.spec import ArchSpec


def read_olmo2(config: Config) -> ArchSpec:
    spec = with_head_norms(read_llama(config.under(rms_norm_eps=1e-5)))
    spec = attend_with(spec, lambda i, attention: replace(attention, head_norm="all heads"))
    return each_layer(
        spec,
        lambda i, layer: replace(
            layer,
            attention_norm="",
            mlp_norm="",
            attention_post_norm=f"{layer_name(i)}post_attention_layernorm",
            mlp_post_norm=f"{layer_name(i)}post_feedforward_layernorm",
        ),
    )


def read_olmo3(config: Config) -> ArchSpec:
    """Three layers with a window to each one without, which alone takes the RoPE scaling."""
    config = config.under(sliding_window=4096)
    spec = windowed(config, read_olmo2(config), lambda i: (i + 1) % 4 != 0)
    d = spec.layers[0].attention.d
    wide, local = read_rope(config, d, layers="full_attention"), read_local_rope(config, d, "rope_theta")
    slides = layer_kinds(config, len(spec.layers), lambda i: (i + 1) % 4 != 0)
    return attend_with(spec, lambda i, attention: replace(attention, rope=local if slides[i] else wide))
