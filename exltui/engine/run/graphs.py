"""Whole decode steps as CUDA graphs, drawing included: one launch instead of some two hundred.

A graph reads its packet from fixed memory and is captured once for each bucket of batch sizes, when a step first needs it. A batch
smaller than its bucket is filled up with sequences of one token that live in the cache's scratch page. Steps that verify drafts have
graphs of their own, by the number of sequences and of tokens. A step can take the tokens that
the one before it drew, which then never wait for the host; the host reads them later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from exltui.engine.model.decoder import Decoder, Moe
from exltui.engine.model.loading import Model
from exltui.engine.ops.cuda import DECODE_ROWS
from exltui.engine.ops.sample import Seat
from exltui.engine.ops.types import PAGE, Batch
from exltui.engine.run.cache import KVCache
from exltui.engine.run.step import Step

BUCKETS = (1, 2, 4, 8, 16, 32)
DRAFTED = (2, 4, 8, 16, 32)  # tokens of a step that verifies drafts
TURNS = 2  # steps that can be on their way: one that runs, and one behind it


@dataclass(frozen=True, slots=True)
class Place:
    """One sequence of a step that draws: ``token`` at ``position``, or, if None, the one that the step before drew for this row."""

    token: int | None
    position: int
    pages: Many[int]
    seat: Seat
    point: float


class Flight(Protocol):
    """A step that was launched."""

    def read(self) -> list[list[float]]:
        """Wait for it -> token (or a code of ``ops/sample.py``), its probability, that before adaptive-p, for each row."""


@dataclass(frozen=True, slots=True)
class _Flight:
    result: Tensor
    landed: torch.cuda.Event

    def read(self) -> list[list[float]]:
        self.landed.synchronize()
        rows: list[list[float]] = self.result.tolist()
        return rows


@dataclass(slots=True)
class _Packet:
    """What changes from step to step, in one piece of memory: points f64 [b], then i32 positions, slots, lengths [b], pages [b, width]."""

    whole: Tensor  # u8
    points: Tensor
    positions: Tensor
    slots: Tensor
    lengths: Tensor
    table: Tensor

    @staticmethod
    def of(bucket: int, width: int, device: torch.device | None) -> _Packet:
        """In the GPU's memory, or, without a device, in host memory from which it can copy."""
        parts = [8 * bucket, *[4 * bucket] * 3, 4 * bucket * width]
        whole = torch.zeros(sum(parts), dtype=torch.uint8, device=device, pin_memory=device is None)
        points, *numbers = whole.split(parts)
        positions, slots, lengths, table = (part.view(torch.int32) for part in numbers)
        return _Packet(whole, points.view(torch.float64), positions, slots, lengths, table.view(bucket, width))

    def idle(self, start: int, scratch: int) -> None:
        """Sequences from ``start`` on have one token, in the scratch page."""
        self.positions[start:] = 0
        self.slots[start:] = scratch * PAGE
        self.lengths[start:] = 1
        self.table[start:] = scratch


class _Turn:
    """One of the steps on their way: its packet in host memory, and where its result goes."""

    def __init__(self, bucket: int, width: int) -> None:
        self.packet = _Packet.of(bucket, width, None)
        self._points, self._positions = self.packet.points.numpy(), self.packet.positions.numpy()
        self._slots, self._lengths, self._table = self.packet.slots.numpy(), self.packet.lengths.numpy(), self.packet.table.numpy()
        self.tokens = torch.zeros(bucket, dtype=torch.int32, pin_memory=True)
        self.result = torch.zeros(bucket, 3, dtype=torch.float64, pin_memory=True)
        self.landed = torch.cuda.Event()
        self.known = [0] * bucket  # pages of each row that the packet has already

    def fill(self, places: Many[Place]) -> None:
        for i, place in enumerate(places):
            page, row = divmod(place.position, PAGE)
            self._points[i], self._positions[i], self._lengths[i] = place.point, place.position, place.position + 1
            self._slots[i] = place.pages[page] * PAGE + row
            if len(place.pages) > self.known[i]:
                self._table[i, self.known[i] : len(place.pages)] = place.pages[self.known[i] :]
                self.known[i] = len(place.pages)


