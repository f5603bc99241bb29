"""Where the time of the steps goes: the host's work, the forward pass, the drawing of tokens."""

from __future__ import annotations

import threading
import time

import torch

from exltui.meter import StepTimes


class Part:
    """The seconds of what runs within it, and the place on a GPU where that begins and ends."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.marks = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) if device.type == "cuda" else None
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        if self.marks:
            self.marks[0].record()

    def __exit__(self, *_: object) -> None:
        if self.marks:
            self.marks[1].record()
        self.seconds += time.perf_counter() - self._started


class Stopwatch:
    """Adds up the parts of steps until ``take``. Written by the engine's thread, read by the meters'.

    On a GPU the forward pass goes on while the host waits for the tokens, so its length is taken from the GPU's own clock; what is left of
    the wait counts as sampling. A step that draws nothing is not waited for, and does not count there.
    """

    def __init__(self, device: torch.device) -> None:
        self.model = Part(device)
        self.sampling = Part(torch.device("cpu"))  # the host waits for its end
        self._lock = threading.Lock()
        self._steps = 0
        self._sums = (0.0, 0.0, 0.0)  # seconds: host, model, sampling
        self._began = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._began, self.model.seconds, self.sampling.seconds = time.perf_counter(), 0.0, 0.0

    def end(self) -> None:
        """The step is over."""
        whole, model, sampling = time.perf_counter() - self._began, self.model.seconds, self.sampling.seconds
        host = whole - model - sampling
        if marks := self.model.marks:
            if not sampling or not marks[1].query():
                return
            on_gpu = marks[0].elapsed_time(marks[1]) / 1000
            model, sampling = on_gpu, max(0.0, model + sampling - on_gpu)
        with self._lock:
            self._steps += 1
            before = self._sums
            self._sums = before[0] + host, before[1] + model, before[2] + sampling

    def take(self) -> StepTimes | None:
        """The averages since the last time, if there was a step."""
        with self._lock:
            steps, sums = self._steps, self._sums
            self._steps, self._sums = 0, (0.0, 0.0, 0.0)
        return StepTimes(steps, *(total / steps for total in sums)) if steps else None
