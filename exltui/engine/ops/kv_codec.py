"""The quantised KV cache codec: Hadamard rotation, one f16 scale for every 32 values, 8- or 4-bit codes.

Bit-exact against the golden vectors (tests/data/golden/golden_kv_cache.safetensors). The rotation works on runs of 64 consecutive
values: the even-indexed and the odd-indexed ones are two independent 32-point Walsh-Hadamard transforms, each butterfly rounded to f16.
A head dimension is a multiple of 64, so a head's row is coded on its own and no token disturbs its neighbour.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(values: Tensor) -> Tensor:
    """``values`` [.., d] f16, d a multiple of 64 -> the same shape, rotated, not normalised (a factor of sqrt(32) larger)."""
    x = values.reshape(-1, 32, 2).transpose(1, 2).reshape(-1, 32)  # one row for each 32-vector
    stride = 1
    while stride < 32:
        pairs = x.view(-1, 32 // (2 * stride), 2, stride)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack((low + high, low - high), dim=2).reshape(-1, 32)
        stride *= 2
    return x.view(-1, 2, 32).transpose(1, 2).reshape(values.shape)


def quantise(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``values`` [.., d] f16 -> codes u8 [.., d * bits / 8] and scales f16 [.., d / 32]. Groups of zeros get scale 0."""
    half = float(1 << (bits - 1))
    rotated = rotate(values).unflatten(-1, (-1, 32))
    largest = rotated.abs().amax(-1, keepdim=True)
    # The reference divides in f16 and then does one fused multiply-add in f16: f64 holds the exact sum before the one rounding.
    ratio = (rotated.float() / largest.float()).half()
    shifted = (ratio.double() * half + half).half()
    codes = shifted.float().nan_to_num(0.0).round().clamp(0, 2 * half - 1).to(torch.uint8).flatten(-2)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, (largest.squeeze(-1).float() / half).half()


def dequantise(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Inverse of ``quantise`` -> f16 [.., d]."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    centred = codes.to(torch.int16) - (1 << (bits - 1))
    rotated = (centred.unflatten(-1, (-1, 32)).half() * scales.unsqueeze(-1)).flatten(-2)
    return rotate(rotated) * (1.0 / 32.0)
