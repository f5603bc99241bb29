"""Whole decode steps as CUDA graphs: one launch instead of some two hundred.

A graph reads its packet from fixed memory and is captured once for each bucket of batch sizes, when a step first needs it. A batch
smaller than its bucket is filled up with sequences of one token that live in the cache's scratch page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.model.decoder import Decoder
from exltui.engine.model.loading import Model
from exltui.engine.model.spec import MoeSpec
from exltui.engine.ops.types import PAGE, Batch
from exltui.engine.run.cache import KVCache
from exltui.engine.run.step import Step

BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph, the packet that it reads and the logits that it writes. All of it must live as long as the graph."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    batch: Batch
    rows: Tensor
    logits: Tensor


class DecodeGraphs:
    """The graphs of one model and cache. ``context`` bounds the length of a sequence."""

    def __init__(self, decoder: Decoder, cache: KVCache, context: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._width = -(-context // PAGE)
        self._captured: dict[int, _Captured] = {}
        self._stream = torch.cuda.Stream(decoder.ops.device)
        self._pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def suit(model: Model, cache: KVCache) -> bool:
        """Whether every row of a decode step of ``model`` has a kernel: a reference may wait for the GPU, which no graph can."""
        if model.device.type != "cuda" or "attend" not in model.ops.native or cache.scratch is None:
            return False
        from exltui.engine.ops.cuda import decodes

        layers = model.spec.layers
        plain = all(not isinstance(layer.mlp, MoeSpec) and not layer.attention.sinks for layer in layers)
        return plain and not model.spec.wide_residual and all(decodes(layer.attention.d, cache.bits) for layer in layers)

    def run(self, step: Step) -> Tensor:
        """Logits [b, v] f32 of a step in which every sequence gives one token and wants its logits."""
        count = step.tokens.shape[0]
        bucket = next(size for size in BUCKETS if size >= count)
        captured = self._captured.get(bucket)
        if captured is None:
            captured = self._captured[bucket] = self._capture(bucket)
        batch, width = captured.batch, min(step.batch.page_table.shape[1], self._width)
        captured.tokens[:count].copy_(step.tokens)
        batch.positions[:count].copy_(step.batch.positions)
        batch.slots[:count].copy_(step.batch.slots)
        batch.lengths[:count].copy_(step.batch.lengths)
        batch.page_table[:count, :width].copy_(step.batch.page_table[:, :width])
        if count < bucket:
            self._idle(batch, count)
        captured.graph.replay()
        return captured.logits[:count].clone()

    def _idle(self, batch: Batch, start: int) -> None:
        """Sequences from ``start`` on have one token, in the scratch page."""
        scratch = self._cache.scratch or 0
        batch.positions[start:] = 0
        batch.slots[start:] = scratch * PAGE
        batch.lengths[start:] = 1
        batch.page_table[start:] = scratch

    def _capture(self, bucket: int) -> _Captured:
        device = self._decoder.ops.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        starts = torch.arange(bucket + 1, dtype=torch.int32, device=device)
        tokens, batch = zeros(bucket), Batch(zeros(bucket), zeros(bucket), starts, zeros(bucket), zeros(bucket, self._width))
        self._idle(batch, 0)
        rows = torch.arange(bucket, device=device)
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            for _ in range(2):  # first calls load modules and take workspaces, which a capture must not
                self._decoder.forward(tokens, batch, self._cache.layers, rows)
            self._stream.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                logits = self._decoder.forward(tokens, batch, self._cache.layers, rows)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        return _Captured(graph, tokens, batch, rows, logits)
