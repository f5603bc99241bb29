"""The engine's thread: takes commands, runs the generator, says what happened.

Nothing that goes wrong here ends the thread: deliberate errors become LoadFailed or Failed with their hint, anything else does too and
leaves its traceback in the log. Torch is imported here, not before.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from exltui import paths
from exltui.engine.meters import Meters, held_memory
from exltui.engine.queries import answer
from exltui.errors import ExltuiError, ModelError
from exltui.protocol import (
    AdapterDropped,
    AdapterFailed,
    AdapterLoaded,
    Cancel,
    Command,
    DeviceMeter,
    Done,
    DropAdapter,
    Event,
    Failed,
    HostUp,
    JobSpec,
    KeepPages,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    LoadProgress,
    Meter,
    PagesFailed,
    PagesKept,
    PagesRecalled,
    Query,
    QueryFailed,
    Quit,
    RecallPages,
    Submit,
    Text,
    Unload,
    Unloaded,
)

if TYPE_CHECKING:
    from exltui.engine.generate.generator import Generator
    from exltui.engine.model.lora import Adapter
    from exltui.engine.run.stopwatch import Stopwatch
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
        self._gauge = _Gauge()
        self._texts: dict[str, Text] = {}
        self._text_sent: dict[str, float] = {}
        self._rates = _Rates()
        self._mapped = 0.0  # when the pages were looked at
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
        _log_to_file()
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
            elif self._session is not None:
                _tidy(self._session.generator)
        if self._session is not None:
            self._stop_jobs(self._session)
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, KeepPages):
                self._guarded(command)
            else:
                self._refuse(command, "the engine was closed", "")

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
        except Exception as error:  # noqa: BLE001  whatever it is, the thread lives on and the command is answered
            self._refuse(command, *_explain(error, type(command).__name__))

    def _refuse(self, command: Command, error: str, hint: str) -> None:
        if isinstance(command, Load):
            self._emit(LoadFailed(command.id, error, hint))
        elif isinstance(command, Submit):
            self._emit(Failed(command.job.id, error, hint))
        elif isinstance(command, (LoadAdapter, DropAdapter)):
            self._emit(AdapterFailed(command.id, error, hint))
        elif isinstance(command, Query):
            self._emit(QueryFailed(command.id, error, hint))
        elif isinstance(command, (KeepPages, RecallPages)):
            self._emit(PagesFailed(command.id, error, hint))
        elif isinstance(command, Unload):
            self._emit(Unloaded(command.id))  # the session is gone in any case

    def _handle(self, command: Command) -> None:
        if isinstance(command, Load):
            self._load(command)
        elif isinstance(command, Unload):
            self._unload()
            self._emit(Unloaded(command.id))
        elif isinstance(command, Submit):
            self._submit(command.job)
        elif isinstance(command, (LoadAdapter, DropAdapter)):
            self._adapt(command)
        elif isinstance(command, Query):
            self._emit(answer(self._session, command))
        elif isinstance(command, (KeepPages, RecallPages)):
            self._emit(self._pages(command))
        elif isinstance(command, Cancel):
            self._cancelled.discard(command.id)
            if self._session is not None:
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

        def cancelled() -> bool:
            return command.id in self._cancelled or self._quit.is_set()

        started = time.perf_counter()
        session = open_session(Path(command.model_dir), command.options, progress, cancelled)
        model = session.runner.model
        self._session = session
        self._gauge = _Gauge.of(session)
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
            model.notes,
        )
        self._emit(loaded)
        for adapter in session.runner.adapters.adapters.values():
            self._emit(_adapter_loaded(command.id, adapter))
        if session.problem:  # that a compiler is there says little about what it makes of the kernels
            log.warning("the references run: %s", session.problem)
            self._emit(replace(_host_up(), native=False, note=session.problem))

    def _unload(self) -> None:
        if self._session is not None:
            self._stop_jobs(self._session)
            session, self._session = self._session, None
            self._gauge = _Gauge()
            session.close()

    def _stop_jobs(self, session: Session) -> None:
        for job_id in session.generator.job_ids:
            self._send_all(session.generator.cancel(job_id))

    def _adapt(self, command: LoadAdapter | DropAdapter) -> None:
        """Load, rescale or drop an adapter. Jobs that run keep what they began with."""
        if self._session is None:
            raise ModelError("no model is loaded", "load one first; adapters lie beside it")
        session, bank = self._session, self._session.runner.adapters
        if isinstance(command, DropAdapter):
            bank.drop(command.name)
            bank.settle(session.generator.slots)
            self._emit(AdapterDropped(command.id, command.name))
            return
        if command.adapter_dir:
            adapter = bank.load(Path(command.adapter_dir), command.name, command.scale)
            bank.settle(session.generator.slots)
        else:
            adapter = bank.rescale(command.name, command.scale)
        self._emit(_adapter_loaded(command.id, adapter))

    def _pages(self, command: KeepPages | RecallPages) -> PagesKept | PagesRecalled:
        if self._session is None:
            raise ModelError("no model is loaded", "load the one that computed the pages")
        from exltui.engine.persist import keep, recall
        from exltui.engine.run.tier import prune

        session, file = self._session, Path(command.file)
        if isinstance(command, RecallPages):
            pages = recall(session, file)
            return PagesRecalled(command.id, command.file, sum(len(page.tokens) for page in pages))
        if command.session not in session.generator.sessions:
            raise ModelError("this session has no reply of this model yet", "its pages are kept after one")
        try:
            limit = command.limit - command.limit // 64  # what the file has beside them
            pages = keep(session, file, *session.generator.sessions[command.session], limit)
        except OSError as error:
            raise ModelError(f"{file}: cannot be written: {error}", "check the folder and the room on its disk") from error
        prune(file.parent, command.limit)
        return PagesKept(command.id, command.file, sum(len(page.tokens) for page in pages), sum(page.nbytes for page in pages))

    # ── generating ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, job: JobSpec) -> None:
        if self._session is None:
            self._emit(Failed(job.id, "no model is loaded", "load one first"))
        else:
            self._send_all(self._session.generator.submit(job))

    def _advance(self, session: Session) -> None:
        generator, started = session.generator, time.perf_counter()
        read, drawn = generator.tokens_read, generator.tokens_drawn
        try:
            self._send_all(generator.advance())
        except Exception as error:  # noqa: BLE001  one broken step ends its jobs, not the engine
            sentence, hint = _explain(error, "a step")
            for job_id in generator.abandon():
                self._send_all([Failed(job_id, sentence, hint)])
        if not generator.busy:
            _check(generator)
        self._rates.stepped(time.perf_counter() - started, generator.tokens_read - read, generator.tokens_drawn - drawn)
        self._gauge = replace(self._gauge, longest=generator.longest, pages_used=generator.table.used)
        now = time.monotonic()
        if now - self._mapped >= METER_INTERVAL or not generator.busy:
            self._mapped = now
            self._gauge = replace(self._gauge, page_map=generator.table.map())

    def _send_all(self, events: list[Event]) -> None:
        """Emit ``events``, except that texts wait until the last one of their job is long enough ago, and join meanwhile."""
        for event in events:
            if isinstance(event, Text):
                held = self._texts.get(event.id)
                joined = event if held is None else replace(held, text=held.text + event.text, tokens=held.tokens + event.tokens)
                self._texts[event.id] = joined
                continue
            if isinstance(event, (Done, Failed)):
                self._flush(event.id)
                self._text_sent.pop(event.id, None)
            self._emit(event)
        now = time.monotonic()
        for job_id in [i for i in self._texts if now - self._text_sent.get(i, 0.0) >= TEXT_INTERVAL]:
            self._text_sent[job_id] = now
            self._flush(job_id)

    def _flush(self, job_id: str) -> None:
        held = self._texts.pop(job_id, None)
        if held is not None:
            self._emit(held)

    # ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self) -> None:
        """A pulse a second on its own thread, since a driver's tool can take its time."""
        meters = Meters()
        while not self._quit.is_set():
            started = time.monotonic()
            gauge, (decode_rate, prefill_rate) = self._gauge, self._rates.read()
            devices = tuple(gauge.share(device, i) for i, device in enumerate(meters.read()))
            step = gauge.watch.take() if gauge.watch is not None else None
            pages = (gauge.pages_used, gauge.pages, gauge.page_map)
            self._emit(Meter(devices, decode_rate, prefill_rate, gauge.longest, gauge.context, *pages, step))
            self._quit.wait(max(METER_INTERVAL - (time.monotonic() - started), 0.1))