@dataclass(slots=True)
class _Captured:
    """A step as one call, the packet that it reads and what it writes. All of it must live as long as the graph behind it."""

    replay: Callable[[], None]
    packet: _Packet
    tokens: Tensor
    batch: Batch
    rows: Tensor
    params: Tensor  # [b, bytes of a row] u8: how each row draws
    drawn: Tensor  # [b, 3] f64
    logits: Tensor
    turns: tuple[_Turn, ...]
    turn: int = 0
    draws: bool = False  # whether any row does
    kept: Any = field(default=None)  # what ``params`` points to


@dataclass(frozen=True, slots=True)
class _Verifying:
    """A step that verifies drafts: its tokens, which the last of its sequences fills up, and its logits."""

    replay: Callable[[], None]
    tokens: Tensor  # [t] i32
    batch: Batch
    rows: Tensor  # [t] i32: not read here, but by the graph, which does not keep it
    logits: Tensor

    def fill(self, step: Step, scratch: int) -> None:
        """Take over ``step``. What is left of the tokens belongs to one more sequence, in the scratch page; further ones have none."""
        t, b = step.tokens.shape[0], step.batch.lengths.shape[0]
        mine, given = self.batch, step.batch
        rest, width = len(self.tokens) - t, min(given.page_table.shape[1], mine.page_table.shape[1])
        places = torch.arange(rest, dtype=torch.int32, device=self.tokens.device)
        self.tokens[:t].copy_(step.tokens)
        mine.positions[:t].copy_(given.positions)
        mine.positions[t:] = places
        mine.slots[:t].copy_(given.slots)
        mine.slots[t:] = places + scratch * PAGE
        mine.query_start[: b + 1].copy_(given.query_start)
        mine.query_start[b + 1 :] = len(self.tokens)
        mine.lengths[:b].copy_(given.lengths)
        mine.lengths[b:] = max(rest, 1)
        mine.page_table[:b, :width].copy_(given.page_table[:, :width])
        mine.page_table[b:] = scratch


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs of ``device`` are captured: one for all models that come and go, since kernels keep a workspace for each stream."""
    return torch.cuda.Stream(device)


class Recorder:
    """Makes graphs on ``device``, which share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """``step`` as a graph -> what runs it, and where its result is then."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for _ in range(2):  # first calls load modules and take workspaces, which a capture must not
                step()
            self._stream.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = step()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph.replay, result


class DecodeGraphs:
    """The graphs of one model and cache. ``context`` bounds the length of a sequence."""

    def __init__(self, decoder: Decoder, cache: KVCache, context: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._scratch = cache.scratch or 0
        self._width = -(-context // PAGE)
        self._captured: dict[int, _Captured] = {}
        self._verifying: dict[tuple[int, int], _Verifying] = {}
        self._recorder = Recorder(decoder.ops.device)

    @staticmethod
    def suit(model: Model, cache: KVCache) -> bool:
        """Whether every row of a decode step of ``model`` has a kernel: a reference may wait for the GPU, which no graph can."""
        if model.device.type != "cuda" or "attend" not in model.ops.native or cache.scratch is None:
            return False
        from exltui.engine.ops.cuda import decodes
        from exltui.engine.ops.cuda_mixture import mixes

        mixtures = [layer.mlp for layer in model.decoder.layers if isinstance(layer.mlp, Moe)]
        attended = all(decodes(layer.attention.d, cache.bits) for layer in model.spec.layers)
        return attended and all(mixes(moe.router, moe.experts) for moe in mixtures)

    def run(self, step: Step) -> Tensor:
        """Logits [b, v] f32 of a step in which every sequence gives one token and wants its logits."""
        count = step.tokens.shape[0]
        captured = self._of(count)
        packet, width = captured.packet, min(step.batch.page_table.shape[1], self._width)
        if captured.draws:
            captured.params.zero_()
            captured.draws = False
        captured.tokens[:count].copy_(step.tokens)
        packet.positions[:count].copy_(step.batch.positions)
        packet.slots[:count].copy_(step.batch.slots)
        packet.lengths[:count].copy_(step.batch.lengths)
        packet.table[:count, :width].copy_(step.batch.page_table[:, :width])
        if count < len(captured.tokens):
            packet.idle(count, self._scratch)
        captured.replay()
        return captured.logits[:count].clone()

    def verify(self, step: Step) -> Tensor:
        """Logits [t, v] f32 of a step of few tokens that all want theirs: drafts, and what they follow."""
        t, b = step.tokens.shape[0], step.batch.lengths.shape[0]
        key = _bucket(b, BUCKETS), _bucket(t, DRAFTED)
        if key not in self._verifying:
            self._verifying[key] = self._record_verifying(*key)
        found = self._verifying[key]
        found.fill(step, self._scratch)
        found.replay()
        return found.logits[:t].clone()

    def launch(self, places: Many[Place]) -> Flight:
        """Start a step that draws a token for each place. Either all of them say their token, or all go on from the step before."""
        captured = self._of(len(places))
        captured.turn = (captured.turn + 1) % TURNS
        turn, count = captured.turns[captured.turn], len(places)
        if places[0].token is not None:
            for each in captured.turns:  # a step that was dropped may still be about to read its packet
                each.landed.synchronize()
            self._seat(captured, places)
        turn.fill(places)
        captured.packet.whole.copy_(turn.packet.whole, non_blocking=True)
        captured.replay()
        turn.result.copy_(captured.drawn, non_blocking=True)
        turn.landed.record()
        return _Flight(turn.result[:count], turn.landed)

    def _seat(self, captured: _Captured, places: Many[Place]) -> None:
        """New sequences: their first tokens, and how each draws."""
        from exltui.engine.ops.cuda_sample import upload

        turn, count = captured.turns[captured.turn], len(places)
        for each in captured.turns:
            each.known = [0] * len(each.known)
            each.packet.idle(count, self._scratch)
        turn.tokens[:count] = torch.tensor([place.token for place in places], dtype=torch.int32)
        captured.tokens.copy_(turn.tokens, non_blocking=True)
        given = upload(
            [place.seat.params for place in places],
            captured.logits.shape[1],
            captured.tokens.device,
            [place.seat.tally for place in places],
        )
        captured.params[:count].copy_(given.rows)
        captured.params[count:].zero_()
        captured.kept, captured.draws = given, True

    def _of(self, count: int) -> _Captured:
        bucket = _bucket(count, BUCKETS)
        if bucket not in self._captured:
            self._captured[bucket] = self._capture(bucket)
        return self._captured[bucket]

    def _capture(self, bucket: int) -> _Captured:
        from exltui.engine.ops.cuda_sample import ROW

        device = self._decoder.ops.device
        tokens = torch.zeros(bucket, dtype=torch.int32, device=device)
        packet = _Packet.of(bucket, self._width, device)
        packet.idle(0, self._scratch)
        starts = torch.arange(bucket + 1, dtype=torch.int32, device=device)
        batch = Batch(packet.positions, packet.slots, starts, packet.lengths, packet.table)
        rows = torch.arange(bucket, dtype=torch.int32, device=device)
        params = torch.zeros(bucket, ROW.itemsize, dtype=torch.uint8, device=device)
        drawn = torch.zeros(bucket, 3, dtype=torch.float64, device=device)

        def step() -> Tensor:
            logits = self._decoder.forward(tokens, batch, self._cache.layers, rows)
            torch.ops.exltui_cuda.sample(logits, params, packet.points, packet.lengths, drawn, tokens)
            return logits

        replay, logits = self._recorder.record(step)
        turns = tuple(_Turn(bucket, self._width) for _ in range(TURNS))
        return _Captured(replay, packet, tokens, batch, rows, params, drawn, logits, turns)

    def _record_verifying(self, sequences: int, tokens: int) -> _Verifying:
        """At least one sequence more than ``sequences``, and enough of them for attention to take the tokens one by one."""
        device = self._decoder.ops.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        count = max(sequences + 1, -(-tokens // DECODE_ROWS))
        batch = Batch(zeros(tokens), zeros(tokens), zeros(count + 1), zeros(count), zeros(count, self._width))
        ids, places = zeros(tokens), torch.arange(tokens, dtype=torch.int32, device=device)
        rows = places.clone()
        batch.positions.copy_(places)  # all of them belong to one sequence in the scratch page
        batch.slots.copy_(places + self._scratch * PAGE)
        batch.query_start[1:] = tokens
        batch.lengths.fill_(tokens)
        batch.page_table.fill_(self._scratch)
        replay, logits = self._recorder.record(lambda: self._decoder.forward(ids, batch, self._cache.layers, rows))
        return _Verifying(replay, ids, batch, rows, logits)


def _bucket(count: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if size >= count)
