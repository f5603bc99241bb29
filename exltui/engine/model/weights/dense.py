"""Plain weights: f16, bf16 or f32 as they lie in the file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """``weight`` [n, k] in f16, bf16 or f32, ``bias`` [n] or None."""

    weight: Tensor
    bias: Tensor | None = None
    format: str = "dense"

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def dense(self) -> Tensor:
        return self.weight

    def seen(self, x: Tensor) -> Tensor:
        return x

    def prepare(self, device: torch.device) -> DenseWeight:
        """On the CPU as it is, memory-mapped; on a GPU in f16, which its kernels read."""
        if device.type == "cpu":
            return self
        bias = None if self.bias is None else self.bias.to(device, torch.float16)
        return DenseWeight(_in_whole_tiles(self.weight, device), bias)


def _in_whole_tiles(weight: Tensor, device: torch.device) -> Tensor:
    """``weight`` in f16 on ``device``, a view of rows and columns in multiples of 32 with zeros behind its own: what the kernels read."""
    n, k = weight.shape
    if n % 32 == 0 and k % 32 == 0:
        return weight.to(device, torch.float16, memory_format=torch.contiguous_format)
    whole = torch.zeros(-(-n // 32) * 32, -(-k // 32) * 32, dtype=torch.float16, device=device)
    whole[:n, :k] = weight
    return whole[:n, :k]
