"""What a model is, as data: one ArchSpec for each checkpoint, which one Decoder runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exltui.engine.ops.rope import RopeSpec
from exltui.engine.ops.types import Activation


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    h: int  # query heads
    g: int  # key/value heads
    d: int  # head dimension
    scale: float  # of the scores
    rope: RopeSpec | None
    softcap: float = 0.0
    window: int = 0  # keys that a token sees; 0: all
    head_norm: bool = False  # RMSNorm over each head of q and k before RoPE


@dataclass(frozen=True, slots=True)
class MlpSpec:
    width: int
    activation: Activation
    gated: bool = True


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A linear layer: its full name in the file, out-features and in-features."""

    name: str
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer. Names are completed to ``{prefix}{name}.weight`` and so on."""

    prefix: str
    attention: AttentionSpec
    mlp: MlpSpec
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"

    def linears(self, hidden: int) -> tuple[tuple[LinearSpec, ...], ...]:
        """(q, k, v), (o,), (gate, up) or (up,), (down,): those that read the same input together."""
        queries, keys, width = self.attention.h * self.attention.d, self.attention.g * self.attention.d, self.mlp.width

        def linear(name: str, n: int, k: int) -> LinearSpec:
            return LinearSpec(self.prefix + name, n, k)

        up = linear(self.up, width, hidden)
        return (
            (linear(self.q, queries, hidden), linear(self.k, keys, hidden), linear(self.v, keys, hidden)),
            (linear(self.o, hidden, queries),),
            (linear(self.gate, width, hidden), up) if self.mlp.gated else (up,),
            (linear(self.down, hidden, width),),
        )


@dataclass(frozen=True, slots=True)
class ArchSpec:
    architecture: str
    vocab: int
    hidden: int
    layers: tuple[LayerSpec, ...]
    eps: float
    trained_context: int
    tied: bool  # the head is the embedding where the file has no head of its own
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    residual_scale: float = 1.0
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"

    def linears(self) -> list[tuple[LinearSpec, ...]]:
        """Every linear layer, those with the same input together, the head last."""
        groups = [group for layer in self.layers for group in layer.linears(self.hidden)]
        return [*groups, (LinearSpec(self.head, self.vocab, self.hidden),)]