@dataclass(frozen=True, slots=True)
class _Gauge:
    """What the meters' thread says about the session. The engine's thread makes a new one after each step, so none is half-written."""

    longest: int = 0
    context: int = 0
    pages_used: int = 0
    pages: int = 0
    weights: int = 0  # bytes
    cache: int = 0  # bytes
    device: tuple[str, int] = ("", 0)  # type and index
    page_map: str = ""
    watch: Stopwatch | None = None

    @staticmethod
    def of(session: Session) -> _Gauge:
        model, cache = session.runner.model, session.runner.cache
        device = (model.device.type, model.device.index or 0)
        table, watch = session.generator.table, session.generator.watch
        return _Gauge(0, session.generator.context, 0, cache.pages, model.nbytes, cache.nbytes, device, table.map(), watch)

    def share(self, meter: DeviceMeter, index: int) -> DeviceMeter:
        """``meter``, the ``index``-th, with this program's part of its memory if the model is there."""
        here = meter.kind == "cpu" if self.device[0] == "cpu" else meter.kind != "cpu" and index == self.device[1]
        if not here or not self.device[0]:
            return meter
        held = held_memory(*self.device)
        buffers = None if held is None else max(0, held - self.weights - self.cache)
        return replace(meter, weights=self.weights, cache=self.cache, buffers=buffers)


