"""Models: which there are, which one is loaded first, loading, unloading, downloading."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui import protocol
from exltui.app import figures
from exltui.app.library import Transfer
from exltui.app.screens.loader import LoaderScreen
from exltui.app.screens.pick import Choice, PickScreen
from exltui.chat.tree import new_id
from exltui.errors import Cancelled, ExltuiError
from exltui.models.catalog import ModelInfo
from exltui.models.recommended import recommended
from exltui.protocol import LoadOptions
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


class ModelDesk:
    """Talks to the engine about models, and to the loader screen while it is open."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._models: list[ModelInfo] = []
        self._scanned = False
        self._transfer: Transfer | None = None
        self._cancelled = threading.Event()
        self._first = True  # the model of the start is still to be chosen

    @property
    def _screen(self) -> LoaderScreen | None:
        """The loader while it is open and has its list; other keys than its own may have closed it."""
        open_ones = (screen for screen in self._app.screen_stack if isinstance(screen, LoaderScreen))
        return next((screen for screen in open_ones if screen.query("#model-list")), None)

    @property
    def busy(self) -> bool:
        """Whether a download runs, whose progress is to be drawn."""
        return self._transfer is not None and self._transfer.running

    # ── which models there are ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Read the models folders, and load the model that the settings or the command line name."""
        self.scan()

    def scan(self) -> None:
        """Read the models folders again."""
        self._app.work_aside(self._app.parts.library.scan, self._scanned_models, self._app.fail)

    def _scanned_models(self, models: list[ModelInfo]) -> None:
        self._models, self._scanned = models, True
        if self._screen is not None:
            self._screen.show_models(models, self._app.parts.library.folders)
        if self._first:
            self._first = False
            self._choose_first()

    def _choose_first(self) -> None:
        """Load the model that was asked for or used last; with no model at all, offer one."""
        wanted = self._app.parts.model
        usable = [model for model in self._models if not model.problem]
        if wanted:
            self._app.work_aside(lambda: self._app.parts.library.resolve(wanted), self._load_path, self._not_found)
        elif len(usable) == 1:
            self._load_path(usable[0].path)
        else:
            self.open()

    def _not_found(self, error: ExltuiError) -> None:
        self._app.fail(error)
        self.open()

    # ── the loader screen ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def toggle(self) -> None:
        """Its key: open the loader, or go back from it."""
        if isinstance(self._app.screen, LoaderScreen):
            self._app.screen.dismiss()
        else:
            self._app.to_main()
            self.open()

    def open(self) -> None:
        """Show the loader."""
        if any(isinstance(screen, LoaderScreen) for screen in self._app.screen_stack):
            return
        screen = LoaderScreen(self._app.observed, self._app.parts.library.offer, self._app.parts.options, self)
        if self._scanned:
            screen.show_models(self._models, self._app.parts.library.folders)
        screen.show_transfer(self._transfer)
        self._app.push_screen(screen, lambda _: self._closed())
        self.scan()

    def _closed(self) -> None:
        if self._transfer is not None and not self._transfer.running:
            self._transfer = None
        self._app.main.prompt.focus()

    # ── what the loader asks for ─────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, model: ModelInfo, options: LoadOptions) -> None:
        """Load a model; a reply that is being written by the old one is stopped and kept."""
        self._app.parts.options = options
        self._load_path(model.path)

    def _load_path(self, path: Path) -> None:
        observed = self._app.observed
        if observed.loading is not None:
            self._app.tell("A model is being loaded.", "Esc in the loader stops it.")
            return
        self._app.work_aside(lambda: recommended(path), self._app.presets.recommend, self._app.fail)
        self._send(protocol.Load(new_id(), str(path), self._app.parts.options))

    def unload(self) -> None:
        """Give the model's memory back."""
        if self._app.observed.loaded is None:
            self._app.tell("No model is loaded.")
        else:
            self._send(protocol.Unload(new_id()))

    def cancel(self) -> None:
        """Stop the load or the download that runs."""
        loading = self._app.observed.loading
        if self.busy:
            self._cancelled.set()
        elif loading is not None:
            self._app.parts.client.send(protocol.Cancel(loading.id))

    def options(self, model: ModelInfo | None) -> None:
        """The load options as a form, with what they mean for this model's memory."""
        from exltui.app.forms import load_form

        self._app.push_screen(load_form(self._app, model), lambda values: self._loads(model, values))

    def _loads(self, model: ModelInfo | None, values: dict[str, Any] | None) -> None:
        if self._screen is not None:
            self._screen.take_options(self._app.parts.options)
        if values is not None and model is not None and not model.problem:
            self._load_path(model.path)

    def now(self) -> float:
        """Seconds since 1970."""
        return self._app.parts.now()

    def drafts(self, model: ModelInfo | None) -> list[str]:
        """Directories of models that may guess ahead for ``model``: the smaller ones, or all that can be loaded."""
        usable = [each for each in self._models if not each.problem and (model is None or (each.parameters or 0) < (model.parameters or 0))]
        now = self._app.parts.options.draft_model
        found = [str(each.path) for each in usable]
        return [*found, now] if now is not None and now not in found else found

    def adapters(self) -> None:
        """The LoRA adapters that go with the loaded model."""
        self._app.adapters.open()

    def fetch(self, name: str) -> None:
        """Download a model, then load it. Of a repository with several branches (bit rates) one is chosen first."""
        if self.busy:
            self._app.tell("A download runs already.", "Esc in the loader stops it.")
        elif "/" in name and "@" not in name:
            self._app.tell(f"Asking for the branches of {one_line(name, 60)}.")
            self._app.work_aside(lambda: self._app.parts.library.branches(name), lambda found: self._choose(name, found), self._app.fail)
        else:
            self._fetch(name)

    def _choose(self, name: str, branches: list[tuple[str, int]]) -> None:
        if len(branches) < 2:
            self._fetch(name)
            return
        meter = self._app.observed.meter
        room = max((device.memory_total or 0 for device in meter.devices), default=0) if meter else 0
        choices = [
            Choice(branch, branch, f"{figures.size(size)}{'  too large' if room and size > room else ''}") for branch, size in branches
        ]

        def take(branch: str | None) -> None:
            if branch is not None:
                self._fetch(name if branch == "main" else f"{name}@{branch}")

        self._app.push_screen(PickScreen(f"Branches of {one_line(name, 60)}", choices), take)

    def _fetch(self, name: str) -> None:
        self._cancelled = threading.Event()
        transfer = Transfer(name, clock=self._app.parts.clock)
        self._transfer = transfer
        library, cancelled = self._app.parts.library, self._cancelled
        self._app.work_aside(lambda: library.fetch(transfer, cancelled.is_set), self._fetched, self._not_fetched)
        self._draw()

    def _fetched(self, path: Path) -> None:
        self._transfer = None
        self._draw()
        self.scan()
        if self._app.observed.loaded is None and self._app.observed.loading is None:
            self._load_path(path)
        else:
            self._app.tell(f"{path.name} is here.", "Ctrl+L loads it.")

    def _not_fetched(self, error: ExltuiError) -> None:
        transfer = self._transfer
        if transfer is None or isinstance(error, Cancelled):
            self._transfer = None
        else:
            transfer.running, transfer.error, transfer.hint = False, str(error), error.hint
            if self._screen is None:
                self._app.fail(error)
        self._draw()

    def _send(self, command: protocol.Load | protocol.Unload) -> None:
        self._app.observed.sent(command)
        self._app.parts.client.send(command)
        self._draw()
        self._app.chats.name()
        self._app.pump()

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those that are not about models only redraw a running download."""
        if isinstance(event, protocol.Loaded):
            self._app.remember("last_model", event.model_dir)
            directory, now = Path(event.model_dir), self._app.parts.now()
            self._app.work_aside(lambda: self._app.parts.library.used(directory, now), lambda _: self.scan(), self._app.fail)
            for note in event.notes:
                self._app.tell(note)
            self._loaded()
        elif isinstance(event, protocol.LoadFailed):
            if self._screen is None:
                self._app.tell(event.error, event.hint, error=True)
            self._redraw()
        elif isinstance(event, protocol.Unloaded):
            self._redraw()

    def _loaded(self) -> None:
        """The model is ready: the loader has done its work."""
        self._redraw()
        if self._screen is not None and self._app.screen is self._screen:
            self._screen.dismiss()

    def _redraw(self) -> None:
        self._app.chats.name()
        if self._screen is not None and self._screen.is_there:
            self._screen.refresh_list()

    def _draw(self) -> None:
        if self._screen is not None:
            self._screen.show_transfer(self._transfer)

    def tick(self) -> None:
        """Draw the progress of what runs."""
        if self._screen is not None and self._screen.is_there and (self.busy or self._app.observed.loading is not None):
            self._screen.show_progress()
