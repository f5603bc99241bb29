"""The order of the sampler's stages, and which of them run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from exltui.app.screens.once import ClosesOnce
from exltui.sampling import ORDER


class OrderScreen(ClosesOnce, ModalScreen[str | None]):
    """Gives the stages with commas, "" for the usual order, or None when it is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave it as it was", id="order.leave"),
        Binding("left,K,shift+up", "shift(-1)", "Earlier", id="order.earlier"),
        Binding("right,J,shift+down", "shift(1)", "Later", id="order.later"),
        Binding("space,x", "flip", "Run this stage, or not", id="order.toggle"),
        Binding("delete,backspace", "usual", "The usual order", id="order.usual"),
    ]

    def __init__(self, stages: Sequence[str]) -> None:
        super().__init__()
        self._stages = [*stages, *(stage for stage in ORDER if stage not in stages)]
        self._runs = set(stages)

    def compose(self) -> ComposeResult:
        with Vertical(id="order") as frame:
            frame.border_title = "Order of the sampler"
            frame.border_subtitle = "← → move · Space on or off · Del usual · Enter take"
            yield OptionList(id="order-list", compact=True)

    def on_mount(self) -> None:
        self._fill(0)

    @property
    def _list(self) -> OptionList:
        return self.query_one("#order-list", OptionList)

    def _fill(self, at: int) -> None:
        listed = self._list
        listed.clear_options()
        number = 0
        for stage in self._stages:
            runs = stage in self._runs
            number += runs
            line = Content.assemble(
                (f" {number:>2} " if runs else "  – ", "$accent"), (stage.replace("_", " "), "" if runs else "$text-disabled")
            )
            listed.add_option(Option(line))
        listed.highlighted = at

    def action_shift(self, step: int) -> None:
        at = self._list.highlighted or 0
        to = at + step
        if 0 <= to < len(self._stages):
            self._stages[at], self._stages[to] = self._stages[to], self._stages[at]
            self._fill(to)

    def action_flip(self) -> None:
        at = self._list.highlighted or 0
        self._runs ^= {self._stages[at]}
        self._fill(at)

    def action_usual(self) -> None:
        self._stages, self._runs = list(ORDER), set(ORDER)
        self._fill(self._list.highlighted or 0)

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        order = [stage for stage in self._stages if stage in self._runs]
        if not order:
            self.notify("At least one stage must run.", severity="error")
        else:
            self.dismiss("" if tuple(order) == ORDER else ",".join(order))

    def action_leave(self) -> None:
        self.dismiss(None)
