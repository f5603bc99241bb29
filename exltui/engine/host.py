"""The engine's thread: takes commands, runs the generator, says what happened.

Nothing that goes wrong here ends the thread: deliberate errors become LoadFailed or Failed with their hint, anything else does too and
leaves its traceback in the log. Torch is imported here, not before.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exltui.engine.meters import Meters
from exltui.errors import Cancelled, ExltuiError
from exltui.protocol import (
    Cancel,
    Command,
    DeviceMeter,
    Done,
    Event,
    Failed,
    HostUp,
    JobSpec,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Meter,
    Prefill,
    Quit,
    Submit,
    Text,
    Unload,
    Unloaded,
)

if TYPE_CHECKING:
    from exltui.engine.session import Session

log = logging.getLogger(__name__)

TEXT_INTERVAL = 1 / 30  # seconds between two Text events of a job, at least
METER_INTERVAL = 1.0
PROGRESS_INTERVAL = 0.05


class Host:
    """``emit`` receives every event, on the host's threads; it must be quick and must not raise."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._cancelled: set[str] = set()  # looked at while a load holds the thread
        self._session: Session | None = None
        self._texts: dict[str, Text] = {}
        self._text_sent: dict[str, float] = {}
        self._rates = _Rates()
        self._devices: tuple[DeviceMeter, ...] = ()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exltui-engine", daemon=True)
        self._meter_thread = threading.Thread(target=self._measure, name="exltui-meters", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._meter_thread.start()

    def send(self, command: Command) -> None:
        """Queue a command; answers come as events."""
        if isinstance(command, Cancel):
            self._cancelled.add(command.id)
        if isinstance(command, Quit):
            self._quit.set()
        self._commands.put(command)

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end after Quit -> whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._emit(_host_up())
        except Exception as error:
            log.exception("the engine could not start")
            self._emit(HostUp("", (), native=False, note=f"the engine could not start: {error}"))
        while not self._quit.is_set():
            command = self._next()
            if command is not None:
                self._guarded(command)
            elif self._session is not None and self._session.generator.busy:
                self._advance(self._session)
        if self._session is not None:
            self._stop_jobs(self._session)

    def _next(self) -> Command | None:
        """The next command; waits for one when there is nothing to generate."""
        busy = self._session is not None and self._session.generator.busy
        try:
            return self._commands.get(block=not busy, timeout=None if busy else METER_INTERVAL)
        except queue.Empty:
            return None

    def _guarded(self, command: Command) -> None:
        try:
            self._handle(command)
        except Cancelled as error:
            self._refuse(command, str(error), "")
        except ExltuiError as error:
            self._refuse(command, str(error), error.hint)
        except MemoryError:
            self._refuse(command, "there is not enough memory", "try a shorter --length, or a smaller model")
        except Exception as error:
            log.exception("%s failed", type(command).__name__)
            self._refuse(command, _sentence(error), "the log has the details; see exltui doctor for its place")

    def _refuse(self, command: Command, error: str, hint: str) -> None:
        if isinstance(command, Load):
            self._emit(LoadFailed(command.id, error, hint))
        elif isinstance(command, Submit):
            self._emit(Failed(command.job.id, error, hint))

    def _handle(self, command: Command) -> None:
        if isinstance(command, Load):
            self._load(command)
        elif isinstance(command, Unload):
            self._unload()
            self._emit(Unloaded(command.id))
        elif isinstance(command, Submit):
            self._submit(command.job)
        elif isinstance(command, Cancel) and self._session is not None:
            self._send_all(self._session.generator.cancel(command.id))

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, command: Load) -> None:
        from exltui.engine.session import open_session

        self._unload()
        last = 0.0

        def progress(stage: str, done: int, total: int, unit: str = "B") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_INTERVAL or done in (0, total):
                last = now
                self._emit(LoadProgress(command.id, stage, done, total, unit))

        started = time.perf_counter()
        session = open_session(Path(command.model_dir), command.options, progress, lambda: command.id in self._cancelled)
        model = session.runner.model
        self._session = session
        loaded = Loaded(
            command.id,
            command.model_dir,
            model.name,
            model.spec.architecture,
            model.format,
            model.bits_per_weight,
            model.parameters,
            session.generator.context,
            model.spec.trained_context,
            str(model.device),
            model.nbytes,
            session.runner.cache.nbytes,
            time.perf_counter() - started,
        )
        self._emit(loaded)

    def _unload(self) -> None:
        if self._session is not None:
            self._stop_jobs(self._session)
            self._session.close()
            self._session = None
            gc.collect()

    def _stop_jobs(self, session: Session) -> None:
        for job_id in session.generator.job_ids:
            self._send_all(session.generator.cancel(job_id))

    # ── generating ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, job: JobSpec) -> None:
        if self._session is None:
            self._emit(Failed(job.id, "no model is loaded", "load one first"))
            return
        if job.id in self._cancelled:
            self._cancelled.discard(job.id)
        self._send_all(self._session.generator.submit(job))

    def _advance(self, session: Session) -> None:
        try:
            self._send_all(session.generator.advance())
        except Exception as error:
            log.exception("a step failed")
            sentence = "there is not enough memory" if isinstance(error, MemoryError) else _sentence(error)
            for job_id in session.generator.abandon():
                self._flush(job_id)
                self._emit(Failed(job_id, sentence, "the log has the details; try again"))

    def _send_all(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Text):
                self._rates.decoded(event.tokens)
                self._send_text(event)
                continue
            if isinstance(event, Prefill):
                self._rates.prefilled(event)
            if isinstance(event, (Done, Failed)):
                self._flush(event.id)
                self._text_sent.pop(event.id, None)
            self._emit(event)

    def _send_text(self, event: Text) -> None:
        """Join ``event`` to what waits of its job, and let it go if the last one is long enough ago."""
        held = self._texts.get(event.id)
        self._texts[event.id] = event if held is None else replace(held, text=held.text + event.text, tokens=held.tokens + event.tokens)
        now = time.monotonic()
        if now - self._text_sent.get(event.id, 0.0) >= TEXT_INTERVAL:
            self._text_sent[event.id] = now
            self._flush(event.id)

    def _flush(self, job_id: str) -> None:
        held = self._texts.pop(job_id, None)
        if held is not None and (held.text or held.tokens):
            self._emit(held)

    # ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self) -> None:
        """A pulse a second on its own thread, since a driver's tool can take its time."""
        meters = Meters()
        while not self._quit.is_set():
            started = time.monotonic()
            devices, session = meters.read(), self._session
            decode_rate, prefill_rate = self._rates.read()
            used = total = pages_used = pages_total = 0
            if session is not None:
                devices = tuple(self._with_own_share(device, session, i) for i, device in enumerate(devices))
                used, total = session.generator.longest, session.generator.context
                pages_used, pages_total = session.generator.table.used, len(session.generator.table.pages)
            self._emit(Meter(devices, decode_rate, prefill_rate, used, total, pages_used, pages_total))
            self._quit.wait(max(METER_INTERVAL - (time.monotonic() - started), 0.1))

    @staticmethod
    def _with_own_share(device: DeviceMeter, session: Session, index: int) -> DeviceMeter:
        own = session.runner.model.device
        here = device.kind == "cpu" if own.type == "cpu" else device.kind != "cpu" and index == (own.index or 0)
        return replace(device, weights=session.runner.model.nbytes, cache=session.runner.cache.nbytes) if here else device


class _Rates:
    """Tokens per second of the last stretch of decoding and of the last prefill. Written by the engine's thread, read by the meters'."""

    def __init__(self) -> None:
        self._tokens = 0
        self._since = time.monotonic()
        self._prefill_start: dict[str, tuple[float, int]] = {}
        self._prefill: float | None = None

    def decoded(self, tokens: int) -> None:
        self._tokens += tokens

    def prefilled(self, event: Prefill) -> None:
        now = time.monotonic()
        if event.done == event.cached:
            self._prefill_start[event.id] = (now, event.done)
        elif event.id in self._prefill_start:
            started, cached = self._prefill_start[event.id]
            self._prefill = (event.done - cached) / max(now - started, 1e-6)
            if event.done == event.total:
                del self._prefill_start[event.id]

    def read(self) -> tuple[float | None, float | None]:
        now = time.monotonic()
        tokens, span = self._tokens, now - self._since
        self._tokens, self._since = 0, now
        return (tokens / span if tokens and span > 0 else None), self._prefill


def _host_up() -> HostUp:
    import torch

    from exltui.engine.ops import build

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    problem = build.problem()
    return HostUp(torch.__version__, tuple(devices), native=not problem, note=problem)


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__
