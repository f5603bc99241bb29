"""The LoRA adapters: a row each, with a slider for those that are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from exltui.adapter import AdapterInfo
from exltui.app import figures
from exltui.app.observed import Observed
from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import bar, spread
from exltui.text import one_line

MOST = 2.0  # what a full slider stands for
SLIDER = 16  # cells
LIMITS = (-4.0, 4.0)


class Desk(Protocol):
    """What the screen asks for."""

    def load(self, info: AdapterInfo) -> None: ...
    def drop(self, name: str) -> None: ...
    def scale(self, name: str, scale: float) -> None: ...
    def wanted(self, name: str) -> float: ...


class AdapterScreen(ClosesOnce, ModalScreen[None]):
    """What is changed holds from the next reply on; a reply that is being written goes on as it began."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="adapters.close"),
        Binding("left,h,minus", "scale(-0.05)", "Weaker", id="adapters.weaker"),
        Binding("right,l,plus", "scale(0.05)", "Stronger", id="adapters.stronger"),
        Binding("shift+left", "scale(-0.5)", "Much weaker", id="adapters.much_weaker"),
        Binding("shift+right", "scale(0.5)", "Much stronger", id="adapters.much_stronger"),
        Binding("0", "exactly(0)", "Without effect", id="adapters.zero"),
        Binding("1", "exactly(1)", "As it was trained", id="adapters.one"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(self, adapters: Sequence[AdapterInfo], observed: Observed, desk: Desk) -> None:
        super().__init__()
        self._adapters, self._observed, self._desk = list(adapters), observed, desk

    def compose(self) -> ComposeResult:
        with Vertical(id="adapters") as frame:
            frame.border_title = "LoRA adapters"
            frame.border_subtitle = "Enter load or drop · ← → scale · Esc close"
            yield OptionList(id="adapters-list", compact=True)
            yield Static(id="adapters-about")

    def on_mount(self) -> None:
        self.fill()
        self._list.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self.fill)

    @property
    def _list(self) -> OptionList:
        return self.query_one("#adapters-list", OptionList)

    @property
    def names(self) -> list[str]:
        """Those that are loaded from elsewhere stand behind those of the folders."""
        found = [info.name for info in self._adapters]
        return [*found, *(name for name in self._observed.adapters if name not in found)]

    @property
    def chosen(self) -> str | None:
        """The name under the cursor."""
        at = self._list.highlighted
        return self.names[at] if at is not None and at < len(self.names) else None

    def fill(self) -> None:
        """Draw the rows: something was loaded, dropped or changed."""
        listed, at = self._list, self._list.highlighted
        width = max(20, (listed.content_region.width or listed.size.width) - 2)
        listed.clear_options()
        for name in self.names:
            listed.add_option(Option(self._line(name, width)))
        if not self.names:
            listed.add_option(Option(Content.styled("  No adapter lies beside the models.", "$text-muted"), disabled=True))
        listed.highlighted = min(at or 0, len(self.names) - 1) if self.names else None
        self._explain()

    def _line(self, name: str, width: int) -> Content:
        loaded, info = self._observed.adapters.get(name), self._info(name)
        broken = info is not None and info.problem is not None
        left = Content.assemble(
            ("● ", "$success") if loaded else ("! ", "$error") if broken else ("  ", ""), (one_line(name), "" if loaded else "$text-muted")
        )
        if loaded is None:
            return spread(left, Content.styled(figures.size(info.size) if info and not broken else "", "$text-muted"), width)
        slider = Content.assemble(("◂ ", "$accent"), bar(abs(loaded.scale) / MOST, SLIDER), (" ▸", "$accent"), f" {loaded.scale:6.2f} ")
        return spread(left, slider, width)

    def _info(self, name: str) -> AdapterInfo | None:
        return next((info for info in self._adapters if info.name == name), None)

    @on(OptionList.OptionHighlighted)
    def _explain(self) -> None:
        name = self.chosen
        info = self._info(name) if name else None
        if info is not None and info.problem:
            about = Content.styled(info.problem, "$error")
        elif info is not None:
            what = f"rank {info.rank} · {', '.join(info.targets)} · {figures.size(info.size)}"
            about = Content.styled(one_line(f"{what} · for {info.base}" if info.base else what, 300), "$text-muted")
        else:
            about = Content.styled("Directories that PEFT saved, in a models folder or within a model's, are listed here.", "$text-muted")
        self.query_one("#adapters-about", Static).update(about)

    @on(OptionList.OptionSelected)
    def _toggle(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = self.chosen
        if name is None:
            return
        if name in self._observed.adapters:
            self._desk.drop(name)
        elif (info := self._info(name)) is not None:
            self._desk.load(info)

    def action_scale(self, by: float) -> None:
        loaded = self._observed.adapters.get(self.chosen or "")
        if loaded is not None:
            self._exactly(loaded.name, self._desk.wanted(loaded.name) + by)

    def action_exactly(self, scale: float) -> None:
        if self.chosen in self._observed.adapters:
            self._exactly(self.chosen, scale)

    def _exactly(self, name: str, scale: float) -> None:
        self._desk.scale(name, round(min(LIMITS[1], max(LIMITS[0], scale)), 2))

    def action_move(self, step: int) -> None:
        self._list.action_cursor_down() if step > 0 else self._list.action_cursor_up()

    def action_leave(self) -> None:
        self.dismiss(None)
