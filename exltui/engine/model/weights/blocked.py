"""Weights in the order of the CPU's kernels, made when a model is loaded: from EXL2, from GPTQ, or from plain weights at 4 or 8 bits.

The layout is described in csrc/cpu/packed_impl.h. A weight is ``scale * (code - zero)``; rows (in-features) of a group share scale and
zero point in each column. EXL2 and GPTQ keep their codes and scales exactly. Plain weights are rounded to the nearest step, 32 rows a
group: at 8 bits 127 steps either way of zero, at 4 bits 15 steps from the least to the greatest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import cpu

BLOCK = 32  # columns of a block
UNIT = 32  # rows of a unit, and of a scale of 8-bit activations


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """``data`` u8 [n / 32 rounded up, bytes], ``groups`` [G, 2] i32 (bits and rows), ``order`` [rows] i32 or None, ``bias`` [n] or None.

    ``order`` names the in-feature of each stored row, -1 for none. ``int8``: products round activations to 8 bits, 32 at a time.
    ``source`` says what it was: "exl2", "gptq", "q4", "q8"; ``stored_bytes`` what it takes in its file, or here if the file has it plain.
    """

    data: Tensor
    groups: Tensor
    order: Tensor | None
    shape: tuple[int, int]
    zeros: bool
    int8: bool
    source: str
    stored_bytes: int
    bias: Tensor | None = None
    format: str = "blocked"

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    def dense(self) -> Tensor:
        """[n, k] f16, as EXL2 and GPTQ define it. The result is a transposed view."""
        n, k = self.shape
        parts, at = [], 0
        for bits, rows in self.groups.tolist():
            head = self.data[:, at : at + 64 * (1 + self.zeros)].contiguous().view(torch.float16).float()
            at += 64 * (1 + self.zeros)
            words = self.data[:, at : at + rows * bits * 4].contiguous().view(torch.int32).view(-1, rows // UNIT, bits, BLOCK)
            at += rows * bits * 4
            zero = head[:, None, BLOCK:] if self.zeros else 1 << (bits - 1)
            values = ((_codes(words, bits).view(-1, rows, BLOCK) - zero) * head[:, None, :BLOCK]).half()
            parts.append(values.transpose(0, 1).reshape(rows, -1)[:, :n])
        stored = torch.cat(parts)
        if self.order is None:
            return stored.t()
        found = torch.zeros(k, n, dtype=torch.float16)
        real = self.order >= 0
        found[self.order[real].long()] = stored[real]
        return found.t()

    def seen(self, x: Tensor) -> Tensor:
        """``x`` [t, k] f32 as a product sees it: itself, or with each 32 values of its stored order rounded to 8 bits."""
        if not self.int8:
            return x
        order = torch.arange(self.shape[1]) if self.order is None else self.order.long()
        stored = functional.pad(x, (0, 1))[:, order].unflatten(1, (-1, UNIT))  # index -1 is the zero at the end
        top = stored.abs().amax(-1, keepdim=True)
        codes = (stored * torch.where(top > 0, 127 / top, 0)).round()
        rounded = torch.zeros(x.shape[0], x.shape[1] + 1)
        rounded[:, order] = (codes * (top / 127)).flatten(1)
        return rounded[:, :-1]

    def prepare(self, device: torch.device) -> BlockedWeight:
        """It is prepared. Only the CPU's kernels read it."""
        return self


def _codes(words: Tensor, bits: int) -> Tensor:
    """[.., bits, 32] i32 -> [.., 32, 32] i32: the rows of a unit, put together from their planes."""
    planes = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}[bits]
    found = torch.zeros(*words.shape[:-2], 32, BLOCK, dtype=torch.int32)
    first = 0
    for width in planes:
        in_word = 8 // width
        for row in range(UNIT):
            quad, byte = divmod(row, 4)
            field = words[..., first + quad // in_word, :] >> (8 * byte + quad % in_word * width)
            found[..., row, :] |= (field & ((1 << width) - 1)) << first
        first += width
    return found


def block_exl2(weight: Exl2Weight, *, int8: bool) -> BlockedWeight:
    """On the CPU, with the native extension."""
    groups = torch.tensor([(group.bits, group.rows) for group in weight.groups], dtype=torch.int32)
    data = cpu.pack(weight.q_weight, "exl2", weight.scales, None, groups, weight.q_perm, weight.shape)
    return BlockedWeight(data, groups, weight.q_perm, weight.shape, False, int8, "exl2", weight.nbytes, weight.bias)


def block_gptq(weight: GptqWeight, *, int8: bool) -> BlockedWeight:
    """Rows of a group are brought together, and groups filled up to multiples of 32 rows."""
    k = weight.shape[1]
    sizes = torch.bincount(weight.g_idx, minlength=weight.scales.shape[0])
    used = sizes.nonzero().flatten()
    rows = (sizes[used] + UNIT - 1) // UNIT * UNIT
    sorted_rows = torch.argsort(weight.g_idx, stable=True).to(torch.int32)
    stored = torch.full((int(rows.sum()),), -1, dtype=torch.int32)
    places = torch.cat([torch.arange(int(size)) + int(start) for size, start in zip(sizes[used], rows.cumsum(0) - rows, strict=True)])
    stored[places] = sorted_rows
    order = None if torch.equal(stored, torch.arange(k, dtype=torch.int32)) else stored
    groups = torch.stack((torch.full_like(rows, 4), rows), 1).to(torch.int32)
    scales, zeros = weight.scales[used].contiguous(), weight.zeros[used].contiguous()
    data = cpu.pack(weight.qweight, "gptq", scales, zeros, groups, order, weight.shape)
    return BlockedWeight(data, groups, order, weight.shape, True, int8, "gptq", weight.nbytes, weight.bias)


def block_plain(weight: DenseWeight, bits: int, *, int8: bool) -> BlockedWeight:
    """``weight`` rounded to 4 or 8 bits; its k is a multiple of 32."""
    groups = torch.tensor([(bits, UNIT)] * (weight.shape[1] // UNIT), dtype=torch.int32)
    data = cpu.pack(weight.weight, "plain", None, None, groups, None, weight.shape)
    return BlockedWeight(data, groups, None, weight.shape, bits == 4, int8, f"q{bits}", data.numel(), weight.bias)
