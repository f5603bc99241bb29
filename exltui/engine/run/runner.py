"""Runs steps: a model and its cache."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from exltui.engine.model.loading import Model
from exltui.engine.model.lora import AdapterBank
from exltui.engine.run.cache import KVCache
from exltui.engine.run.graphs import DecodeGraphs, Flight, Place
from exltui.engine.run.step import Sequence, Step, portions


class Runner:
    """``reproducible``: what a sequence gets depends on nothing else that runs. That costs graphs, and all but small steps."""

    def __init__(self, model: Model, cache: KVCache, *, reproducible: bool = False) -> None:
        self.model = model
        self.cache = cache
        self._rows = model.decoder.rows_alike if reproducible else None
        suited = not reproducible and DecodeGraphs.suit(model, cache)
        self._graphs = DecodeGraphs(model.decoder, cache, model.context) if suited else None
        self.launches = suited  # whether a step that decodes and draws can run without the host

    @property
    def adapters(self) -> AdapterBank:
        return self.model.decoder.adapters

    def run(self, sequences: Many[Sequence]) -> Tensor:
        """Run ``sequences`` side by side -> logits [r, v] f32 on the model's device, in their order."""
        if self._rows is None:
            return self.step(Step.build(sequences, self.model.device))
        rows = 1 if any(sequence.mix for sequence in sequences) else self._rows  # adapters are products of torch's
        return torch.cat([self.step(Step.build(part, self.model.device)) for part in portions(sequences, rows)])

    def step(self, step: Step) -> Tensor:
        """Run one packet -> logits [r, v] f32 on the model's device."""
        if self._graphs is not None and step.decodes:
            return self._graphs.run(step)
        if self._graphs is not None and step.verifies:
            return self._graphs.verify(step)
        return step.through(self.model.decoder, self.cache.layers)

    def launch(self, places: Many[Place]) -> Flight:
        """Start such a step, and do not wait for it."""
        assert self._graphs is not None
        return self._graphs.launch(places)
