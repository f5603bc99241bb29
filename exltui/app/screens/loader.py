"""The model loader: what is there, what it needs, load with progress, unload, and download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exltui.app import figures
from exltui.app.library import Offer, Transfer
from exltui.app.observed import Observed
from exltui.app.screens.loader_lines import (
    changed_options,
    empty_lines,
    format_name,
    loading_lines,
    model_lines,
    plan_lines,
    searchable,
    transfer_lines,
    wrapped,
)
from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import spread
from exltui.app.widgets.typing import LineInput
from exltui.models.catalog import ModelInfo
from exltui.protocol import LoadOptions
from exltui.text import one_line

LENGTHS = (None, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
STARTER_ROW = "get-starter"


class Desk(Protocol):
    """What the loader asks for."""

    def load(self, model: ModelInfo, options: LoadOptions) -> None: ...
    def fetch(self, name: str) -> None: ...
    def unload(self) -> None: ...
    def cancel(self) -> None: ...
    def scan(self) -> None: ...
    def options(self, model: ModelInfo | None) -> None: ...
    def adapters(self) -> None: ...
    def now(self) -> float: ...


class ModelList(OptionList):
    """The rows of the loader, with its keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Load", id="loader.load"),
        Binding("u", "screen.unload", "Unload", id="loader.unload"),
        Binding("o", "screen.options", "Load options as a form", id="loader.options"),
        Binding("a", "screen.adapters", "LoRA adapters", id="loader.adapters"),
        Binding("left", "screen.length(-1)", "Smaller context", id="loader.smaller"),
        Binding("right", "screen.length(1)", "Larger context", id="loader.larger"),
        Binding("g", "screen.fetch", "Get a model by name", id="loader.get"),
        Binding("slash", "screen.search", "Search", id="loader.search"),
        Binding("f5", "screen.rescan", "Look again", id="loader.rescan"),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]


