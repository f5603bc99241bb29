"""What is known of the engine, folded from its events and nothing else. No widgets: the panes read this record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from exltui import protocol

HISTORY = 60  # seconds of meter readings that the sparklines can show


@dataclass
class JobFigures:
    """One job as its events describe it. Times are of the injected clock, in seconds."""

    submitted_at: float
    prompt_tokens: int | None = None
    prefilled: int = 0
    cached: int | None = None
    new_tokens: int = 0
    first_text_at: float | None = None
    stats: protocol.Stats | None = None

    @property
    def first_token_seconds(self) -> float | None:
        """From sending the prompt to the first text on this side: what a person waits."""
        return None if self.first_text_at is None else self.first_text_at - self.submitted_at

    @property
    def context_used(self) -> int | None:
        """Tokens of this conversation in the cache, as far as the engine has said."""
        if self.stats is not None:
            return self._read + self.stats.new_tokens
        return None if self.prompt_tokens is None else max(self.prefilled, self.cached or 0) + self.new_tokens

    @property
    def _read(self) -> int:
        """Tokens of a finished job's prompt that are in the cache: not all of them if it was stopped on the way."""
        return self.stats.prompt_tokens if self.stats is not None and self.stats.new_tokens else self.prefilled

    @property
    def prefill_rate(self) -> float | None:
        if self.stats is None or not self.stats.prefill_seconds:
            return None
        return max(0, self._read - self.stats.cached_tokens) / self.stats.prefill_seconds or None

    @property
    def decode_rate(self) -> float | None:
        if self.stats is None or not self.stats.decode_seconds or self.stats.new_tokens < 2:
            return None
        return self.stats.new_tokens / self.stats.decode_seconds


@dataclass
class Loading:
    """A model on its way into memory."""

    id: str
    model_dir: str
    started_at: float
    stage: str = ""
    stage_at: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = "B"
    rate: float | None = None  # units per second since the stage began

    @property
    def fraction(self) -> float | None:
        return self.done / self.total if self.total > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass
class Observed:
    """The engine as its events describe it."""

    clock: Callable[[], float]
    host: protocol.HostUp | None = None
    loading: Loading | None = None
    loaded: protocol.Loaded | None = None
    load_failed: protocol.LoadFailed | None = None
    adapters: dict[str, protocol.AdapterLoaded] = field(default_factory=dict)  # by name
    meter: protocol.Meter | None = None
    step: protocol.StepTimes | None = None  # of the last second with a step in it
    jobs: dict[str, JobFigures] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)  # ids of jobs without Done or Failed
    latest: str | None = None  # the job whose figures the status line shows
    utilisation: dict[int, deque[float | None]] = field(default_factory=dict)
    speeds: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY))

    @property
    def job(self) -> JobFigures | None:
        return self.jobs.get(self.latest) if self.latest else None

    @property
    def busy(self) -> bool:
        """Whether events are due soon: the engine starts, a model loads, or a job runs."""
        return self.host is None or self.loading is not None or bool(self.running)

    def sent(self, command: protocol.Command) -> None:
        """Take note of a command that goes down."""
        if isinstance(command, protocol.Load):
            self.load_failed = None
            self.loading = Loading(command.id, command.model_dir, self.clock())
        elif isinstance(command, protocol.Submit):
            self.jobs[command.job.id] = JobFigures(self.clock())
            self.running.append(command.job.id)
            self.latest = command.job.id

    def forget_figures(self) -> None:
        """Another conversation is on the screen: the last job's figures are not its own."""
        self.latest = None
        self.jobs = {id: job for id, job in self.jobs.items() if id in self.running}

    def apply(self, event: protocol.Event) -> None:
        """Fold one event in."""
        if isinstance(event, protocol.HostUp):
            self.host = event
        elif isinstance(event, protocol.Meter):
            self._apply_meter(event)
        elif isinstance(event, (protocol.LoadProgress, protocol.Loaded, protocol.LoadFailed, protocol.Unloaded)):
            self._apply_load(event)
        elif isinstance(event, protocol.AdapterLoaded):
            self.adapters[event.name] = event
        elif isinstance(event, protocol.AdapterDropped):
            self.adapters.pop(event.name, None)
        elif not isinstance(event, (protocol.Scores, protocol.Rewound, protocol.AdapterFailed, protocol.AboutPages, protocol.Answer)):
            self._apply_job(event)

    def _apply_meter(self, meter: protocol.Meter) -> None:
        self.meter = meter
        self.step = meter.step or self.step
        self.speeds.append(meter.decode_rate)
        for index, device in enumerate(meter.devices):
            self.utilisation.setdefault(index, deque(maxlen=HISTORY)).append(device.utilisation)

    def _apply_load(self, event: protocol.LoadProgress | protocol.Loaded | protocol.LoadFailed | protocol.Unloaded) -> None:
        if isinstance(event, protocol.LoadProgress):
            loading = self.loading
            if loading is None or loading.id != event.id:
                return
            now = self.clock()
            if loading.stage != event.stage:
                loading.stage, loading.stage_at = event.stage, now
            loading.done, loading.total, loading.unit = event.done, event.total, event.unit
            passed = now - loading.stage_at
            loading.rate = event.done / passed if passed > 0.2 else None
            return
        self.loading = None
        self.adapters = {}
        self.step = None
        self.loaded = event if isinstance(event, protocol.Loaded) else None
        self.load_failed = event if isinstance(event, protocol.LoadFailed) else None
        self.forget_figures()

    def _apply_job(self, event: protocol.Queued | protocol.Prefill | protocol.Text | protocol.Done | protocol.Failed) -> None:
        job = self.jobs.setdefault(event.id, JobFigures(self.clock()))
        if isinstance(event, protocol.Queued):
            job.prompt_tokens = event.prompt_tokens
        elif isinstance(event, protocol.Prefill):
            job.prefilled, job.prompt_tokens, job.cached = event.done, event.total, event.cached
        elif isinstance(event, protocol.Text):
            job.new_tokens += event.tokens
            if job.first_text_at is None:
                job.first_text_at = self.clock()
                job.prefilled = job.prompt_tokens or job.prefilled
        elif isinstance(event, (protocol.Done, protocol.Failed)):
            if isinstance(event, protocol.Done):
                job.stats = event.stats
            if event.id in self.running:
                self.running.remove(event.id)


def coalesced(events: list[protocol.Event]) -> list[protocol.Event]:
    """The same events with neighbouring texts of one job joined: one repaint instead of several."""
    joined: list[protocol.Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, protocol.Text) and isinstance(last, protocol.Text) and last.id == event.id:
            joined[-1] = protocol.Text(event.id, last.text + event.text, last.tokens + event.tokens)
        else:
            joined.append(event)
    return joined
