"""Decode graphs without a GPU: a step that is recorded is computed again when it is replayed, and the draw reads the packed parameters
as the kernel does, through their addresses.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from exltui.engine.generate.sampling import Occurrences
from exltui.engine.model.loading import Model
from exltui.engine.ops import cpu
from exltui.engine.ops.cuda_sample import ROW
from exltui.engine.ops.sample import STAGES, Penalties, Rule, SampleParams
from exltui.engine.run import graphs
from exltui.engine.run.cache import KVCache
from exltui.engine.run.graphs import DecodeGraphs
from exltui.engine.run.runner import Runner


def graph_runner(patch: pytest.MonkeyPatch, model: Model, pages: int) -> Runner:
    """A runner of ``model``, which is on the CPU, with graphs."""
    for name in ("zeros", "empty"):  # host memory need not be pinned
        plain = getattr(torch, name)
        patch.setattr(torch, name, lambda *a, _plain=plain, pin_memory=False, **k: _plain(*a, **k))
    patch.setattr(torch.cuda, "Event", _Event)
    patch.setattr(torch.ops, "exltui_cuda", SimpleNamespace(sample=draw), raising=False)
    patch.setattr(graphs, "Recorder", _Recorder)
    cache = KVCache(model.spec, pages + 1, (16, 16), model.device, torch.float32)
    cache.pages, cache.scratch = pages, pages
    runner = Runner(model, cache)
    runner._graphs = DecodeGraphs(model.decoder, cache, model.context)
    return runner


class _Event:
    """What it waits for has happened: nothing here runs later."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class _Recorder:
    def __init__(self, device: torch.device) -> None: ...

    def record(self, step: Any) -> Any:
        result = step().clone()

        def replay() -> None:
            result.copy_(step())

        return replay, result


def draw(
    logits: torch.Tensor, rows: torch.Tensor, points: torch.Tensor, lengths: torch.Tensor, drawn: torch.Tensor, tokens: torch.Tensor
) -> None:
    for i, row in enumerate(rows.numpy().view(ROW).reshape(-1)):
        if not row["active"]:
            continue
        found = cpu.sample(logits[i : i + 1], [_params(row, float(points[i]), int(lengths[i]))])[0]
        drawn[i] = found
        tokens[i] = max(int(found[0]), 0)
        if row["history"]:
            _list(row, "history", np.int32, int(lengths[i]) + 1)[int(lengths[i])] = tokens[i]


def _params(row: Any, point: float, length: int) -> SampleParams:
    rules = tuple(Rule(STAGES[int(r["stage"])], float(r["a"]), float(r["b"]), float(r["c"])) for r in row["rules"][: row["rule_count"]])
    shift = None
    if row["shift_count"]:
        ids, values = _list(row, "shifted", np.int32, row["shift_count"]), _list(row, "shifts", np.float32, row["shift_count"])
        shift = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(values.copy())
    mask = torch.from_numpy(_list(row, "mask", np.int32, -(-int(row["width"]) // 32)).copy()) if row["mask"] else None
    spared = torch.from_numpy(_list(row, "spared", np.int32, row["spared_count"]).astype(np.int64)) if row["spared_count"] else None
    penalties = None
    if row["history"] and row["penalises"]:
        history = _list(row, "history", np.int32, length).astype(np.int64)
        seen = Occurrences(int(row["range"]), int(row["decay"])).of(history)
        penalties = Penalties(float(row["repetition"]), float(row["presence"]), float(row["frequency"]), *seen)
    return SampleParams(rules, point, penalties, shift, mask, spared, int(row["width"]))


def _list(row: Any, name: str, dtype: Any, count: int) -> Any:
    """The ``count`` numbers at the address that ``row`` has."""
    count = int(count)
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(int(row[name]))
    return np.frombuffer(memory, dtype=dtype, count=count)