class LoaderScreen(ClosesOnce, Screen[None]):
    """Models on the left, the chosen one's details on the right, load options and progress below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Cancel or close", id="loader.back")]

    def __init__(self, observed: Observed, offer: Offer, options: LoadOptions, desk: Desk) -> None:
        super().__init__()
        self._observed = observed
        self._offer = offer
        self._base_options = options
        self._desk = desk
        self._models: list[ModelInfo] = []
        self._folders: Sequence[str] = ()
        self._scanned = False
        self._length = LENGTHS.index(options.length) if options.length in LENGTHS else 0
        self._transfer: Transfer | None = None
        self._asking = ""
        self._filter = ""

    # ── what is on it ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def compose(self) -> ComposeResult:
        with Horizontal(id="loader-body"):
            with Vertical(id="models") as models:
                models.border_title = "Models"
                models.border_subtitle = "Enter load · O options · U unload · G get · / find"
                yield LineInput(id="model-input", compact=True)
                yield ModelList(id="model-list", compact=True)
            with VerticalScroll(id="details", can_focus=False) as details:
                details.border_title = "Details"
                yield Static(id="details-text")
        with Vertical(id="transfer") as transfer:
            transfer.border_title = "Load"
            yield Static(id="transfer-text")

    def on_mount(self) -> None:
        self._input.display = False
        self._fill()
        self.show_progress()
        self._list.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)
        self.call_after_refresh(self.show_progress)

    @property
    def _input(self) -> Input:
        return self.query_one("#model-input", Input)

    @property
    def _list(self) -> ModelList:
        return self.query_one("#model-list", ModelList)

    @property
    def chosen(self) -> ModelInfo | None:
        """The model under the cursor."""
        index = self._list.highlighted
        if index is None:
            return None
        id = self._list.get_option_at_index(index).id
        return next((model for model in self._models if str(model.path) == id), None)

    def show_models(self, models: Sequence[ModelInfo], folders: Sequence[str]) -> None:
        """Take the result of a scan of the models folders."""
        self._models, self._folders, self._scanned = list(models), folders, True
        if self.is_there:
            self._fill()

    def show_transfer(self, transfer: Transfer | None) -> None:
        """Take the state of a download."""
        self._transfer = transfer
        if self.is_there:
            self.show_progress()

    def show_progress(self) -> None:
        """Draw the load or download that runs, or else the options of the next load."""
        width = max(20, self.query_one("#transfer-text").size.width)
        frame = self.query_one("#transfer")
        if self._transfer is not None:
            frame.border_title, lines = "Download", transfer_lines(self._transfer, width)
        elif self._observed.loading is not None:
            frame.border_title, lines = "Loading", loading_lines(self._observed, width)
        else:
            frame.border_title, lines = "Load", self._option_lines()
        self.query_one("#transfer-text", Static).update(Content("\n").join(lines))

    def refresh_list(self) -> None:
        """The loaded model changed: move the dot."""
        self._fill()
        self.show_progress()

    def _fill(self) -> None:
        listed = self._list
        width = (listed.content_region.width or listed.size.width) - 2
        keep = listed.get_option_at_index(listed.highlighted).id if listed.highlighted is not None else None
        words = self._filter.lower().split()
        shown = [model for model in self._models if all(word in searchable(model) for word in words)]
        listed.clear_options()
        for model in shown:
            listed.add_option(Option(self._line(model, width), id=str(model.path)))
        if not shown:
            text = "Reading the models folders." if not self._scanned else "No model has this name." if self._filter else "No models yet."
            listed.add_option(Option(Content.styled(f"  {text}", "$text-muted"), disabled=True))
        if self._scanned and not self._filter and not any(model.name == self._offer.name for model in self._models):
            line = spread(Content.assemble(("+ ", "$accent"), f"Get {self._offer.title}"), Content(figures.size(self._offer.size)), width)
            listed.add_option(Option(line, id=STARTER_ROW))
        ids = [option.id for option in listed.options]
        loaded = self._observed.loaded.model_dir if self._observed.loaded else None
        first = next((index for index, option in enumerate(listed.options) if not option.disabled), None)
        listed.highlighted = next((ids.index(id) for id in (keep, loaded) if id and id in ids), first)
        self._draw_details()

    def _line(self, model: ModelInfo, width: int) -> Content:
        loaded = self._observed.loaded is not None and self._observed.loaded.model_dir == str(model.path)
        mark = ("● ", "$success") if loaded else ("! ", "$error") if model.problem else ("  ", "")
        right = Content.assemble(
            (f"{format_name(model):>9}", "$text-muted"),
            f" {figures.parameters(model.parameters):>6}",
            f" {figures.size(model.size):>8} ",
            (self._used(model), "$text-muted"),
        )
        return spread(Content.assemble(mark, (one_line(model.name), "$text-muted" if model.problem else "")), right, width)

    def _used(self, model: ModelInfo) -> str:
        """When a model was loaded last; no column while that is known of none."""
        if all(each.used is None for each in self._models):
            return ""
        return f"{figures.ago(model.used, self._desk.now()) if model.used is not None else '':>7} "

    @on(OptionList.OptionHighlighted)
    def _draw_details(self) -> None:
        model, listed = self.chosen, self._list
        if model is not None:
            lines = model_lines(model, self._observed, self._desk.now())
        elif listed.highlighted is not None and listed.get_option_at_index(listed.highlighted).id == STARTER_ROW:
            lines = [*wrapped(self._offer.about), Content(""), Content.styled("Enter downloads it.", "$accent")]
        else:
            lines = empty_lines(self._folders) if self._scanned else []
        self.query_one("#details-text", Static).update(Content("\n").join(lines))
        if self._transfer is None and self._observed.loading is None:
            self.show_progress()

    @property
    def options(self) -> LoadOptions:
        """How the next load is done."""
        return replace(self._base_options, length=LENGTHS[self._length])

    def take_options(self, options: LoadOptions) -> None:
        """The form has changed them."""
        self._base_options = options
        self._length = LENGTHS.index(options.length) if options.length in LENGTHS else 0
        self.show_progress()

    def _option_lines(self) -> list[Content]:
        failed, width = self._observed.load_failed, max(20, self.query_one("#transfer-text").size.width)
        length = LENGTHS[self._length]
        text = "the model's own, at most 8,192" if length is None else f"{length:,} tokens"
        others = changed_options(self._base_options)
        lines = [
            Content.assemble(("context  ", "$text-muted"), ("◂ ", "$accent"), text, (" ▸", "$accent"), (f"   {others}", "$text-muted"))
        ]
        if (model := self.chosen) is not None and not model.problem:
            lines += plan_lines(model, self.options, self._observed, width)
        if failed is not None:
            lines += [
                Content.styled(failed.error, "$error"),
                *([Content.styled(failed.hint, "$text-muted")] if failed.hint else []),
            ]
        return lines

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(OptionList.OptionSelected)
    def _select(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id == STARTER_ROW:
            self._desk.fetch(self._offer.name)
        elif (model := self.chosen) is not None:
            if model.problem:
                self.notify(model.problem, severity="error")
            else:
                self._desk.load(model, self.options)

    def action_length(self, step: int) -> None:
        self._length = min(len(LENGTHS) - 1, max(0, self._length + step))
        self.show_progress()

    def action_options(self) -> None:
        self._desk.options(self.chosen)

    def action_adapters(self) -> None:
        self._desk.adapters()

    def action_unload(self) -> None:
        self._desk.unload()

    def action_rescan(self) -> None:
        self._desk.scan()

    def action_back(self) -> None:
        if self._input.has_focus:
            self._close_input()
        elif self._observed.loading is not None or (self._transfer is not None and self._transfer.running):
            self._desk.cancel()
        else:
            self.dismiss()

    def action_search(self) -> None:
        self._ask("search", "search models", self._filter)

    def action_fetch(self) -> None:
        self._ask("get", f"{self._offer.name}, or OWNER/REPO[@REVISION] of the hub", "")

    def _ask(self, what: str, placeholder: str, value: str) -> None:
        self._asking = what
        line = self._input
        line.placeholder = placeholder
        with line.prevent(Input.Changed):
            line.value = value
        line.display = True
        line.focus()

    def _close_input(self) -> None:
        if self._asking == "search" and self._filter:
            self._filter = ""
            self._fill()
        self._input.display = False
        self._list.focus()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if self._asking == "search":
            self._filter = event.value
            self._fill()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._asking == "get" and event.value.strip():
            self._desk.fetch(event.value.strip())
        self._input.display = self._asking == "search" and bool(event.value)
        self._list.focus()

    def on_key(self, event: events.Key) -> None:
        if event.key == "down" and self._input.has_focus:
            event.stop()
            self._list.focus()
