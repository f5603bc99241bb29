"""What the engine's meters tell the app once a second."""

from __future__ import annotations

from dataclasses import dataclass

# Of a page: nobody has used it; part of it is remembered; all of it is; one job uses it; several share it.
PAGE_SIGNS = ".pfus"


@dataclass(frozen=True, slots=True)
class DeviceMeter:
    """One device, as its driver reports it. ``None`` is unknown and is shown as a dash. Bytes, percent, Celsius, watts."""

    name: str
    kind: str  # "cuda", "rocm", "cpu"
    memory_total: int | None = None
    memory_used: int | None = None
    weights: int | None = None  # this program's share of memory_used
    cache: int | None = None
    buffers: int | None = None  # what else this program holds there
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Where the time of a step went, in seconds a step on average. ``host``: making the packet, taking the tokens, telling the app."""

    steps: int
    host: float
    model: float  # the forward pass; on a GPU as its own clock says
    sampling: float  # drawing the tokens, and on a GPU waiting for what is left of the forward pass


@dataclass(frozen=True, slots=True)
class Meter:
    """A pulse, about once a second, whether or not a job runs."""

    devices: tuple[DeviceMeter, ...]
    decode_rate: float | None = None  # tokens per second over the last second of decoding
    prefill_rate: float | None = None
    context_used: int = 0
    context_total: int = 0
    pages_used: int = 0
    pages_total: int = 0
    page_map: str = ""  # a sign for each page of the cache: one of PAGE_SIGNS
    step: StepTimes | None = None  # of the last second, if there was a step in it
