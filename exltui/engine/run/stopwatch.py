"""Where the time of the steps goes: the host's work, the forward pass, the drawing of tokens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import torch

from exltui.meter import StepTimes


class Stopwatch:
    """Adds up the parts of steps until ``take``. Written by the engine's thread, read by the meters'.

    On a GPU the forward pass goes on while the host waits for the tokens, so its length is taken from the GPU's own clock; what is left of
    the wait counts as sampling. A step that draws nothing is not waited for, and does not count there.
    """

    def __init__(self, device: torch.device) -> None:
        self._marks = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) if device.type == "cuda" else None
        self._lock = threading.Lock()
        self._steps = 0
        self._sums = [0.0, 0.0, 0.0]  # seconds: host, model, sampling
        self._began = self._model = self._sampling = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._began, self._model, self._sampling = time.perf_counter(), 0.0, 0.0

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        started = time.perf_counter()
        if self._marks:
            self._marks[0].record()
        yield
        if self._marks:
            self._marks[1].record()
        self._model += time.perf_counter() - started

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._sampling += time.perf_counter() - started

    def end(self) -> None:
        """The step is over."""
        whole, model, sampling = time.perf_counter() - self._began, self._model, self._sampling
        host = whole - model - sampling
        if self._marks:
            if not sampling or not self._marks[1].query():
                return
            on_gpu = self._marks[0].elapsed_time(self._marks[1]) / 1000
            model, sampling = on_gpu, max(0.0, model + sampling - on_gpu)
        with self._lock:
            self._steps += 1
            self._sums = [total + part for total, part in zip(self._sums, (host, model, sampling), strict=True)]

    def take(self) -> StepTimes | None:
        """The averages since the last time, if there was a step."""
        with self._lock:
            steps, sums = self._steps, self._sums
            self._steps, self._sums = 0, [0.0, 0.0, 0.0]
        return StepTimes(steps, *(total / steps for total in sums)) if steps else None
