"""Llama in other files: InternLM 2 fuses and renames, DeciLM has layers of different sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import (
    PROJECTIONS,
    each_layer,
    gated_mlp,
    impossible,
    layer_name,
    plain_layer,
    split_heads,
)  # fmt: skip
from exltui.engine.model.families.llama import read_llama
from exltui.engine.model.spec import ArchSpec, LayerSpec, MlpSpec

INTERNLM_RENAMES = (
    (r"^output\.", "lm_head."), (r"^model\.tok_embeddings\.", "model.embed_tokens."), (r"\.attention\.", ".self_attn."),
    (r"\.wo\.", ".o_proj."), (r"\.feed_forward\.w1\.", ".mlp.gate_proj."), (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."), (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)  # fmt: skip


def read_internlm2(config: Config) -> ArchSpec:
    """q, k and v lie in one tensor, by key/value head."""
    spec = each_layer(read_llama(config), lambda i, layer: split_heads(layer, f"{layer_name(i)}self_attn.wqkv"))
    return replace(spec, renames=INTERNLM_RENAMES)


def read_decilm(config: Config) -> ArchSpec:
    """Key/value heads for each layer: in a list, or in block_configs, which also size each MLP."""
    values: dict[str, Any] = {**config.values, "num_key_value_heads": config.values.get("num_attention_heads"), "intermediate_size": 1}
    config.get(int, "num_key_value_heads", "intermediate_size", default=0)  # known, and not what counts
    blocks, heads = config.get(list, "block_configs", default=[]), config.get(list, "num_key_value_heads_per_layer", default=[])
    spec = read_llama(Config(values, config.where))
    config.asked |= set(values)
    if len(blocks or heads) != len(spec.layers):
        raise impossible(config, f"it describes {len(blocks or heads)} blocks for {len(spec.layers)} layers")

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        h, hidden = layer.attention.h, spec.hidden
        block = Config(blocks[index], f"{config.where}, block {index}") if blocks and isinstance(blocks[index], dict) else None
        if block is None:
            g, width = heads[index] if heads else None, config.size("intermediate_size")
        else:
            _whole(block)
            g = h // block.size("attention.n_heads_in_group", limit=h)
            width = -(-int(2 * block.get(float, "ffn.ffn_mult") * hidden / 3) // 256) * 256
        if type(g) is not int or g < 1 or h % g or not 1 <= width < 1 << 31:
            raise impossible(config, f"layer {index} with {g} key/value heads for {h} heads and an MLP of {width} is impossible")
        mlp = layer.mlp
        assert isinstance(mlp, MlpSpec)  # read_llama makes no other
        sized = gated_mlp(f"{layer_name(index)}mlp.", hidden, width, mlp.activation, PROJECTIONS)
        return plain_layer(layer_name(index), hidden, replace(layer.attention, g=g), sized)

    return each_layer(spec, change)


def _whole(block: Config) -> None:
    for part in ("attention", "ffn"):
        for name in ("no_op", "replace_with_linear"):
            if block.get(bool, f"{part}.{name}", default=False):
                raise impossible(block, f"its {part} is left out or replaced, which exltui cannot run")
