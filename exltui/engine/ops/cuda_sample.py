"""The row ``sample`` on a GPU: parameters as ``csrc/cuda/sample.cu`` reads them, and its calls.

Rows, random points and the lists that rows point to travel in one buffer. A stage that needs the order of more tokens than the kernel
sorts (tail free, typical, XTC or adaptive-p of a distribution that was not cut before) is drawn by the CPU, of those rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exltui.engine.ops.references import expect
from exltui.engine.ops.sample import BROKEN, STAGES, TOO_MANY, SampleParams, Tally, broken
from exltui.engine.ops.table import OPS

MAX_RULES = 16  # kMaxRules of csrc/cuda/kernels.cuh
ALIGN = 16

_LISTS = ("mask", "spared", "shifted", "shifts", "seen", "weights", "counts", "history")
ROW = np.dtype(  # SampleRow of csrc/cuda/kernels.cuh
    [
        *((name, "<u8") for name in _LISTS),
        *((name, "<i4") for name in ("active", "width", "rule_count", "spared_count", "shift_count", "seen_count")),
        *((name, "<i4") for name in ("penalises", "range", "decay")),
        *((name, "<f4") for name in ("repetition", "presence", "frequency")),
        ("rules", [("stage", "<i4"), ("a", "<f4"), ("b", "<f4"), ("c", "<f4")], MAX_RULES),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Parameters on the GPU. ``buffer`` holds what ``rows`` points to."""

    rows: Tensor  # [r, bytes of ROW] u8
    points: Tensor  # [r] f64
    buffer: Tensor


def upload(params: Sequence[SampleParams], v: int, device: torch.device, tallies: Sequence[Tally | None] = ()) -> Rows:
    """The parameters of each row of [r, v] logits; where a row has a tally, its penalties come from there."""
    table = np.zeros(len(params), dtype=ROW)
    pieces: list[tuple[int, str, np.ndarray[Any, np.dtype[Any]]]] = []
    for i, p in enumerate(params):
        lists = _fill(table[i], p, v)
        if tallies and (tally := tallies[i]) is not None:
            lists["history"] = _follow(table[i], tally)
        pieces += [(i, name, array) for name, array in lists.items()]
    points = np.array([p.point for p in params], dtype=np.float64)
    at = _aligned(table.nbytes) + _aligned(points.nbytes)
    places = []
    for _, _, array in pieces:
        places.append(at)
        at += _aligned(array.nbytes)
    host = torch.empty(at, dtype=torch.uint8, pin_memory=device.type == "cuda")
    buffer = torch.empty(at, dtype=torch.uint8, device=device)
    raw, base = host.numpy(), buffer.data_ptr()
    for (i, name, array), place in zip(pieces, places, strict=True):
        table[i][name] = base + place
        raw[place : place + array.nbytes] = array.view(np.uint8)
    raw[: table.nbytes] = table.view(np.uint8)
    start = _aligned(table.nbytes)
    raw[start : start + points.nbytes] = points.view(np.uint8)
    buffer.copy_(host, non_blocking=True)
    rows = buffer[: table.nbytes].view(len(params), ROW.itemsize)
    return Rows(rows, buffer[start : start + points.nbytes].view(torch.float64), buffer)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def _fill(row: Any, p: SampleParams, v: int) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Write the numbers of ``p`` into ``row`` -> the lists that it is to point to."""
    row["active"], row["width"], row["range"] = 1, min(p.width or v, v), -1
    row["repetition"], row["rule_count"] = 1.0, len(p.rules)
    for i, rule in enumerate(p.rules):
        row["rules"][i] = (STAGES.index(rule.stage), rule.a, rule.b, rule.c)
    lists: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    if p.mask is not None:
        lists["mask"] = p.mask.numpy()
    if p.spared is not None:
        lists["spared"], row["spared_count"] = p.spared.numpy().astype(np.int32), len(p.spared)
    if p.shift is not None and len(p.shift[0]):
        lists["shifted"], row["shift_count"] = p.shift[0].numpy().astype(np.int32), len(p.shift[0])
        lists["shifts"] = p.shift[1].numpy().astype(np.float32)
    if (by := p.penalties) is not None and len(by.seen):
        lists["seen"], row["seen_count"] = by.seen.numpy().astype(np.int32), len(by.seen)
        lists["weights"], lists["counts"] = by.weights.numpy().astype(np.float32), by.counts.numpy().astype(np.float32)
        row["penalises"], row["repetition"], row["presence"], row["frequency"] = 1, by.repetition, by.presence, by.frequency
    return lists


def _follow(row: Any, tally: Tally) -> np.ndarray[Any, np.dtype[Any]]:
    row["penalises"], row["range"], row["decay"] = 1, tally.window, tally.decay
    row["repetition"], row["presence"], row["frequency"] = tally.repetition, tally.presence, tally.frequency
    tokens = np.zeros(len(tally.tokens) + tally.room + 1, dtype=np.int32)
    tokens[: len(tally.tokens)] = tally.tokens
    return tokens


def sample(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """The row: see ``engine/ops/sample.py``. The result is on the CPU, where its reader is."""
    expect("sample", "params", len(params), logits.shape[0])
    logits = logits if logits.dtype == torch.float32 and logits.stride(-1) == 1 else logits.float().contiguous()
    if any(len(p.rules) > MAX_RULES for p in params):
        return _on_cpu(logits, params)
    given = upload(params, logits.shape[1], logits.device)
    drawn = torch.empty(logits.shape[0], 3, dtype=torch.float64, device=logits.device)
    torch.ops.exltui_cuda.sample(logits, given.rows, given.points, None, drawn, None)
    return settle(drawn.cpu(), logits, params)


def settle(drawn: Tensor, logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    """``drawn`` [r, 3] with the rows that were left to the CPU. Raises ModelError if a logit is no finite number."""
    codes = drawn[:, 0].tolist()
    if BROKEN in codes:
        broken()
    left = [i for i, code in enumerate(codes) if code == TOO_MANY]
    if left:
        drawn[left] = _on_cpu(logits[left], [params[i] for i in left])
    return drawn


def _on_cpu(logits: Tensor, params: Sequence[SampleParams]) -> Tensor:
    op = OPS["sample"]
    return op.impls.get("cpu", op.reference)(logits.cpu(), params)
