"""Quantised weights as the CUDA kernels read them: codes shuffled into tiles (``ops.cuda_layout``), scales beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from exltui.engine.model.weights.bits import unpack_columns
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops.cuda_layout import GPTQ_TAG, TILE, Packed, Panel, pack_codes, pack_scales, shared_order


def pack_exl2(weight: Exl2Weight) -> Packed:
    """On the device of ``weight``. A run of groups of one width becomes a panel."""
    panels, first, index = [], 0, 0
    groups = weight.groups
    n, k = weight.shape
    while index < len(groups):
        bits = groups[index].bits
        end = next((i for i in range(index, len(groups)) if groups[i].bits != bits), len(groups))
        run = groups[index:end]
        rows = sum(group.rows for group in run)
        words = weight.q_weight[run[0].first : run[0].first + rows * bits // 32]
        codes = unpack_columns(words, bits, rows).to(torch.uint8).t().contiguous()
        shift, repeats = _common_size([group.rows for group in run], words.device)
        scales = pack_scales(weight.scales[index:end].repeat_interleave(repeats, dim=0))
        panels.append(Panel(bits, pack_codes(codes, bits), scales, rows // TILE, n // TILE, shift, first))
        first, index = first + rows // TILE, end
    return Packed(n, k, tuple(panels), shared_order(weight.q_perm), weight.bias, "exl2")


def pack_gptq(weight: GptqWeight) -> Packed | None:
    """On the device of ``weight``; None where a group is no multiple of 32 rows, so that its weight has to run dense."""
    n, k = weight.shape
    counts = [count for count in torch.bincount(weight.g_idx.long(), minlength=weight.scales.shape[0]).tolist() if count]
    if any(count % TILE for count in counts):
        return None
    used = weight.g_idx.unique().long()
    permutation = torch.argsort(weight.g_idx.long(), stable=True)
    codes = unpack_columns(weight.qweight, 4, k).to(torch.uint8)[permutation].t().contiguous()
    shift, repeats = _common_size(counts, codes.device)
    scales, zeros = (x[used].repeat_interleave(repeats, dim=0) for x in (weight.scales, (8 - weight.zeros).half()))
    panel = Panel(GPTQ_TAG, pack_codes(codes, 4), pack_scales(scales, zeros), k // TILE, n // TILE, shift, 0)
    return Packed(n, k, (panel,), shared_order(permutation), weight.bias, "gptq")


def _common_size(rows: list[int], device: torch.device) -> tuple[int, Tensor]:
    """The largest s such that 2^s tiles divide every group, and how many rows of scales each group then needs."""
    tiles = [count // TILE for count in rows]
    shift = min((count & -count).bit_length() - 1 for count in tiles)
    return shift, torch.tensor([count >> shift for count in tiles], device=device)
