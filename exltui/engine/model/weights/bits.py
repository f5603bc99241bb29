"""Bit fields in 32-bit words, the way EXL2 and GPTQ store them."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_columns(words: Tensor, bits: int, rows: int) -> Tensor:
    """Each column of ``words`` [rows * bits / 32, n] i32 is a little-endian bit stream -> codes [rows, n] i32."""
    wide = words.to(torch.int64) & 0xFFFFFFFF
    start = torch.arange(rows, device=words.device) * bits
    word, shift = start // 32, (start % 32).unsqueeze(1)
    following = (word + 1).clamp_max(words.shape[0] - 1)  # only its low bits are used, and only where a field straddles
    pair = wide[word] | (wide[following] << 32)
    return ((pair >> shift) & ((1 << bits) - 1)).to(torch.int32)


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """Inverse of ``unpack_columns``: codes [rows, n] -> words [rows * bits / 32, n] i32. ``rows * bits`` is a multiple of 32."""
    rows, n = codes.shape
    words = torch.zeros(rows * bits // 32 + 1, n, dtype=torch.int64, device=codes.device)
    for i in range(rows):
        word, shift = divmod(i * bits, 32)
        field = codes[i].to(torch.int64) << shift
        words[word] |= field & 0xFFFFFFFF
        words[word + 1] |= field >> 32
    return _signed(words[:-1])


def unpack_nibbles(words: Tensor) -> Tensor:
    """[g, n / 8] i32 -> [g, n] i32; column 8c + i lies in bits 4i .. 4i + 3 of word c."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(1)


def pack_nibbles(values: Tensor) -> Tensor:
    """Inverse of ``unpack_nibbles``."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int64, device=values.device)
    return _signed((values.to(torch.int64).unflatten(1, (-1, 8)) << shifts).sum(-1))


def _signed(words: Tensor) -> Tensor:
    """Values 0 .. 2^32 - 1 in i64 -> the same bits in i32."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
