"""One decoder for every family: it runs what an ArchSpec describes, through the op table, and knows no weight format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from exltui.engine.model.lora import AdapterBank
from exltui.engine.model.preparation import Preparation, blocked_bytes
from exltui.engine.model.spec import ArchSpec, LayerSpec, LinearSpec, MlpSpec, MoeSpec
from exltui.engine.model.tensors import AnyWeight, Checkpoint
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.ops import OpSet, references
from exltui.engine.ops.rope import RopeSpec, tables
from exltui.engine.ops.types import Activation, Attention, Batch, CacheLayer, Expert, Heads, Norm, Rope, Routing


@dataclass(frozen=True, slots=True)
class Mlp:
    gate_up: tuple[AnyWeight, ...]
    down: AnyWeight
    activation: Activation

    @property
    def weights(self) -> tuple[AnyWeight, ...]:
        return (*self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class Moe:
    """The last of ``mlps`` is the one that every token takes, if ``shared``; ``gate`` then weighs it, or 1."""

    router: AnyWeight
    routing: Routing
    mlps: tuple[Mlp, ...]
    experts: tuple[Expert, ...]  # the same, as the op table takes them
    activation: Activation
    shared: bool
    gate: AnyWeight | None

    @property
    def weights(self) -> tuple[AnyWeight, ...]:
        return tuple(weight for mlp in self.mlps for weight in mlp.weights)


@dataclass(frozen=True, slots=True)
class Layer:
    """A LayerSpec with its tensors on the device."""

    attention_norm: Norm | None
    qkv: tuple[AnyWeight, ...]
    heads: Heads
    rope: Rope | None
    attention: Attention
    o: AnyWeight
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp | Moe
    mlp_post_norm: Norm | None
    spec: LayerSpec

    @property
    def weights(self) -> tuple[AnyWeight, ...]:
        return (*self.qkv, self.o, *self.mlp.weights)


class Adapting:
    """The adapters of one step: adds what they change to the results of products."""

    def __init__(self, bank: AdapterBank, ops: OpSet, mix: Tensor) -> None:
        self.bank = bank
        self.ops = ops
        self.mix = mix  # [t, slots] f32

    def add(self, y: Tensor, x: Tensor, norm: Norm | None, linears: tuple[LinearSpec, ...], scale: float = 1.0) -> Tensor:
        """``y`` and, times ``scale``, what the adapters add to the results of ``linears`` for ``x``."""
        stack = self.bank.stack(linears)
        return y if stack is None else self.ops.lora_add(y, x, norm, stack.a, stack.b, self.mix[:, stack.slots], scale)


class Decoder:
    """The forward pass. ``context`` bounds the positions that the RoPE tables cover."""

    def __init__(self, spec: ArchSpec, checkpoint: Checkpoint, ops: OpSet, context: int, prepare: Preparation | None = None) -> None:
        self.spec = spec
        self.ops = ops
        self.dtype = torch.float32 if spec.wide_residual else ops.dtype  # of the residual
        self.adapters = AdapterBank(spec, ops.device, ops.dtype)
        self._ropes: dict[tuple[RopeSpec, int], Rope] = {}
        self._checkpoint = checkpoint
        self._context = context
        self._prepare = prepare or Preparation(ops.device)
        embedding = checkpoint.weight(LinearSpec(spec.embedding, spec.vocab, spec.hidden))
        self.embedding = embedding.prepare(ops.device).dense()
        self.positions = self._positions(context) if spec.positions else None
        self.layers = []
        for layer in spec.layers:
            self.layers.append(self._layer(layer))
            if blocked_bytes(self.layers[-1].weights):
                checkpoint.release()
        self.final_norm = self._norm(spec.final_norm, spec.hidden)
        tied = spec.tied and not checkpoint.has_weight(spec.head)
        head = embedding if tied else checkpoint.weight(spec.head_linear, padded=True)
        if spec.normalised_head and isinstance(head, DenseWeight):
            rows = head.weight.float()
            head = DenseWeight((rows / rows.norm(dim=-1, keepdim=True)).to(head.weight.dtype), head.bias)
        self.head = self._prepare(head, head=True)
        self._run = ops.compile_decoder(self) if ops.compile_decoder else None

    def _weight(self, linear: LinearSpec) -> AnyWeight:
        return self._prepare(self._checkpoint.weight(linear))

    def _positions(self, context: int) -> Tensor:
        """The table of learned positions, which bounds the context."""
        name, spec = f"{self.spec.positions}.weight", self.spec
        return self._checkpoint.vector(name, spec.trained_context * spec.hidden).view(-1, spec.hidden)[:context].to(self.ops.device)

    def _norm(self, name: str, size: int) -> Norm | None:
        if not name:
            return None
        weight = self._checkpoint.vector(f"{name}.weight", size).to(self.ops.device, non_blocking=True)
        bias = None
        if self.spec.norm == "layer" and f"{name}.bias" in self._checkpoint:
            bias = self._checkpoint.vector(f"{name}.bias", size).to(self.ops.device)
        return Norm(weight, self.spec.eps, bias, self.spec.norm, self.spec.norm_offset)

    def _layer(self, spec: LayerSpec) -> Layer:
        attention, hidden, device = spec.attention, self.spec.hidden, self.ops.device
        sinks = self._checkpoint.vector(attention.sinks, attention.h).to(device) if attention.sinks else None
        return Layer(
            attention_norm=self._norm(spec.attention_norm, hidden),
            qkv=tuple(self._weight(linear) for linear in spec.qkv),
            heads=self._heads(spec),
            rope=None if attention.rope is None else self._rope(attention.rope),
            attention=Attention(attention.scale, attention.softcap, attention.window, sinks),
            o=self._weight(spec.o),
            attention_post_norm=self._norm(spec.attention_post_norm, hidden),
            mlp_norm=self._norm(spec.mlp_norm, hidden),
            mlp=self._moe(spec.mlp) if isinstance(spec.mlp, MoeSpec) else self._mlp(spec.mlp),
            mlp_post_norm=self._norm(spec.mlp_post_norm, hidden),
            spec=spec,
        )

    def _heads(self, spec: LayerSpec) -> Heads:
        attention = spec.attention
        norms = []
        for name, heads in ((spec.q_norm, attention.h), (spec.k_norm, attention.g)):
            if attention.head_norm in ("", "all heads"):
                norms.append(self._norm(name, heads * attention.d))
                continue
            weight = self._checkpoint.head_vector(f"{name}.weight", heads, attention.d, each=attention.head_norm == "each head")
            norms.append(Norm(weight.to(self.ops.device), self.spec.eps, None, self.spec.norm, self.spec.norm_offset))
        return Heads(attention.h, attention.g, attention.d, norms[0], norms[1], attention.head_norm == "all heads", attention.clip)

    def _mlp(self, spec: MlpSpec) -> Mlp:
        gate_up, down, between = self._prepare.mlp(
            tuple(self._checkpoint.weight(linear) for linear in spec.gate_up), self._checkpoint.weight(spec.down)
        )
        if between is not None:
            self.adapters.sort(spec, between)
        return Mlp(gate_up, down, spec.activation)

    def _moe(self, spec: MoeSpec) -> Moe:
        mlps = tuple(self._mlp(expert) for expert in spec.mlps)
        correction = self._checkpoint.vector(spec.correction, len(spec.experts)).to(self.ops.device) if spec.correction else None
        return Moe(
            self._weight(spec.router),
            Routing(spec.top, spec.renormalise, correction),
            mlps,
            tuple(Expert(mlp.gate_up, mlp.down) for mlp in mlps),
            spec.activation,
            spec.shared is not None,
            None if spec.shared_gate is None else self._weight(spec.shared_gate),
        )

    def _rope(self, spec: RopeSpec) -> Rope:
        """Layers with the same RoPE share one table."""
        key = (spec, self._context)
        if key not in self._ropes:
            self._ropes[key] = tables(spec, self._context, self.ops.device)
        return self._ropes[key]

    @property
    def in_one_call(self) -> bool:
        """Whether ``run`` can be used: there is one native call of all layers, and nobody wants to see its rows."""
        return self._run is not None and self.ops.whole

    @property
    def rows_alike(self) -> int:
        """How many rows a step may have so that each is computed as if it were alone."""
        return self.ops.rows_alike if self._run is not None else 1

    @property
    def weights(self) -> list[AnyWeight]:
        """Every linear weight of the layers, without embedding, head and routers."""
        return [weight for layer in self.layers for weight in layer.weights]

    def run(self, numbers: list[int], sizes: tuple[int, int, int, int], cache: list[CacheLayer]) -> Tensor:
        """What ``forward`` computes of a step without adapters, from its plain numbers (engine/run/step.py)."""
        assert self._run is not None
        return references.capped(self._run(numbers, sizes, cache), self.spec.logit_scale, self.spec.logit_softcap)

    def forward(self, tokens: Tensor, batch: Batch, cache: list[CacheLayer], logit_rows: Tensor, mix: Tensor | None = None) -> Tensor:
        """``tokens`` [t] i32 -> logits [r, v] f32 of the rows ``logit_rows`` [r] i32; keys and values of all tokens go to ``cache``.

        ``mix`` [t, slots] f32: how much of each adapter each token uses; None: none of any.
        """
        ops, spec = self.ops, self.spec
        with torch.inference_mode():
            x = ops.embed(tokens, self.embedding, spec.embed_scale, self.dtype)
            if self.positions is not None:
                x = x + ops.embed(batch.positions, self.positions, 1.0, self.dtype)
            if mix is None:
                x, norm = self._narrow(self._row_by_row(x, batch, cache)[logit_rows], self.final_norm)
                return ops.norm_head(x, norm, self.head, spec.logit_scale, spec.logit_softcap)[:, : spec.vocab]
            mix = functional.pad(mix, (0, self.adapters.width - mix.shape[1]))
            x = self.adapters.embed(x, tokens, mix, spec.embed_scale)
            x = self._row_by_row(x, batch, cache, Adapting(self.adapters, ops, mix))
            return self._adapted_head(x[logit_rows], mix[logit_rows])

    def _row_by_row(self, x: Tensor, batch: Batch, cache: list[CacheLayer], adapting: Adapting | None = None) -> Tensor:
        """All layers on ``x`` [t, k] -> [t, k]."""
        ops = self.ops
        for layer, store in zip(self.layers, cache, strict=True):
            seen, norm = self._narrow(x, layer.attention_norm)
            qkv = ops.norm_linear(seen, norm, layer.qkv)
            if adapting is not None:
                qkv = adapting.add(qkv, seen, norm, layer.spec.qkv)
            q = ops.rope_store(qkv, layer.rope, batch, store, layer.heads)
            y = ops.attend(q, store, batch, layer.attention)
            attended = self._add(y, layer.o, layer.spec.o, layer.attention_post_norm, x, adapting)
            x = self._feed(x if layer.spec.parallel else attended, layer, attended, adapting)
        return x

    def _narrow(self, x: Tensor, norm: Norm | None) -> tuple[Tensor, Norm | None]:
        """What products read: ``x`` with a norm to come, or normalised where it is wider than activations are."""
        return (x, norm) if x.dtype == self.ops.dtype else (self.ops.normed(x, norm, self.ops.dtype), None)

    def _add(
        self, y: Tensor, weight: AnyWeight, linear: LinearSpec, norm: Norm | None, residual: Tensor, adapting: Adapting | None
    ) -> Tensor:
        """``residual`` and what a block gives, normed if the family does that."""
        ops, scale = self.ops, self.spec.residual_scale
        if norm is None:
            if adapting is not None:
                residual = adapting.add(residual, y, None, (linear,), scale)
            return ops.linear_add(y, weight, residual, scale)
        given = ops.norm_linear(y, None, (weight,))
        if adapting is not None:
            given = adapting.add(given, y, None, (linear,))
        return ops.norm_add(given, norm, residual, scale)

    def _feed(self, x: Tensor, layer: Layer, residual: Tensor, adapting: Adapting | None) -> Tensor:
        """``residual`` and what the MLP or the experts make of ``x``."""
        ops, mlp, spec, norm = self.ops, layer.mlp, layer.spec.mlp, layer.mlp_norm
        if isinstance(mlp, Mlp) and isinstance(spec, MlpSpec):
            x, norm = self._narrow(x, norm)
            if adapting is None or adapting.bank.stack(spec.gate_up) is None:
                y = ops.norm_gate_up(x, norm, mlp.gate_up, mlp.activation)
            else:  # what adapters add comes before the activation
                y = adapting.add(ops.norm_linear(x, norm, mlp.gate_up), x, norm, spec.gate_up)
                y = ops.activate(y, mlp.activation, len(mlp.gate_up) == 2)
            return self._add(y, mlp.down, spec.down, layer.mlp_post_norm, residual, adapting)
        assert isinstance(mlp, Moe)
        weights = ops.route(x, norm, mlp.router, mlp.routing)
        if mlp.shared:
            ones = torch.ones(len(weights), 1, dtype=weights.dtype, device=weights.device)
            share = ones if mlp.gate is None else ops.norm_linear(x, norm, (mlp.gate,)).float().sigmoid()
            weights = torch.cat((weights, share), dim=1)
        if adapting is not None and adapting.bank.changes(spec):
            return self._adapted_experts(x, norm, weights, layer, residual, adapting)
        most = mlp.routing.top + mlp.shared
        return ops.experts(x, norm, weights, mlp.experts, mlp.activation, residual, self.spec.residual_scale, most)

    def _adapted_experts(self, x: Tensor, norm: Norm | None, weights: Tensor, layer: Layer, residual: Tensor, adapting: Adapting) -> Tensor:
        """What ``experts`` does, one after the other, with what adapters add to the products of each."""
        ops, mlp, spec, total = self.ops, layer.mlp, layer.spec.mlp, residual.to(torch.float32, copy=True)
        assert isinstance(mlp, Moe)
        assert isinstance(spec, MoeSpec)
        for index, (expert, linears) in enumerate(zip(mlp.mlps, spec.mlps, strict=True)):
            rows = weights[:, index].nonzero().flatten()
            if not len(rows):
                continue
            own, part = x[rows], Adapting(adapting.bank, ops, adapting.mix[rows])
            y = part.add(ops.norm_linear(own, norm, expert.gate_up), own, norm, linears.gate_up)
            inner = ops.activate(y, expert.activation, len(expert.gate_up) == 2)
            given = part.add(ops.norm_linear(inner, None, (expert.down,)), inner, None, (linears.down,))
            total[rows] += given.float() * (weights[rows, index] * self.spec.residual_scale).unsqueeze(1)
        return total.to(residual.dtype)

    def _adapted_head(self, x: Tensor, mix: Tensor) -> Tensor:
        """Logits of ``x`` [r, k] with adapters: of tokens whose adapter brings a head, from that one."""
        ops, spec = self.ops, self.spec
        x, norm = self._narrow(x, self.final_norm)
        logits = ops.norm_head(x, norm, self.head)[:, : spec.vocab]
        for slot, head in self.adapters.heads():
            own = ops.norm_head(x, norm, head)
            logits = torch.where((mix[:, slot] != 0).unsqueeze(1), own, logits)
        logits = Adapting(self.adapters, ops, mix).add(logits, x, norm, (spec.head_linear,))
        return references.capped(logits, spec.logit_scale, spec.logit_softcap)
