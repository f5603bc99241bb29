"""Mixtures of experts with Llama's attention: Mixtral, Qwen 2 and 3, Ernie 4.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import (
    HIDDEN,
    MAX_EXPERTS,
    PROJECTIONS,
    each_layer,
    gated_mlp,
    impossible,
    layer_name,
    read_activation,
    windowed,
)  # fmt: skip
from exltui.engine.model.families.glm import read_ernie
from exltui.engine.model.families.llama import read_qwen2, read_qwen3
from exltui.engine.model.spec import ArchSpec, LayerSpec, LinearSpec, MoeSpec


def read_mixtral(config: Config) -> ArchSpec:
    experts = read_experts(config, config.size("intermediate_size"), "block_sparse_moe", ("w1", "w3", "w2"), router="gate")
    spec = windowed(config, read_qwen2(config), lambda i: True)
    return each_layer(spec, lambda i, layer: replace(layer, mlp=experts(layer_name(i))))


def read_qwen2_moe(config: Config) -> ArchSpec:
    """One more expert that every token takes, weighed by a gate of its own."""
    return _qwen(config, read_qwen2(config), shared=config.size("shared_expert_intermediate_size"))


def read_qwen3_moe(config: Config) -> ArchSpec:
    return _qwen(config, read_qwen3(config), shared=0)


def _qwen(config: Config, spec: ArchSpec, shared: int) -> ArchSpec:
    experts = read_experts(config, config.size("moe_intermediate_size"), "mlp", PROJECTIONS, router="gate")
    renormalise = config.get(bool, "norm_topk_prob", default=False)
    dense, step = config.get(list, "mlp_only_layers", default=[]), config.size("decoder_sparse_step", default=1)
    activation, hidden = read_activation(config), config.size(*HIDDEN)

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        if index in dense or (index + 1) % step:
            return layer
        name = f"{layer_name(index)}mlp."
        moe = replace(experts(layer_name(index)), renormalise=renormalise)
        if shared:
            moe = replace(
                moe,
                shared=gated_mlp(f"{name}shared_expert.", hidden, shared, activation, PROJECTIONS),
                shared_gate=LinearSpec(f"{name}shared_expert_gate", 1, hidden, plain=True),
            )
        return replace(layer, mlp=moe)

    return each_layer(spec, change)


def read_ernie_moe(config: Config) -> ArchSpec:
    """Experts from a layer on; a correction of the probabilities for the choice; shared experts as one wide one."""
    spec = read_ernie(config)
    first, step = config.get(int, "moe_layer_start_index", default=1), config.size("moe_layer_interval", default=1)
    last = config.get(int, "moe_layer_end_index", default=-1)
    last = len(spec.layers) - 1 if last == -1 else last
    width, shared = config.size("moe_intermediate_size"), config.get(int, "moe_num_shared_experts", default=0)
    experts = read_experts(config, width, "mlp", PROJECTIONS, router="gate")
    activation, hidden = read_activation(config), config.size(*HIDDEN)

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        if not first <= index <= last or (index + 1) % step:
            return layer
        name = f"{layer_name(index)}mlp."
        moe = replace(experts(layer_name(index)), correction=f"{name}moe_statics.e_score_correction_bias")
        if shared > 0:
            moe = replace(moe, shared=gated_mlp(f"{name}shared_experts.", hidden, width * shared, activation, PROJECTIONS))
        return replace(layer, mlp=moe)

    return each_layer(spec, change)


def read_experts(config: Config, width: int, below: str, names: tuple[str, str, str], *, router: str) -> Callable[[str], MoeSpec]:
    """A function from a layer's prefix to its experts: ``{below}.experts.{e}.{gate, up and down of names}`` and ``{below}.{router}``."""
    count = config.size("num_local_experts", "ffn_config.moe_num_experts", "num_experts", "moe_num_experts", limit=MAX_EXPERTS)
    top = config.size("num_experts_per_tok", "ffn_config.moe_top_k", "moe_k")
    if top > count:
        raise impossible(config, f"a token cannot take {top} of {count} experts")
    hidden, activation = config.size(*HIDDEN), read_activation(config)

    def experts(prefix: str) -> MoeSpec:
        every = tuple(gated_mlp(f"{prefix}{below}.experts.{e}.", hidden, width, activation, names) for e in range(count))
        return MoeSpec(LinearSpec(f"{prefix}{below}.{router}", count, hidden, plain=True), every, top)

    return experts
