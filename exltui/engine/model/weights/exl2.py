"""EXL2 weights: rows sorted by importance, cut into groups of one bit width each, a 4-bit scale for every group and column."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import unpack_columns, unpack_nibbles
from exltui.engine.ops.cuda_layout import Packed, shared_order
from exltui.errors import ModelError

WIDTHS = (2, 3, 4, 5, 6, 8)
PARTS = {  # suffix in the file: dtype and dimensions
    "q_weight": (torch.int32, 2),
    "q_invperm": (torch.int32, 1),
    "q_scale": (torch.int32, 2),
    "q_scale_max": (torch.float16, 1),
    "q_groups": (torch.int16, 1),
}


@dataclass(frozen=True, slots=True)
class Group:
    """``rows`` consecutive stored rows of one width, from packed row ``first`` of q_weight on."""

    bits: int
    first: int
    rows: int


@dataclass(frozen=True)
class Exl2Weight:
    """One quantised linear layer as it lies in the file; P packed rows, G groups.

    ``q_weight`` [P, n] i32, ``q_invperm`` [k] i32 (stored row of each input feature), ``q_scale`` [G, n / 8] i32 (nibbles),
    ``q_scale_max`` [G] f16, ``q_groups`` [2G] i16 (pairs of bits and first packed row), ``bias`` [n] or None. ``prescale`` is the
    model's logit or residual scale, which the format folds into the scales when it is read.
    """

    q_weight: Tensor
    q_invperm: Tensor
    q_scale: Tensor
    q_scale_max: Tensor
    q_groups: Tensor
    bias: Tensor | None = None
    prescale: float = 1.0
    groups: tuple[Group, ...] = field(default=())
    format: str = "exl2"

    @staticmethod
    def read(tensors: dict[str, Tensor]) -> Exl2Weight:
        """From tensors named as in the file. Raises ModelError if they are not what the format says."""
        for part, (dtype, dimensions) in PARTS.items():
            tensor = tensors[part]
            if tensor.dtype != dtype or tensor.dim() != dimensions:
                found = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
                raise ModelError(f"{part} is {found}", "this is not the EXL2 format; download the model again")
        q_weight, q_invperm, q_scale, q_scale_max, q_groups = (tensors[part] for part in PARTS)
        return Exl2Weight(q_weight, q_invperm, q_scale, q_scale_max, q_groups, tensors.get("bias"))

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", _groups(self))

    @property
    def shape(self) -> tuple[int, int]:
        return self.q_weight.shape[1], self.q_invperm.shape[0]

    @property
    def nbytes(self) -> int:
        parts: list[Tensor] = [getattr(self, name) for name in PARTS]
        return sum(part.numel() * part.element_size() for part in parts)

    @cached_property
    def q_perm(self) -> Tensor:
        """[k] i32: the input feature of each stored row."""
        order = torch.empty_like(self.q_invperm)
        order[self.q_invperm.long()] = torch.arange(len(order), dtype=order.dtype)
        return order

    @cached_property
    def group_table(self) -> Tensor:
        """[G, 3] i32 on the CPU: bits, first packed row, rows of each group."""
        return torch.tensor([(g.bits, g.first, g.rows) for g in self.groups], dtype=torch.int32)

    @cached_property
    def scales(self) -> Tensor:
        """[G, n] f16: what a centred code is multiplied with. Rounded twice, as the format defines; subnormals count."""
        factor = torch.tensor(self.prescale / 256, dtype=torch.float32)
        scale_max = (self.q_scale_max.float() * factor).half()
        steps = unpack_nibbles(self.q_scale) + 1
        return ((steps * steps).float() * scale_max.float().unsqueeze(1)).half()

    def stored(self) -> Tensor:
        """[k, n] f16 in stored row order, bit-exact."""
        parts = []
        for index, group in enumerate(self.groups):
            words = self.q_weight[group.first : group.first + group.rows * group.bits // 32]
            centred = unpack_columns(words, group.bits, group.rows) - (1 << (group.bits - 1))
            parts.append((centred.float() * self.scales[index].to(words.device).float()).half())
        return torch.cat(parts)

    def dense(self) -> Tensor:
        """[n, k] f16, bit-exact. The result is a transposed view."""
        return self.stored()[self.q_invperm.long()].t()

    def seen(self, x: Tensor) -> Tensor:
        return x

    def prepare(self, device: torch.device, features: Tensor | None = None, *, sorted_input: bool = False) -> Exl2Weight | Packed:
        """On ``device``: a GPU gets it in the order of its kernels.

        On the CPU the packed words stay memory-mapped; what is derived from the rest is made now, not in a step. Only a GPU takes
        ``features``, the out-feature of each row, and ``sorted_input``: x will come in the order of the stored rows.
        """
        if device.type == "cpu":
            _ = self.q_perm, self.group_table, self.scales
            return self
        from exltui.engine.model.weights.packed import pack_exl2

        order = None if sorted_input else shared_order(self.q_perm, device)
        parts = {name: getattr(self, name).to(device, non_blocking=True) for name in ("q_weight", "q_scale", "q_scale_max")}
        bias = None if self.bias is None else self.bias.to(device, torch.float16)
        return pack_exl2(replace(self, **parts, bias=bias), order, features)


def _groups(weight: Exl2Weight) -> tuple[Group, ...]:
    """The extents of the groups, checked against every other size. Raises ModelError."""
    packed, n = weight.q_weight.shape
    if not weight.q_groups.numel() or weight.q_groups.numel() % 2:
        raise ModelError(f"q_groups has {weight.q_groups.numel()} numbers, not pairs", "download the model again")
    pairs = (weight.q_groups.to(torch.int32) & 0xFFFF).view(-1, 2).tolist()
    ends = [*(first for _, first in pairs[1:]), packed]
    groups = []
    for (bits, first), end in zip(pairs, ends, strict=True):
        if bits not in WIDTHS or not first < end <= packed:
            raise ModelError(
                f"EXL2 group of {bits} bits in packed rows {first} to {end} of {packed} is impossible", "download the model again"
            )
        rows = (end - first) * 32 // bits
        if rows % 32 or rows * bits != (end - first) * 32:
            raise ModelError(f"EXL2 group of {rows} rows: groups are multiples of 32 rows", "download the model again")
        groups.append(Group(bits, first, rows))
    k, count = sum(g.rows for g in groups), len(groups)
    problems = [
        (k != weight.q_invperm.shape[0], f"its groups hold {k} rows, q_invperm has {weight.q_invperm.shape[0]}"),
        (pairs[0][1] != 0, f"its first group begins at packed row {pairs[0][1]}"),
        (n % 32 != 0, f"{n} columns are not a multiple of 32"),
        (tuple(weight.q_scale.shape) != (count, n // 8), f"q_scale is {tuple(weight.q_scale.shape)}, expected {(count, n // 8)}"),
        (weight.q_scale_max.shape[0] != count, f"q_scale_max has {weight.q_scale_max.shape[0]} entries, expected {count}"),
        (any(a.bits < b.bits for a, b in itertools.pairwise(groups)), "its widths increase from group to group"),
        (not _is_permutation(weight.q_invperm, k), "q_invperm is not a permutation"),
    ]
    for wrong, sentence in problems:
        if wrong:
            raise ModelError(sentence, "download the model again")
    return tuple(groups)


def _is_permutation(indices: Tensor, k: int) -> bool:
    if indices.shape[0] != k or int(indices.min()) < 0 or int(indices.max()) >= k:
        return False
    found = torch.zeros(k, dtype=torch.bool)
    found[indices.long()] = True
    return bool(found.all())
