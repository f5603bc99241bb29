"""The order in which the CUDA kernels read weights, made once when a model loads. Pure torch, so it is tested without a GPU.

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

from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.errors import ModelError

TILE = 32
DENSE_BITS = 16
GPTQ_TAG = 20  # 4-bit codes with zero points; kGptqBits of kernels.cuh
WIDTHS = (2, 3, 4, 5, 6, 8)
_SLAB = 1 << 22  # weights shuffled at a time: bounds the temporary memory to about 100 MB


@dataclass(frozen=True, slots=True)
class Panel:
    """A run of stored rows with one width. ``tag`` is the width, ``DENSE_BITS`` or ``GPTQ_TAG``."""

    tag: int
    words: Tensor  # [columns * tiles * bits * 32] i32
    scales: Tensor | None  # [columns, tiles >> group_shift, 8, 4] f16; GPTQ [.., 8, 8]: scales, then 8 - zero
    tiles: int
    columns: int
    group_shift: int  # log2 of the tiles that share one row of scales
    first_tile: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [n, k] in kernel order. ``order[i]`` is the in-feature of stored row i (u16 bits in an i16 tensor), or None."""

    n: int
    k: int
    panels: tuple[Panel, ...]
    order: Tensor | None
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        tensors = [t for p in self.panels for t in (p.words, p.scales)] + [self.order, self.bias]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


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
    step = max(1, _SLAB // (TILE * k)) * TILE
    out = []
    for start in range(0, n, step):
        slab = codes[start : start + step]
        tiles = slab.view(-1, TILE, k // TILE, TILE).transpose(1, 2)  # [columns, tiles, 32, 32]
        pairs = tiles[:, :, rows, columns].int()  # [columns, tiles, lane, pair, element]
        out.append(_planes(_compose(pairs, bits)).flatten())
    return torch.cat(out)


def pack_half(weight: Tensor) -> Tensor:
    """fp16 [n, k] (multiples of 32) -> words of a dense panel: a word is a pair, low half first."""
    codes = weight.contiguous().view(torch.int16)
    n, k = codes.shape
    rows, columns = _lane_places(codes.device)
    step = max(1, _SLAB // (TILE * k)) * TILE
    out = []
    for start in range(0, n, step):
        tiles = codes[start : start + step].view(-1, TILE, k // TILE, TILE).transpose(1, 2)
        pairs = tiles[:, :, rows, columns].contiguous()  # little-endian: two halves side by side are a word
        out.append(_planes(pairs.view(torch.int32).squeeze(-1)).flatten())
    return torch.cat(out)


def pack_scales(scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """f16 [groups, n] -> [n/32, groups, 8, 4]: row ``l // 4`` of a lane and its four out-features 8 apart.

    With ``zeros`` (f16, the same shape) each row holds the four scales and then the four zeros.
    """

    def shape(x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, 4, 8).permute(1, 0, 3, 2)

    parts = [shape(scales)] if zeros is None else [shape(scales), shape(zeros)]
    return torch.cat(parts, dim=-1).contiguous()


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def unpack_stream(words: Tensor, bits: int) -> Tensor:
    """EXL2's bit stream down each column (EXL2.md 2.3): i32 [packed rows, n] -> codes u8 [packed rows * 32 / bits, n]."""
    units = words.view(-1, bits, words.shape[1])
    out = torch.empty((units.shape[0], 32, words.shape[1]), dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for row in range(32):
        word, shift = divmod(row * bits, 32)
        value = units[:, word].long() & 0xFFFFFFFF
        value >>= shift
        if shift + bits > 32:
            value |= (units[:, word + 1].long() & 0xFFFFFFFF) << (32 - shift)
        out[:, row] = (value & mask).to(torch.uint8)
    return out.view(-1, words.shape[1])


def _unpack_nibbles(words: Tensor) -> Tensor:
    """i32 [g, n/8] -> i32 [g, n]: nibble n % 8 of word n // 8."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(1)


def _group_shift(rows: list[int]) -> int:
    """The largest s such that 2^s tiles divide every group of the run."""
    tiles = [count // TILE for count in rows]
    return min((count & -count).bit_length() - 1 for count in tiles)


def _as_order(permutation: Tensor) -> Tensor:
    """i64 in-features of the stored rows -> u16 bits in an i16 tensor."""
    if permutation.numel() > 65536:
        raise ModelError(f"a quantised layer has {permutation.numel()} in-features, at most 65536 are supported")
    return permutation.to(torch.int32).to(torch.uint16).view(torch.int16)


def pack_exl2(tensors: dict[str, Tensor], prescale: float = 1.0, bias: Tensor | None = None) -> Packed:
    """The five tensors of an EXL2 layer (EXL2.md 2.1) -> kernel order. Scales become RN16((s + 1)^2 * m), exactly as section 2.6 says."""
    words, groups = tensors["q_weight"], tensors["q_groups"].to(torch.int64) & 0xFFFF
    invperm = tensors["q_invperm"].long()
    n, k = words.shape[1], invperm.numel()
    widths, starts = groups[0::2].tolist(), groups[1::2].tolist()
    ends = [*starts[1:], words.shape[0]]
    maxima = (tensors["q_scale_max"].float() * torch.tensor(prescale / 256, dtype=torch.float32)).half().float()
    scales = ((_unpack_nibbles(tensors["q_scale"]) + 1).float().square() * maxima.unsqueeze(1)).half()
    panels, first, g = [], 0, 0
    while g < len(widths):
        run = g
        while run < len(widths) and widths[run] == widths[g]:
            run += 1
        rows = [(ends[i] - starts[i]) * 32 // widths[i] for i in range(g, run)]
        if widths[g] not in WIDTHS or any(count % TILE for count in rows):
            raise ModelError(f"an EXL2 layer has groups of {widths[g]} bits and {rows} rows: widths are {WIDTHS}, rows multiples of 32")
        shift = _group_shift(rows)
        codes = unpack_stream(words[starts[g] : ends[run - 1]], widths[g]).t().contiguous()
        repeats = torch.tensor([(count // TILE) >> shift for count in rows], device=scales.device)
        panel_scales = pack_scales(scales[g:run].repeat_interleave(repeats, dim=0))
        tiles = sum(rows) // TILE
        panels.append(Panel(widths[g], pack_codes(codes, widths[g]), panel_scales, tiles, n // TILE, shift, first))
        first, g = first + tiles, run
    if first * TILE != k:
        raise ModelError(f"the groups of an EXL2 layer have {first * TILE} rows, its permutation {k}")
    return Packed(n, k, tuple(panels), _as_order(torch.argsort(invperm)), bias)


def pack_gptq(tensors: dict[str, Tensor], v2: bool, bias: Tensor | None = None) -> Packed | None:
    """A GPTQ layer (EXL2.md 2.10) -> kernel order; None where its groups are not runs of a multiple of 32 rows (use it dense)."""
    qweight, groups = tensors["qweight"], tensors["qzeros"].shape[0]
    k, n = qweight.shape[0] * 8, qweight.shape[1]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=qweight.device).view(1, 8, 1)
    codes = ((qweight.unsqueeze(1) >> shifts) & 15).view(k, n)
    zeros = _unpack_nibbles(tensors["qzeros"]) + (0 if v2 else 1)
    size = 1
    while size * groups < k:
        size *= 2
    g_idx = tensors.get("g_idx")
    order = None
    if g_idx is not None and bool(g_idx.any()):
        permutation = torch.argsort(g_idx.long(), stable=True)
        counts = torch.bincount(g_idx.long(), minlength=groups)
        full = counts[: k // size]
        if bool((full != size).any()) or counts[k // size :].sum() != k % size:
            return None
        codes, order = codes[permutation], _as_order(permutation)
    if size % TILE or k % TILE or n % TILE:
        return None
    shift = (size // TILE).bit_length() - 1
    rows = -(-k // size)
    if k % size:  # a short last group: repeat its scales for each tile, like the others
        shift, repeat = 0, torch.tensor([size // TILE] * (rows - 1) + [k % size // TILE], device=codes.device)
    else:
        repeat = torch.ones(rows, dtype=torch.int64, device=codes.device)
    scales, offsets = tensors["scales"].half()[:rows], (8 - zeros[:rows]).half()
    packed = pack_scales(scales.repeat_interleave(repeat, dim=0), offsets.repeat_interleave(repeat, dim=0))
    panel = Panel(GPTQ_TAG, pack_codes(codes.t().contiguous(), 4), packed, k // TILE, n // TILE, shift, 0)
    return Packed(n, k, (panel,), order, bias)


def pack_dense(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """Any float [n, k] -> fp16 in kernel order, padded with zeros to multiples of 32."""
    n, k = weight.shape
    padded = torch.zeros((round_up(n, TILE), round_up(k, TILE)), dtype=torch.float16, device=weight.device)
    padded[:n, :k] = weight.half()
    panel = Panel(DENSE_BITS, pack_half(padded), None, padded.shape[1] // TILE, padded.shape[0] // TILE, 0, 0)
    return Packed(n, k, (panel,), None, bias)
