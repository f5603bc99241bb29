"""Quantised weights as the CUDA kernels read them: codes shuffled into tiles (``ops.cuda_layout``), scales beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import unpack_columns
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import OPS
from exltui.engine.ops.cuda_layout import GPTQ_TAG, TILE, Packed, Panel, pack_codes, pack_scales, shared_order


def pack_exl2(weight: Exl2Weight, order: Tensor | None, features: Tensor | None = None) -> Packed:
    """On the device of ``weight``, whose stored rows have the shared ``order``. A run of groups of one width becomes a panel.

    ``features`` [n] i64: the out-feature that row i of the result is; None: i itself.
    """
    panels, first, index = [], 0, 0
    groups, (n, k), bias = weight.groups, weight.shape, weight.bias
    q_weight, all_scales = weight.q_weight, weight.scales
    if features is not None:
        q_weight, all_scales = q_weight[:, features], all_scales[:, features]
        bias = None if bias is None else bias[features]
    while index < len(groups):
        bits = groups[index].bits
        end = next((i for i in range(index, len(groups)) if groups[i].bits != bits), len(groups))
        run = groups[index:end]
        rows = sum(group.rows for group in run)
        words = q_weight[run[0].first : run[0].first + rows * bits // 32]
        shift, repeats = _common_size([group.rows for group in run])
        scales = pack_scales(_repeated(all_scales[index:end], repeats))
        panels.append(Panel(bits, _pack_words(words, bits, rows), scales, rows // TILE, n // TILE, shift, first))
        first, index = first + rows // TILE, end
    return Packed(n, k, tuple(panels), order, bias, "exl2")


def _pack_words(words: Tensor, bits: int, rows: int) -> Tensor:
    """Packed rows of the file -> the words of a panel."""
    if words.is_cuda and "cuda" in OPS["norm_linear"].impls:
        packed: Tensor = torch.ops.exltui_cuda.repack(words, bits)
        return packed
    return pack_codes(unpack_columns(words, bits, rows).to(torch.uint8).t().contiguous(), bits)


def pack_gptq(weight: GptqWeight) -> Packed | None:
    """On the device of ``weight``; None where a group is no multiple of 32 rows, so that its weight has to run dense."""
    n, k = weight.shape
    counts = [count for count in torch.bincount(weight.g_idx.long(), minlength=weight.scales.shape[0]).tolist() if count]
    if any(count % TILE for count in counts):
        return None
    used = weight.g_idx.unique().long()
    permutation = torch.argsort(weight.g_idx.long(), stable=True)
    codes = unpack_columns(weight.qweight, 4, k).to(torch.uint8)[permutation].t().contiguous()
    shift, repeats = _common_size(counts)
    scales, zeros = (_repeated(x[used], repeats) for x in (weight.scales, (8 - weight.zeros).half()))
    panel = Panel(GPTQ_TAG, pack_codes(codes, 4), pack_scales(scales, zeros), k // TILE, n // TILE, shift, 0)
    return Packed(n, k, (panel,), shared_order(permutation, codes.device), weight.bias, "gptq")


def _common_size(rows: list[int]) -> tuple[int, list[int]]:
    """The largest s such that 2^s tiles divide every group, and how many rows of scales each group then needs."""
    tiles = [count // TILE for count in rows]
    shift = min((count & -count).bit_length() - 1 for count in tiles)
    return shift, [count >> shift for count in tiles]


def _repeated(rows: Tensor, repeats: list[int]) -> Tensor:
    """Row i of ``rows`` so many times as ``repeats`` says, without waiting for a GPU."""
    if all(count == 1 for count in repeats):
        return rows
    counts = torch.tensor(repeats).to(rows.device, non_blocking=True)
    return rows.repeat_interleave(counts, dim=0, output_size=sum(repeats))
