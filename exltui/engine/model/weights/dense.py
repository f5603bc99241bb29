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

    def prepare(self, device: torch.device) -> DenseWeight:
        """On the CPU as it is, memory-mapped; on a GPU in f16, which its kernels read."""
        if device.type == "cpu":
            return self
        bias = None if self.bias is None else self.bias.to(device, torch.float16)
        return DenseWeight(self.weight.to(device, torch.float16), bias)
