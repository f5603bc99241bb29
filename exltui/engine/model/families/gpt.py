"""GPT-2 and what came of it: LayerNorm, biases everywhere, an MLP without a gate; GPT-2 and BigCode learn their positions."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import (
    HIDDEN,
    LAYERS,
    MAX_LAYERS,
    arch,
    each_layer,
    layer_name,
    plain_layer,
    read_activation,
    read_attention,
    split_heads,
    split_rows,
    windowed,
)  # fmt: skip
from exltui.engine.model.spec import ArchSpec, LayerSpec, LinearSpec, MlpSpec, Part

RENAMES = (
    (r"^transformer\.", ""), (r"^(model\.)?h\.", "model.layers."), (r"^(model\.)?wte\.", "model.embed_tokens."),
    (r"^(model\.)?wpe\.", "model.wpe."), (r"^(model\.)?ln_f\.", "model.norm."), (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.attn\.", ".self_attn."), (r"\.ln_1\.", ".input_layernorm."), (r"\.ln_2\.", ".post_attention_layernorm."),
)  # fmt: skip


def read_gpt2(config: Config) -> ArchSpec:
    """q, k and v lie in c_attn; the file holds every matrix as [k, n]."""
    spec = _gpt(config.under(activation_function="gelu_new", layer_norm_epsilon=1e-5), rope=False)
    by_depth = config.get(bool, "scale_attn_by_inverse_layer_idx", default=False)
    spec = each_layer(
        spec, lambda i, layer: replace(layer, attention=replace(layer.attention, scale=layer.attention.scale / (i + 1 if by_depth else 1)))
    )
    return each_layer(_with_positions(config, spec), lambda i, layer: _conv1d(layer, f"{layer_name(i)}self_attn.c_attn"))


def read_bigcode(config: Config) -> ArchSpec:
    """One key/value head for all queries; without multi_query, q, k and v of each head lie together."""
    many = not config.get(bool, "multi_query", default=True)
    config = config.under(activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-5)
    spec = _with_positions(config, _gpt(config, rope=False, one_kv_head=not many))

    def fuse(index: int, layer: LayerSpec) -> LayerSpec:
        name = f"{layer_name(index)}self_attn.c_attn"
        if many:
            return split_heads(layer, name)
        q, k, v = split_rows(layer.qkv, name)
        return replace(layer, qkv=(q, k, v))

    return each_layer(spec, fuse)


def read_starcoder2(config: Config) -> ArchSpec:
    config = config.under(hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5)
    return windowed(config, _gpt(config, rope=True), lambda i: True)


def _gpt(config: Config, *, rope: bool, one_kv_head: bool = False) -> ArchSpec:
    config = config.under(tie_word_embeddings=True)
    attention = read_attention(config, rope=rope)
    if one_kv_head:
        attention = replace(attention, g=1)
    if not config.get(bool, "scale_attn_weights", default=True):
        attention = replace(attention, scale=1.0)
    hidden, activation = config.size(*HIDDEN), read_activation(config)
    width = config.size("intermediate_size", "n_inner", default=4 * hidden)

    def layer(name: str) -> LayerSpec:
        up, down = LinearSpec(f"{name}mlp.c_fc", width, hidden), LinearSpec(f"{name}mlp.c_proj", hidden, width)
        return plain_layer(name, hidden, attention, MlpSpec((up,), down, activation))

    layers = tuple(layer(layer_name(i)) for i in range(config.size(*LAYERS, limit=MAX_LAYERS)))
    return replace(arch(config, layers), norm="layer")


def _with_positions(config: Config, spec: ArchSpec) -> ArchSpec:
    return replace(spec, positions="model.wpe", renames=RENAMES)


def _conv1d(layer: LayerSpec, name: str) -> LayerSpec:
    """Every linear transposed, q, k and v in ``name``."""

    def turned(linear: LinearSpec) -> LinearSpec:
        return replace(linear, part=Part(linear.name, 0, linear.n, linear.n, transposed=True))

    assert isinstance(layer.mlp, MlpSpec)  # _gpt makes no other
    q, k, v = split_rows(layer.qkv, name, transposed=True)
    mlp = replace(layer.mlp, gate_up=tuple(turned(linear) for linear in layer.mlp.gate_up), down=turned(layer.mlp.down))
    return replace(layer, qkv=(q, k, v), o=turned(layer.o), mlp=mlp)