class _Rates:
    """Tokens per second of engine time, since they were last read. Written by the engine's thread, read by the meters'."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = self._reading = self._drawn = self._drawing = 0.0  # tokens and seconds

    def stepped(self, seconds: float, read: int, drawn: int) -> None:
        """A step read ``read`` prompt tokens and drew ``drawn`` ones. A step that did both counts for reading only."""
        with self._lock:
            if read:
                self._read += read
                self._reading += seconds
            elif drawn:
                self._drawn += drawn
                self._drawing += seconds

    def read(self) -> tuple[float | None, float | None]:
        """Decode and prefill rate; None where nothing happened."""
        with self._lock:
            decode = self._drawn / self._drawing if self._drawing else None
            prefill = self._read / self._reading if self._reading else None
            self._read = self._reading = self._drawn = self._drawing = 0.0
        return decode, prefill


def _adapter_loaded(id: str, adapter: Adapter) -> AdapterLoaded:
    info = adapter.info
    return AdapterLoaded(id, adapter.name, adapter.scale, info.rank, info.targets, info.size)


def _check(generator: Generator) -> None:
    """Look at the page table while there is nothing to do. One that is damaged forgets what it knows, and the log says why."""
    try:
        generator.check()
    except ExltuiError as error:
        log.error("%s", error)
        generator.table.clear()


def _tidy(generator: Generator) -> None:
    """Use a moment with nothing to do. If that fails, what is in the pages is not trusted any more."""
    try:
        generator.tidy()
    except Exception as error:
        log.error("pages could not be moved", exc_info=error)
        generator.table.clear()


def _host_up() -> HostUp:
    import torch

    from exltui.engine.ops import build

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    problem = build.problem()
    return HostUp(torch.__version__, tuple(devices), native=not problem, note=problem)


def _log_to_file() -> None:
    """Tracebacks go to the log file, since the screen belongs to the app. Without one (a full disk, no right to write) they are lost."""
    root = logging.getLogger("exltui")
    if root.handlers:
        return
    handler: logging.Handler = logging.NullHandler()
    with contextlib.suppress(OSError):
        paths.log_file().parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(paths.log_file(), maxBytes=1 << 20, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.propagate = False


def _explain(error: Exception, where: str) -> tuple[str, str]:
    """A sentence and a hint for the user. What was not raised on purpose leaves its traceback in the log."""
    if isinstance(error, ExltuiError):
        return str(error), error.hint
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        log.warning("%s: out of memory: %s", where, error)
        return "there is not enough memory", "load with a shorter --length or a smaller --cache, or take a smaller model"
    log.error("%s failed", where, exc_info=error)
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__, "the log has the details; exltui doctor names it"
