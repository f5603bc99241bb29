"""The order in which the CUDA kernels read low-bit weights, made once when a model loads. Pure torch, so it is tested without a GPU.

A weight becomes *panels*: runs of stored rows (k) with one bit width. A panel is cut into tiles of 32 out-features by 32 in-features;
the tiles of one column of tiles (32 out-features, all of the panel's k) are adjacent, and columns follow each other, so that a warp
streams one contiguous run. Within a tile, lane ``l`` of the warp holds 32 weights as 16 pairs along k. Pair ``i = 8m + 4s + r`` is
register ``r`` of the tensor core's 16 x 16 operand A for out-features ``16m`` on and product ``s``: out-feature
``16m + 8(r % 2) + l // 4``, in-features ``8(l % 4) + 4s + 2(r // 2)`` and the next. (The product sums over k, so any order of k will do
as long as x is read in the same one: this one lets a lane read its eight x values in one load.)

The 32 codes of ``bits`` bits fill ``bits`` words: the first of a pair in the low 16 bits of a word, the second in the high 16 bits.
As many whole fields as fit lie from bit 0 upwards, ``16 // bits`` a half; what is left over at the top of the halves holds the last
pairs: at 3 and 5 bits one pair, its bit ``j`` the top bit of word ``j``; at 6 bits four pairs, from the top four bits of words 0-2 and
of words 3-5: the third word gives its lower two of these bits to the first pair, the upper two to the second. Words of a tile are stored
in planes of four words a lane, then two, then one, so that each load of a warp is one contiguous run.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from exltui.errors import ModelError

TILE = 32
DENSE_BITS = 16  # "width" of an fp16 matrix, which lies in plain rows
GPTQ_TAG = 20  # 4-bit codes with zero points; kGptqBits of kernels.cuh
WIDTHS = (2, 3, 4, 5, 6, 8)
_SLAB = {"cpu": 1 << 22, "cuda": 1 << 25}  # weights shuffled at a time: bounds the temporary memory to about 25 bytes each


@dataclass(frozen=True, slots=True)
class Panel:
    """A run of stored rows with one width. ``tag`` is the width or ``GPTQ_TAG``."""

    tag: int
    words: Tensor  # [columns * tiles * bits * 32] i32
    scales: Tensor  # [columns, tiles >> group_shift, 8, 4] f16; GPTQ [.., 8, 8]: scales, then 8 - zero
    tiles: int
    columns: int
    group_shift: int  # log2 of the tiles that share one row of scales
    first_tile: int

    @property
    def bits(self) -> int:
        return 4 if self.tag == GPTQ_TAG else self.tag


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A weight [n, k] in kernel order; ``format`` is that of the file: "exl2" or "gptq".

    ``order[i]`` is the in-feature of stored row i (u16 bits in an i16 tensor), or None where stored order is x's own. Weights with equal
    orders share one tensor, so that ``is`` says whether one x serves several of them.
    """

    n: int
    k: int
    panels: tuple[Panel, ...]
    order: Tensor | None
    bias: Tensor | None = None
    format: str = "exl2"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    @property
    def nbytes(self) -> int:
        tensors = [t for p in self.panels for t in (p.words, p.scales)] + [self.order, self.bias]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def dense(self) -> Tensor:
        """[n, k] f16, bit-exact: every value is RN16(code * scale)."""
        stored = torch.cat([_panel_dense(panel) for panel in self.panels], dim=1)
        if self.order is None:
            return stored
        out = torch.empty_like(stored)
        out[:, self.order.long() & 0xFFFF] = stored
        return out

    def seen(self, x: Tensor) -> Tensor:
        return x


