"""Phi 3 and 4: Llama with q, k and v in one tensor, gate and up in another, and LongRoPE."""

from __future__ import annotations

from dataclasses import replace

from exltui.engine.model.config import Config
from exltui.engine.model.families.common import each_layer, layer_name, split_rows, windowed
from exltui.engine.model.families.glm import with_fused_mlp
from exltui.engine.model.families.llama import read_llama
from exltui.engine.model.spec import ArchSpec, LayerSpec


def read_phi3(config: Config) -> ArchSpec:
    spec = windowed(config, with_fused_mlp(read_llama(config)), lambda i: True)
    return each_layer(spec, lambda i, layer: _fused(layer, f"{layer_name(i)}self_attn.qkv_proj"))


def _fused(layer: LayerSpec, name: str) -> LayerSpec:
    q, k, v = split_rows(layer.qkv, name)
    return replace(layer, qkv=(q, k, v))
