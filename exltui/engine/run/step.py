"""The packet of one forward pass: which tokens, at which positions, into which cache slots, and which rows want logits."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exltui.engine.model.decoder import Decoder
from exltui.engine.ops.types import PAGE, Batch, CacheLayer

MAX_DECODES = 32  # sequences that decode in one step


class Sequence(NamedTuple):
    """A run of tokens of one job. ``start`` is the position of the first; ``pages`` cover every position up to the last."""

    tokens: Many[int]
    start: int
    pages: Many[int]
    logits: Literal["last", "all", "none"] = "last"
    mix: tuple[tuple[int, float], ...] = ()  # (slot, scale) of the adapters that it uses


@dataclass(eq=False)
class Step:
    """The packet. Its numbers stay on the host until somebody wants them as tensors: where all layers are one native call, nobody does."""

    numbers: list[int]  # tokens, positions, slots, query_start, lengths, page table and logit rows, one behind the other
    sizes: tuple[int, int, int, int]  # tokens, sequences, pages of the longest, rows that want logits
    spans: tuple[list[int], list[int]]  # query_start and lengths
    device: torch.device
    mix: Tensor | None = None  # [t, slots] f32: how much of each adapter each token uses; None: none of any

    @property
    def decodes(self) -> bool:
        """Whether every sequence gives one token, without adapters, and all want their logits: a batch that decodes."""
        tokens, sequences, _, rows = self.sizes
        return self.mix is None and tokens == sequences == rows <= MAX_DECODES

    @property
    def verifies(self) -> bool:
        """Whether it has few tokens, without adapters, that all want their logits: drafts, and what they follow."""
        tokens, _, _, rows = self.sizes
        return self.mix is None and tokens == rows <= MAX_DECODES

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        """Views of the numbers on the device, where they come in one copy."""
        if self.device.type == "cuda":
            packet = torch.tensor(self.numbers, dtype=torch.int32, pin_memory=True).to(self.device, non_blocking=True)
        else:
            packet = torch.tensor(self.numbers, dtype=torch.int32)
        t, b, width, r = self.sizes
        return tuple(packet.split_with_sizes([t, t, t, b + 1, b, b * width, r]))

    @property
    def tokens(self) -> Tensor:
        """[t] i32."""
        return self._parts[0]

    @cached_property
    def batch(self) -> Batch:
        _, positions, slots, starts, lengths, table, _ = self._parts
        return Batch(positions, slots, starts, lengths, table.view(-1, self.sizes[2]), self.spans)

    @property
    def logit_rows(self) -> Tensor:
        """[r] i32, rows of ``tokens``."""
        return self._parts[6]

    def through(self, decoder: Decoder, cache: list[CacheLayer]) -> Tensor:
        """What ``decoder`` makes of it -> logits [r, v] f32; keys and values of all tokens go to ``cache``."""
        if self.mix is None and decoder.in_one_call:
            return decoder.run(self.numbers, self.sizes, cache)
        return decoder.forward(self.tokens, self.batch, cache, self.logit_rows, self.mix)

    @staticmethod
    def build(sequences: Many[Sequence], device: torch.device) -> Step:
        """Lay the sequences side by side. Logit rows come in the order of the sequences."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        starts, lengths = [0], []
        for sequence in sequences:
            count, pages = len(sequence.tokens), sequence.pages
            here = range(sequence.start, sequence.start + count)
            positions.extend(here)
            slots.extend([pages[position // PAGE] * PAGE + position % PAGE for position in here])
            if sequence.logits != "none":
                rows.extend(range(len(tokens) + (count - 1 if sequence.logits == "last" else 0), len(tokens) + count))
            tokens.extend(sequence.tokens)
            starts.append(len(tokens))
            lengths.append(sequence.start + count)
        width = -(-max(lengths) // PAGE)
        table: list[int] = []
        for sequence in sequences:
            table += [*sequence.pages[:width], *[0] * (width - len(sequence.pages))]
        numbers = [*tokens, *positions, *slots, *starts, *lengths, *table, *rows]
        sizes = len(tokens), len(lengths), width, len(rows)
        return Step(numbers, sizes, (starts, lengths), device, _mix(sequences, device))


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