# ── codes to words ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lane_places(device: torch.device) -> tuple[Tensor, Tensor]:
    """Out-feature and in-feature within a tile of (lane, pair, element): two i64 [32, 16, 2]."""
    lane = torch.arange(32, device=device).view(32, 1, 1)
    pair = torch.arange(16, device=device).view(1, 16, 1)
    element = torch.arange(2, device=device).view(1, 1, 2)
    m, s, r = pair // 8, pair // 4 % 2, pair % 4
    rows = 16 * m + 8 * (r % 2) + lane // 4
    columns = 8 * (lane % 4) + 4 * s + 2 * (r // 2) + element
    return (rows + 0 * columns), (columns + 0 * rows)


def _compose(pairs: Tensor, bits: int) -> Tensor:
    """Codes [.., 16 pairs, 2] i32 -> words [.., bits] i32."""
    whole = 16 // bits
    halves = torch.zeros((*pairs.shape[:-2], bits, 2), dtype=torch.int32, device=pairs.device)
    for word in range(bits):
        for field in range(whole):
            halves[..., word, :] |= pairs[..., word * whole + field, :] << (field * bits)
    if bits in (3, 5):
        for word in range(bits):
            halves[..., word, :] |= ((pairs[..., 15, :] >> word) & 1) << 15
    if bits == 6:
        for first in (0, 1):
            low, high, shared = 3 * first, 3 * first + 1, 3 * first + 2
            one, two = pairs[..., 12 + 2 * first, :], pairs[..., 13 + 2 * first, :]
            halves[..., low, :] |= (one & 15) << 12
            halves[..., high, :] |= (two & 15) << 12
            halves[..., shared, :] |= ((one >> 4) << 12) | ((two >> 4) << 14)
    return halves[..., 0] | (halves[..., 1] << 16)


def _planes(words: Tensor) -> Tensor:
    """[tiles, 32 lanes, bits] -> [tiles, bits * 32] in planes of four, two and one word a lane."""
    bits, parts, at = words.shape[-1], [], 0
    for width in (4, 2, 1):
        while bits - at >= width:
            parts.append(words[..., at : at + width].flatten(-2))
            at += width
    return torch.cat(parts, dim=-1)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, k] (any integer dtype; n and k multiples of 32) -> words of one panel, i32 [n/32 * k/32 * bits * 32]."""
    n, k = codes.shape
    rows, columns = _lane_places(codes.device)
    step = max(1, _SLAB[codes.device.type] // (TILE * k)) * TILE
    out = []
    for start in range(0, n, step):
        slab = codes[start : start + step]
        tiles = slab.view(-1, TILE, k // TILE, TILE).transpose(1, 2)  # [columns, tiles, 32, 32]
        pairs = tiles[:, :, rows, columns].int()  # [columns, tiles, lane, pair, element]
        out.append(_planes(_compose(pairs, bits)).flatten())
    return torch.cat(out)


def _decompose(words: Tensor, bits: int) -> Tensor:
    """Inverse of ``_compose``: words [.., bits] i32 -> codes [.., 16 pairs, 2] i32."""
    halves = torch.stack((words & 0xFFFF, (words >> 16) & 0xFFFF), dim=-1)  # [.., bits, 2]
    whole, mask = 16 // bits, (1 << bits) - 1
    pairs = [(halves[..., word, :] >> (field * bits)) & mask for word in range(bits) for field in range(whole)]
    if bits in (3, 5):
        pairs.append(sum(((halves[..., word, :] >> 15) & 1) << word for word in range(bits)))  # type: ignore[arg-type]
    if bits == 6:
        for first in (0, 3):
            low, high, shared = (halves[..., first + i, :] >> 12 for i in range(3))
            pairs += [low | ((shared & 3) << 4), high | ((shared >> 2) << 4)]
    return torch.stack(pairs, dim=-2)


def _unplanes(words: Tensor, bits: int) -> Tensor:
    """Inverse of ``_planes``: [tiles, bits * 32] -> [tiles, 32 lanes, bits]."""
    parts, at = [], 0
    for width in (4, 2, 1):
        while bits - at >= width:
            parts.append(words[:, at * TILE : (at + width) * TILE].view(-1, TILE, width))
            at += width
    return torch.cat(parts, dim=-1)


def _panel_dense(panel: Panel) -> Tensor:
    """[n, rows of the panel] f16 in stored order."""
    rows, columns = _lane_places(panel.words.device)
    pairs = _decompose(_unplanes(panel.words.view(-1, panel.bits * TILE), panel.bits), panel.bits)
    tiles = torch.empty((pairs.shape[0], TILE, TILE), dtype=torch.int32, device=pairs.device)
    tiles[:, rows, columns] = pairs
    codes = tiles.view(panel.columns, panel.tiles, TILE, TILE).transpose(1, 2).reshape(panel.columns * TILE, -1)
    repeat = TILE << panel.group_shift
    if panel.tag == GPTQ_TAG:
        scales, zeros = panel.scales[..., :4], panel.scales[..., 4:]
        centred = codes - 8 + _unpack_scales(zeros).repeat_interleave(repeat, dim=1).int()
    else:
        scales, centred = panel.scales, codes - (1 << (panel.bits - 1))
    return (centred.float() * _unpack_scales(scales).float().repeat_interleave(repeat, dim=1)).half()


def _unpack_scales(scales: Tensor) -> Tensor:
    """[n/32, groups, 8, 4] -> [n, groups]."""
    return scales.permute(0, 3, 2, 1).reshape(-1, scales.shape[1])


def pack_scales(scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """f16 [groups, n] -> [n/32, groups, 8, 4]: row ``l // 4`` of a lane and its four out-features 8 apart.

    With ``zeros`` (f16, the same shape) each row holds the four scales and then the four zeros.
    """

    def shape(x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, 4, 8).permute(1, 0, 3, 2)

    parts = [shape(scales)] if zeros is None else [shape(scales), shape(zeros)]
    return torch.cat(parts, dim=-1).contiguous()


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_inverses = WeakTensorKeyDictionary()


def inverse_order(order: Tensor) -> Tensor:
    """The stored row [k] of each in-feature, u16 bits in an i16 tensor. Made once for an order, at loading: a graph must not capture it."""
    if order not in _inverses:
        inverse = torch.empty_like(order)
        rows = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
        inverse[order.long() & 0xFFFF] = rows.to(torch.int16)
        _inverses[order] = inverse
    return _inverses[order]


_orders: weakref.WeakValueDictionary[tuple[bytes, torch.device], Tensor] = weakref.WeakValueDictionary()


def shared_order(permutation: Tensor, device: torch.device) -> Tensor | None:
    """The in-features [k] of the stored rows -> u16 bits in an i16 tensor on ``device``; None if nothing is permuted.

    Equal permutations give the same tensor, as long as it lives.
    """
    if permutation.numel() > 65536:
        raise ModelError(f"a quantised layer has {permutation.numel()} in-features, at most 65536 are supported", "use another model")
    wide = permutation.to("cpu", torch.int32)
    if torch.equal(wide, torch.arange(wide.numel(), dtype=torch.int32)):
        return None
    order = wide.to(torch.int16)  # two's complement keeps the lower 16 bits
    key = (order.numpy().tobytes(), device)
    known = _orders.get(key)
    if known is None:
        known = _orders[key] = order.to(device)
        inverse_order(known)
    return known
