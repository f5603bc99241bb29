"""One decoder for every family: it runs what an ArchSpec describes, through the op table, and knows no weight format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.model.spec import ArchSpec, LayerSpec, LinearSpec
from exltui.engine.model.tensors import AnyWeight, Checkpoint
from exltui.engine.ops import OpSet
from exltui.engine.ops.rope import RopeSpec, tables
from exltui.engine.ops.types import Attention, Batch, CacheLayer, Heads, Norm, Rope


@dataclass(frozen=True, slots=True)
class Layer:
    """A LayerSpec with its tensors on the device."""

    attention_norm: Norm
    qkv: tuple[AnyWeight, ...]
    heads: Heads
    rope: Rope | None
    attention: Attention
    o: AnyWeight
    mlp_norm: Norm
    gate_up: tuple[AnyWeight, ...]
    down: AnyWeight
    spec: LayerSpec

    @property
    def weights(self) -> tuple[AnyWeight, ...]:
        return (*self.qkv, self.o, *self.gate_up, self.down)


class Decoder:
    """The forward pass. ``context`` bounds the positions that the RoPE tables cover."""

    def __init__(self, spec: ArchSpec, checkpoint: Checkpoint, ops: OpSet, context: int) -> None:
        self.spec = spec
        self.ops = ops
        self._ropes: dict[tuple[RopeSpec, int], Rope] = {}
        self._checkpoint = checkpoint
        self._context = context
        embedding = checkpoint.weight(spec.embedding, spec.vocab, spec.hidden).prepare(ops.device)
        self.embedding = embedding.dense()
        self.layers = [self._layer(layer) for layer in spec.layers]
        self.final_norm = self._norm(spec.final_norm, spec.hidden)
        tied = spec.tied and not checkpoint.has_weight(spec.head)
        self.head = embedding if tied else checkpoint.weight(spec.head, spec.vocab, spec.hidden, padded=True).prepare(ops.device)

    def _norm(self, name: str, size: int) -> Norm:
        weight = self._checkpoint.vector(f"{name}.weight", size).to(self.ops.device)
        bias = None
        if self.spec.norm == "layer" and f"{name}.bias" in self._checkpoint:
            bias = self._checkpoint.vector(f"{name}.bias", size).to(self.ops.device)
        return Norm(weight, self.spec.eps, bias, self.spec.norm, self.spec.norm_offset)

    def _layer(self, spec: LayerSpec) -> Layer:
        attention, hidden = spec.attention, self.spec.hidden

        def weights(linears: tuple[LinearSpec, ...]) -> tuple[AnyWeight, ...]:
            return tuple(self._checkpoint.weight(linear.name, linear.n, linear.k).prepare(self.ops.device) for linear in linears)

        def head_norm(name: str, heads: int) -> Norm | None:
            if not attention.head_norm:
                return None
            weight = self._checkpoint.head_vector(f"{spec.prefix}{name}.weight", heads, attention.d)
            return Norm(weight.to(self.ops.device), self.spec.eps, None, self.spec.norm, self.spec.norm_offset)

        qkv, o, gate_up, down = (weights(linears) for linears in spec.linears(hidden))
        return Layer(
            attention_norm=self._norm(spec.prefix + spec.attention_norm, hidden),
            qkv=qkv,
            heads=Heads(attention.h, attention.g, attention.d, head_norm(spec.q_norm, attention.h), head_norm(spec.k_norm, attention.g)),
            rope=None if attention.rope is None else self._rope(attention.rope),
            attention=Attention(attention.scale, attention.softcap, attention.window),
            o=o[0],
            mlp_norm=self._norm(spec.prefix + spec.mlp_norm, hidden),
            gate_up=gate_up,
            down=down[0],
            spec=spec,
        )

    def _rope(self, spec: RopeSpec) -> Rope:
        """Layers with the same RoPE share one table."""
        key = (spec, self._context)
        if key not in self._ropes:
            self._ropes[key] = tables(spec, self._context, self.ops.device)
        return self._ropes[key]

    @property
    def weights(self) -> list[AnyWeight]:
        """Every linear weight of the layers, without embedding and head."""
        return [weight for layer in self.layers for weight in layer.weights]

    def forward(self, tokens: Tensor, batch: Batch, cache: list[CacheLayer], logit_rows: Tensor) -> Tensor:
        """``tokens`` [t] i32 -> logits [r, v] f32 of the rows ``logit_rows`` [r] i64; keys and values of all tokens go to ``cache``."""
        ops, spec = self.ops, self.spec
        scale = spec.residual_scale
        with torch.inference_mode():
            x = ops.embed(tokens, self.embedding, spec.embed_scale, ops.dtype)
            for layer, store in zip(self.layers, cache, strict=True):
                qkv = ops.norm_linear(x, layer.attention_norm, layer.qkv)
                q = ops.rope_store(qkv, layer.rope, batch, store, layer.heads)
                y = ops.attend(q, store, batch, layer.attention)
                x = ops.linear_add(y, layer.o, x, scale)
                y = ops.norm_gate_up(x, layer.mlp_norm, layer.gate_up, layer.spec.mlp.activation)
                x = ops.linear_add(y, layer.down, x, scale)
            logits = ops.norm_head(x[logit_rows], self.final_norm, self.head, spec.logit_scale, spec.logit_softcap)
            return logits[:, : spec.vocab]
