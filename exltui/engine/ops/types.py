"""What the op table works on: plain structs over tensors.

Dimension letters, here and everywhere: ``t`` tokens in a step, ``b`` sequences, ``k`` in-features, ``n`` out-features, ``h`` query
heads, ``g`` key/value heads, ``d`` head dimension, ``p`` pages, ``v`` vocabulary, ``e`` experts, ``r`` LoRA rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

PAGE = 256  # tokens in a cache page

# The last is GPT-OSS's: with gate g at most 7 and up u within -7 .. 7, g * sigmoid(1.702 g) * (u + 1).
Activation = Literal["silu", "gelu_tanh", "gelu", "clamped_swiglu"]


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm or LayerNorm over the last dimension. ``offset`` is added to the weight (1.0 for the Gemma family)."""

    weight: Tensor  # [k]; [h, d] where each head has its own
    eps: float
    bias: Tensor | None = None  # [k], LayerNorm only
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position tables, one row for each position. The rotated part of a head is ``2 * cos.shape[1]`` wide."""

    cos: Tensor  # [positions, d_rot/2] f32
    sin: Tensor  # [positions, d_rot/2] f32
    interleaved: bool = False  # pairs (2i, 2i+1) as in GPT-J; otherwise (i, i + d_rot/2) as in GPT-NeoX
    sections: tuple[int, ...] = ()  # M-RoPE: how many pairs follow the first, second and third plane of positions, in turn


@dataclass(frozen=True, slots=True)
class Heads:
    """How a fused row of q, k and v falls into heads, and what q and k pass before RoPE.

    The norms are over each head, or ``over_all`` heads together. If ``clip`` > 0, q, k and v are first kept within -clip .. clip.
    """

    h: int
    g: int
    d: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    over_all: bool = False
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """Keys and values of one layer, in pages of 256 tokens.

    At 16 bits ``k`` and ``v`` are [p, 256, g, d] f16 (f32 on request, for parity tests on the CPU) and there are no scales. At 8 and
    4 bits they are u8 codes [p, 256, g, d * bits / 8] of Hadamard-rotated values, with f16 scales [p, 256, g, d / 32].
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    k_bits: int
    v_bits: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Where the tokens of a step stand. All i32, on the step's device."""

    positions: Tensor  # [t] position of each token in its sequence
    slots: Tensor  # [t] where its key and value go: page * 256 + offset
    query_start: Tensor  # [b + 1] tokens of sequence i: query_start[i] .. query_start[i + 1]
    lengths: Tensor  # [b] keys of each sequence, this step's included
    page_table: Tensor  # [b, p] pages of each sequence in order; unused entries are 0
    spans: tuple[list[int], list[int]] | None = None  # query_start and lengths once more, on the host, where they are known there
    planes: Tensor | None = None  # [3, t] M-RoPE: temporal position, row and column; None: all three are ``positions``


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention: scores are ``scale * q k``, soft-capped if ``softcap`` > 0, over the last ``window`` keys if > 0.

    ``sinks`` [h] f32 are logits that take part in the softmax beside the scores and have no values.
    """

    scale: float
    softcap: float = 0.0
    window: int = 0
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """How a router's logits choose experts: the ``top`` likeliest, their weights made to sum up to 1 if ``renormalise``.

    ``correction`` [e] f32 is added to the probabilities for the choice only.
    """

    top: int
    renormalise: bool = True
    correction: Tensor | None = None


class Weight(Protocol):
    """A linear layer's weight in some format. ``y = seen(x) @ dense().T + bias``."""

    @property
    def format(self) -> str:
        """``"dense"``, ``"exl2"``, ``"gptq"`` or ``"blocked"``: which kernel reads it."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """[n] or None."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that a product with this weight must read."""
        ...

    def dense(self) -> Tensor:
        """[n, k] in f16, bf16 or f32."""
        ...

    def seen(self, x: Tensor) -> Tensor:
        """``x`` [t, k] f32 as a product sees it: itself, except where the format rounds activations."""
        ...


@dataclass(frozen=True, slots=True)
class Expert:
    """A small MLP. ``gate_up``: (gate [n, k], up [n, k]) or (up,); ``down`` [k, n]. Experts of one layer may differ in n."""

    gate_up: tuple[Weight, ...]
    down: Weight

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + sum(weight.nbytes for weight in self.gate_up)
