"""GLM 4 and Ernie 4.5: Llama with RoPE over neighbouring pairs."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import each_layer, layer_name, read_attention, read_base, split_rows
from exltui.engine.model.spec import ArchSpec, MlpSpec


def read_glm(config: Config) -> ArchSpec:
    """RoPE over half of a head; gate and up in one tensor."""
    config = config.under(partial_rotary_factor=0.5)
    return with_fused_mlp(read_base(config, read_attention(config, interleaved=True)))


def read_glm4(config: Config) -> ArchSpec:
    """GLM with norms also over what attention and MLP add."""
    return each_layer(
        read_glm(config),
        lambda i, layer: replace(
            layer,
            attention_post_norm=f"{layer_name(i)}post_self_attn_layernorm",
            mlp_post_norm=f"{layer_name(i)}post_mlp_layernorm",
        ),
    )


def read_ernie(config: Config) -> ArchSpec:
    config = config.under(tie_word_embeddings=True, rms_norm_eps=1e-5)
    return read_base(config, read_attention(config, interleaved=True))


def with_fused_mlp(spec: ArchSpec) -> ArchSpec:
    """Gate and up lie one after the other in ``mlp.gate_up_proj``, unless the file has them apart."""

    def fuse(index: int, mlp: MlpSpec) -> MlpSpec:
        return replace(mlp, gate_up=split_rows(mlp.gate_up, f"{layer_name(index)}mlp.gate_up_proj"))

    return each_layer(spec, lambda i, layer: replace(layer, mlp=fuse(i, layer.mlp)) if isinstance(layer.mlp, MlpSpec) else layer)
