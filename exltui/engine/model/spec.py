"""What a model is, as data: one ArchSpec for each checkpoint, which one Decoder runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exltui.engine.ops.rope import RopeSpec
from exltui.engine.ops.types import Activation

# Which values of q (and k) share a norm: those of a head, with one weight for all heads or one for each; or those of all heads together.
HeadNorm = Literal["", "head", "each head", "all heads"]


@dataclass(frozen=True, slots=True)
class Part:
    """Where a linear layer lies within a tensor that holds more: rows ``begin`` .. ``begin + count`` of every run of ``of`` rows.

    With ``experts`` the tensor is a stack of that many, of which ``expert`` is meant. ``transposed``: the file holds [k, n].
    """

    name: str
    begin: int
    count: int
    of: int
    expert: int = 0
    experts: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A linear layer: its full name in the file, out-features and in-features.

    ``part`` says where it may lie instead of under its own name; ``plain``: it is too small to be worth quantising.
    """

    name: str
    n: int
    k: int
    part: Part | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    h: int  # query heads
    g: int  # key/value heads
    d: int  # head dimension
    scale: float  # of the scores
    rope: RopeSpec | None
    softcap: float = 0.0
    window: int = 0  # keys that a token sees; 0: all
    head_norm: HeadNorm = ""  # over q and k, before RoPE
    clip: float = 0.0  # q, k and v are kept within -clip .. clip; 0: they are not
    sinks: str = ""  # name of a logit for each query head that takes part in the softmax and has no value


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """``gate_up``: (gate, up), or (up,) where there is no gate."""

    gate_up: tuple[LinearSpec, ...]
    down: LinearSpec
    activation: Activation

    def linears(self) -> list[tuple[LinearSpec, ...]]:
        return [self.gate_up, (self.down,)]


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Experts of which each token takes the ``top`` likeliest, and perhaps one that every token takes."""

    router: LinearSpec
    experts: tuple[MlpSpec, ...]
    top: int
    renormalise: bool = True  # the weights of the chosen experts sum up to 1
    correction: str = ""  # name of a bias that counts when experts are chosen, not when they are weighed
    shared: MlpSpec | None = None
    shared_gate: LinearSpec | None = None  # its sigmoid weighs the shared expert; without it the weight is 1

    @property
    def activation(self) -> Activation:
        return self.experts[0].activation

    @property
    def routers(self) -> tuple[LinearSpec, ...]:
        """What decides about the weights of the experts."""
        return (self.router, *(() if self.shared_gate is None else (self.shared_gate,)))

    @property
    def mlps(self) -> tuple[MlpSpec, ...]:
        """The experts, the shared one last."""
        return (*self.experts, *(() if self.shared is None else (self.shared,)))

    def linears(self) -> list[tuple[LinearSpec, ...]]:
        return [self.routers, *(group for expert in self.mlps for group in expert.linears())]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer. Norms are named in full; ``""`` is a norm that the family does not have."""

    attention: AttentionSpec
    qkv: tuple[LinearSpec, LinearSpec, LinearSpec]
    o: LinearSpec
    mlp: MlpSpec | MoeSpec
    attention_norm: str
    mlp_norm: str
    attention_post_norm: str = ""  # over what attention adds to the residual
    mlp_post_norm: str = ""
    q_norm: str = ""
    k_norm: str = ""
    parallel: bool = False  # attention and MLP read the same input

    def norms(self) -> list[str]:
        names = (self.attention_norm, self.mlp_norm, self.attention_post_norm, self.mlp_post_norm, self.q_norm, self.k_norm)
        return list(dict.fromkeys(name for name in names if name))

    def linears(self) -> list[tuple[LinearSpec, ...]]:
        """(q, k, v), (o,), then those of the MLP: each group reads one input."""
        return [self.qkv, (self.o,), *self.mlp.linears()]


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
    normalised_head: bool = False  # the head's rows have length 1
    wide_residual: bool = False  # what the layers add up does not fit into f16
    embedding: str = "model.embed_tokens"
    positions: str = ""  # a table of learned positions
    final_norm: str = "model.norm"
    head: str = "lm_head"
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement): from the file's names to those above

    @property
    def head_linear(self) -> LinearSpec:
        return LinearSpec(self.head, self.vocab, self.hidden)

    def linears(self) -> list[tuple[LinearSpec, ...]]:
        """Every linear layer, those with the same input together, the head last."""
        groups = [group for layer in self.layers for group in layer.linears()]
        return [*groups, (self.head_linear,)]
