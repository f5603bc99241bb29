"""Formats that are read by turning them into one of exltui's own: AWQ into GPTQ, and into plain f16 GPTQ of other widths, FP8 and MXFP4."""

from __future__ import annotations

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import pack_nibbles, unpack_columns, unpack_nibbles
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.gptq import GptqWeight, groups_of
from exltui.errors import ModelError

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds each of eight columns
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # E2M1 (OCP Microscaling Formats 1.0)


def from_awq(tensors: dict[str, Tensor]) -> GptqWeight:
    """AWQ's "gemm" form: ``qweight`` [k, n / 8] i32, ``qzeros`` [G, n / 8] i32, ``scales`` [G, n]; ``W = (q - zero) * scale``, 4 bits."""
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    if any(part.dim() != 2 for part in (qweight, qzeros, scales)) or {qweight.dtype, qzeros.dtype} != {torch.int32}:
        raise ModelError(f"qweight is {qweight.dtype} of shape {tuple(qweight.shape)}", "only 4-bit AWQ in its gemm form can be read")
    zeros = unpack_nibbles(qzeros).unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1)
    if zeros.shape != scales.shape or qweight.shape[1] * 8 != scales.shape[1] or qweight.shape[0] % 32:
        sizes = f"qweight {tuple(qweight.shape)}, qzeros {tuple(qzeros.shape)}, scales {tuple(scales.shape)}"
        raise ModelError(f"these do not fit each other: {sizes}", "only 4-bit AWQ in its gemm form can be read")
    words = torch.zeros(8, qweight.shape[0] // 8, qweight.shape[1], dtype=torch.int32)  # eight rows in a word: of each eighth column
    for row in range(8):
        eight = qweight[row::8].contiguous()
        for column, nibble in enumerate(AWQ_ORDER):
            words[column] |= ((eight >> (4 * nibble)) & 15) << (4 * row)
    parts = {"qweight": words.permute(1, 2, 0).flatten(1), "qzeros": pack_nibbles(zeros), "scales": scales}
    return GptqWeight.read({**parts, **({"bias": tensors["bias"]} if "bias" in tensors else {})}, v2=True)


def dense_gptq(tensors: dict[str, Tensor], bits: int, *, v2: bool) -> DenseWeight:
    """GPTQ of 2, 3 or 8 bits, unpacked: codes and zero points are bit streams along rows and columns."""
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"].float()
    k, (count, n) = qweight.shape[0] * 32 // bits, scales.shape
    if bits not in (2, 3, 8) or qweight.shape[1] != n or tuple(qzeros.shape) != (count, n * bits // 32) or k % 32 or n % 32:
        sizes = f"qweight {tuple(qweight.shape)}, qzeros {tuple(qzeros.shape)}, scales {tuple(scales.shape)}"
        raise ModelError(f"{bits} bits do not fit {sizes}", "exltui runs GPTQ of 2, 3, 4 and 8 bits")
    zeros = unpack_columns(qzeros.t().contiguous(), bits, n).t() + (0 if v2 else 1)
    group = groups_of(tensors.get("g_idx"), k, count).long()
    values = (unpack_columns(qweight, bits, k) - zeros[group]).float() * scales[group]
    return DenseWeight(values.half().t().contiguous(), tensors.get("bias"))


def from_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight`` [n, k] E4M3 times ``scale``: one for all, [n, 1] for each row, or [n / b, k / c] for blocks -> [n, k] f16."""
    if scale.numel() == 1:
        return (weight.float() * scale.float()).half()
    n, k = weight.shape
    scale = scale.float() if scale.dim() == 2 else scale.float().unsqueeze(1)
    if scale.shape[0] > n or scale.shape[1] > k:
        raise ModelError(f"scales of shape {tuple(scale.shape)} do not fit a weight of {(n, k)}", "download the model again")
    size = [_block(extent, parts) for extent, parts in zip((n, k), scale.shape, strict=True)]
    wide = scale.repeat_interleave(size[0], 0)[:n].repeat_interleave(size[1], 1)[:, :k]
    return (weight.float() * wide).half()


def _block(extent: int, parts: int) -> int:
    """The extent of a block, where ``parts`` of them cover ``extent`` and the last may be short: blocks are powers of two, or whole."""
    if extent % parts == 0 and (parts == 1 or extent // parts in (1, 32, 64, 128, 256, 512)):
        return extent // parts
    size = 1 << (-(-extent // parts) - 1).bit_length()
    if -(-extent // size) != parts:
        raise ModelError(f"{parts} scales do not cover {extent} values in equal blocks", "download the model again")
    return size


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """``blocks`` [n, k / 32, 16] u8 (two E2M1 codes each, low nibble first), ``scales`` [n, k / 32] u8 (2 ^ (s - 127)) -> [n, k] f16."""
    if blocks.dim() != 3 or blocks.shape[2] != 16 or blocks.dtype != torch.uint8 or blocks.shape[:2] != scales.shape:
        raise ModelError(f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} are not MXFP4", "download the model again")
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(2).long()
    return torch.ldexp(torch.tensor(FP4)[codes], scales.to(torch.int32).unsqueeze(-1) - 127).half().flatten(1)
