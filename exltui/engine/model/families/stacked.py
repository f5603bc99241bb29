"""Mixtures of experts whose files stack all experts of a layer in one tensor: DBRX and GPT-OSS."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import (
    HIDDEN,
    LAYERS,
    MAX_LAYERS,
    PROJECTIONS,
    arch,
    attend_with,
    each_layer,
    impossible,
    layer_name,
    plain_layer,
    read_attention,
    split_rows,
    windowed,
)  # fmt: skip
from exltui.engine.model.families.moe import read_experts
from exltui.engine.model.spec import ArchSpec, LayerSpec, LinearSpec, MlpSpec, MoeSpec, Part

DBRX_RENAMES = (
    (r"^transformer\.", "model."), (r"\.blocks\.", ".layers."), (r"\.ffn\.experts\.mlp\.", ".block_sparse_moe.experts."),
    (r"\.ffn\.router\.layer\.", ".block_sparse_moe.gate."), (r"\.norm_attn_norm\.norm_1\.", ".input_layernorm."),
    (r"\.norm_attn_norm\.norm_2\.", ".post_attention_layernorm."), (r"\.norm_attn_norm\.attn\.", ".self_attn."),
    (r"\.out_proj\.", ".o_proj."), (r"\.norm_f\.", ".norm."), (r"\.wte\.", ".embed_tokens."),
)  # fmt: skip


def read_dbrx(config: Config) -> ArchSpec:
    """LayerNorm without bias, q, k and v in one tensor and kept within clip_qkv."""
    config = config.under(layer_norm_eps=1e-5, rope_theta=config.get(float, "attn_config.rope_theta", default=10_000.0))
    attention = replace(read_attention(config), clip=max(config.get(float, "attn_config.clip_qkv", default=0.0), 0.0))
    width, hidden = config.size("ffn_config.ffn_hidden_size"), config.size(*HIDDEN)
    experts = read_experts(config, width, "block_sparse_moe", ("w1", "v1", "w2"), router="gate")
    power = config.get(float, "ffn_config.moe_normalize_expert_weights", default=1.0)
    if power != 1.0:
        raise impossible(config, f"expert weights are normalised by their {power:g}-norm; exltui knows 1")

    def layer(prefix: str) -> LayerSpec:
        moe = experts(prefix)
        q, k, v = split_rows((plain := plain_layer(prefix, hidden, attention, moe)).qkv, f"{prefix}self_attn.Wqkv")
        return replace(plain, qkv=(q, k, v), mlp=_stacked(moe, f"{prefix}block_sparse_moe.experts."))

    layers = tuple(layer(layer_name(i)) for i in range(config.size(*LAYERS, limit=MAX_LAYERS)))
    return replace(arch(config, layers), norm="layer", renames=DBRX_RENAMES)


def _stacked(moe: MoeSpec, prefix: str) -> MoeSpec:
    """All experts one below the other in w1, v1 and w2; the last as [k, n]."""

    def place(linear: LinearSpec, expert: int, name: str) -> LinearSpec:
        return replace(linear, part=Part(prefix + name, 0, linear.n, linear.n, expert, len(moe.experts), transposed=name == "w2"))

    def change(index: int, mlp: MlpSpec) -> MlpSpec:
        gate, up = mlp.gate_up
        return replace(mlp, gate_up=(place(gate, index, "w1"), place(up, index, "v1")), down=place(mlp.down, index, "w2"))

    return replace(moe, experts=tuple(change(i, mlp) for i, mlp in enumerate(moe.experts)))


def read_gpt_oss(config: Config) -> ArchSpec:
    """Attention sinks, a window on every other layer, experts with biases and a clamped activation."""
    for name, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if config.get(float, name, default=value) != value:
            raise impossible(config, f"{name} is not {value:g}, which exltui knows alone")
    config = config.under(head_dim=64)
    experts = read_experts(config, config.size("intermediate_size"), "mlp", PROJECTIONS, router="router")
    hidden, attention = config.size(*HIDDEN), read_attention(config)
    names = [layer_name(i) for i in range(config.size(*LAYERS, limit=MAX_LAYERS))]
    spec = arch(config, tuple(plain_layer(name, hidden, attention, experts(name)) for name in names))
    spec = attend_with(spec, lambda i, a: replace(a, sinks=f"{layer_name(i)}self_attn.sinks"))
    spec = each_layer(spec, lambda i, layer: replace(layer, mlp=_interleaved(layer.mlp, f"{layer_name(i)}mlp.experts.")))
    return windowed(config, spec, lambda i: i % 2 == 0)


def _interleaved(moe: MlpSpec | MoeSpec, prefix: str) -> MoeSpec:
    """gate_up_proj [e, k, 2n] holds gate and up in turn, down_proj [e, n, k]."""
    assert isinstance(moe, MoeSpec)  # read_gpt_oss makes no other
    count = len(moe.experts)

    def place(linear: LinearSpec, name: str, begin: int, run: int, expert: int) -> LinearSpec:
        return replace(linear, part=Part(prefix + name, begin, 1, run, expert, count, transposed=True))

    def change(index: int, mlp: MlpSpec) -> MlpSpec:
        gate_up = tuple(place(linear, "gate_up_proj", i, 2, index) for i, linear in enumerate(mlp.gate_up))
        return MlpSpec(gate_up, place(mlp.down, "down_proj", 0, 1, index), "clamped_swiglu")

    return replace(moe, experts=tuple(change(i, mlp) for i, mlp in enumerate(moe.experts)))
