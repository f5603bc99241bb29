"""GPTQ weights: 4 bits, one scale and one zero point for every group of rows and column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import pack_nibbles, unpack_columns, unpack_nibbles
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.ops.cuda_layout import Packed
from exltui.errors import ModelError


@dataclass(frozen=True)
class GptqWeight:
    """``qweight`` [k / 8, n] i32, ``qzeros`` [G, n / 8] i32, ``scales`` [G, n] f16, ``g_idx`` [k] i32 (group of each row), ``bias``.

    ``W[k, n] = (q - zero) * scale``, where zero is the stored nibble plus 1 (version 1) or the nibble (``v2``).
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    v2: bool = False
    bias: Tensor | None = None
    format: str = "gptq"

    @staticmethod
    def read(tensors: dict[str, Tensor], *, v2: bool) -> GptqWeight:
        """From tensors named as in the file. An absent or all-zero ``g_idx`` means equal groups in order; a zero bias is none."""
        qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"].half()
        if any(part.dim() != 2 for part in (qweight, qzeros, scales)) or {qweight.dtype, qzeros.dtype} != {torch.int32}:
            raise ModelError(f"qweight is {qweight.dtype} of shape {tuple(qweight.shape)}", "only 4-bit GPTQ can be read")
        k, n, groups = qweight.shape[0] * 8, qweight.shape[1], scales.shape[0]
        if not groups or tuple(qzeros.shape) != (groups, n // 8) or scales.shape[1] != n or k % 32 or n % 32:
            sizes = f"qweight {tuple(qweight.shape)}, qzeros {tuple(qzeros.shape)}, scales {tuple(scales.shape)}"
            raise ModelError(f"these do not fit each other: {sizes}", "only 4-bit GPTQ can be read")
        g_idx = groups_of(tensors.get("g_idx"), k, groups)
        bias = tensors.get("bias")
        return GptqWeight(qweight, qzeros, scales, g_idx, v2, bias if bias is not None and bool(bias.any()) else None)

    @property
    def shape(self) -> tuple[int, int]:
        return self.qweight.shape[1], self.qweight.shape[0] * 8

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.qweight, self.qzeros, self.scales, self.g_idx))

    @cached_property
    def zeros(self) -> Tensor:
        """[G, n] i32: the code that means zero, 0 .. 16."""
        return unpack_nibbles(self.qzeros) + (0 if self.v2 else 1)

    def dense(self) -> Tensor:
        """[n, k] f16, bit-exact. The result is a transposed view."""
        group = self.g_idx.long()
        centred = unpack_columns(self.qweight, 4, self.shape[1]) - self.zeros[group]
        return (centred.float() * self.scales[group].float()).half().t()

    def take(self, columns: Tensor) -> GptqWeight:
        """The weight of some out-features: ``columns`` [m] i64, m a multiple of 8."""
        zeros = pack_nibbles(unpack_nibbles(self.qzeros)[:, columns])
        bias = None if self.bias is None else self.bias[columns]
        return replace(
            self, qweight=self.qweight[:, columns].contiguous(), qzeros=zeros, scales=self.scales[:, columns].contiguous(), bias=bias
        )

    def seen(self, x: Tensor) -> Tensor:
        return x

    def prepare(self, device: torch.device) -> GptqWeight | Packed | DenseWeight:
        """On ``device``: a GPU gets it in the order of its kernels.

        On the CPU the packed words stay memory-mapped; the zero points are unpacked now, not in a step.
        """
        if device.type == "cpu":
            _ = self.zeros
            return self
        from exltui.engine.model.weights.packed import pack_gptq

        parts = {name: getattr(self, name).to(device) for name in ("qweight", "qzeros", "scales", "g_idx")}
        bias = None if self.bias is None else self.bias.to(device, torch.float16)
        weight = replace(self, **parts, bias=bias)
        return pack_gptq(weight) or DenseWeight(weight.dense(), bias).prepare(device)


def groups_of(g_idx: Tensor | None, k: int, groups: int) -> Tensor:
    """The group of each of ``k`` rows, i32. None or all zeros means equal groups in order, of a power of two rows. Raises ModelError."""
    if g_idx is None or not bool(g_idx.any()):
        size = 1
        while size * groups < k:
            size *= 2
        g_idx = torch.arange(k, dtype=torch.int32) // size
    if g_idx.shape != (k,) or int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise ModelError(f"g_idx names groups outside 0 to {groups - 1}", "download the model again")
    return g_idx.to(torch.int32)
