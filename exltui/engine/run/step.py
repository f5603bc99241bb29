"""The packet of one forward pass: which tokens, at which positions, into which cache slots, and which rows want logits."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from exltui.engine.ops.types import PAGE, Batch

MAX_DECODES = 32  # sequences that decode in one step


@dataclass(frozen=True, slots=True)
class Sequence:
    """A run of tokens of one job. ``start`` is the position of the first; ``pages`` cover every position up to the last."""

    tokens: Many[int]
    start: int
    pages: Many[int]
    logits: Literal["last", "all", "none"] = "last"
    mix: tuple[tuple[int, float], ...] = ()  # (slot, scale) of the adapters that it uses


@dataclass(frozen=True, slots=True)
class Step:
    tokens: Tensor  # [t] i32
    batch: Batch
    logit_rows: Tensor  # [r] i32, rows of ``tokens``
    mix: Tensor | None = None  # [t, slots] f32: how much of each adapter each token uses; None: none of any

    @property
    def decodes(self) -> bool:
        """Whether every sequence gives one token, without adapters, and all want their logits: a batch that decodes."""
        rows, sequences = self.tokens.shape[0], self.batch.lengths.shape[0]
        plain = self.batch.planes is None and self.mix is None
        return plain and rows == sequences == self.logit_rows.shape[0] <= MAX_DECODES

    @property
    def verifies(self) -> bool:
        """Whether it has few tokens, without adapters, that all want their logits: drafts, and what they follow."""
        plain = self.batch.planes is None and self.mix is None
        return plain and self.tokens.shape[0] == self.logit_rows.shape[0] <= MAX_DECODES

    @staticmethod
    def build(sequences: Many[Sequence], device: torch.device) -> Step:
        """Lay the sequences side by side. Logit rows come in the order of the sequences. All numbers travel in one copy."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        starts, lengths = [0], []
        for sequence in sequences:
            count, pages = len(sequence.tokens), sequence.pages
            here = range(sequence.start, sequence.start + count)
            positions.extend(here)
            slots.extend(pages[position // PAGE] * PAGE + position % PAGE for position in here)
            if sequence.logits != "none":
                rows.extend(range(len(tokens) + (count - 1 if sequence.logits == "last" else 0), len(tokens) + count))
            tokens.extend(sequence.tokens)
            starts.append(len(tokens))
            lengths.append(sequence.start + count)
        width = max(-(-length // PAGE) for length in lengths)
        table: list[int] = []
        for sequence in sequences:
            table.extend([*sequence.pages[:width], *[0] * (width - len(sequence.pages))])
        parts = (tokens, positions, slots, starts, lengths, table, rows)
        numbers = [number for part in parts for number in part]
        if device.type == "cuda":
            packet = torch.tensor(numbers, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)
        else:  # torch.tensor would take a tenth of Python's share of a step
            packet = torch.from_numpy(np.array(numbers, dtype=np.int32))
        ids, at, places, begins, ends, pages_of, wanted = packet.split_with_sizes([len(part) for part in parts])
        batch = Batch(at, places, begins, ends, pages_of.view(-1, width), (starts, lengths))
        return Step(ids, batch, wanted, _mix(sequences, device))


def portions(sequences: Many[Sequence], rows: int) -> Iterator[list[Sequence]]:
    """``sequences`` in packets of at most ``rows`` tokens, in their order; what is longer is cut."""
    packet: list[Sequence] = []
    room = rows
    for each in sequences:
        at = 0
        while at < len(each.tokens):
            end = min(at + room, len(each.tokens))
            logits = "none" if each.logits == "last" and end < len(each.tokens) else each.logits
            packet.append(Sequence(each.tokens[at:end], each.start + at, each.pages, logits, each.mix))
            room -= end - at
            at = end
            if not room:
                yield packet
                packet, room = [], rows
    if packet:
        yield packet


def _mix(sequences: Many[Sequence], device: torch.device) -> Tensor | None:
    """How much of each adapter each token uses; None if no sequence uses any."""
    slots = max((slot for sequence in sequences for slot, _ in sequence.mix), default=-1) + 1
    if not slots:
        return None
    rows = []
    for sequence in sequences:
        row = [0.0] * slots
        for slot, scale in sequence.mix:
            row[slot] += scale
        rows += [row] * len(sequence.tokens)
    return torch.tensor(rows, dtype=torch.float32).to(device)
