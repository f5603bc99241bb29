"""Runs steps: a model and its cache."""

from __future__ import annotations

from torch import Tensor

from exltui.engine.model.loading import Model
from exltui.engine.model.lora import AdapterBank
from exltui.engine.run.cache import KVCache
from exltui.engine.run.graphs import DecodeGraphs
from exltui.engine.run.step import Step


class Runner:
    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self._graphs = DecodeGraphs(model.decoder, cache, model.context) if DecodeGraphs.suit(model, cache) else None

    @property
    def adapters(self) -> AdapterBank:
        return self.model.decoder.adapters

    def step(self, step: Step) -> Tensor:
        """Run one packet -> logits [r, v] f32 on the model's device."""
        if self._graphs is not None and step.decodes:
            return self._graphs.run(step)
        return self.model.decoder.forward(step.tokens, step.batch, self.cache.layers, step.logit_rows, step.mix)
