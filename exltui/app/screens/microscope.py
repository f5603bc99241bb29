"""The sampler microscope: one token's distribution after each stage of the sampler, while the settings change beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from exltui.app.fields import replaced
from exltui.app.inspect import InspectedReply
from exltui.app.panes.sampler import SamplerPane
from exltui.app.scope import columns, scope_lines, shown
from exltui.app.screens.once import ClosesOnce
from exltui.app.screens.order import OrderScreen
from exltui.protocol import Explained, QueryFailed, Sampling
from exltui.sampling import stages

Ask = Callable[[int, Sampling | None, Callable[[Explained], None], Callable[[QueryFailed], None]], None]


class MicroscopeScreen(ClosesOnce, Screen[Sampling | None]):
    """``ask`` has the engine say what settings make of the token at a place. Gives settings that are to be used from now on, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="scope.close"),
        Binding("left_square_bracket", "token(-1)", "Token before", id="scope.previous"),
        Binding("right_square_bracket", "token(1)", "Next token", id="scope.next"),
        Binding("comma", "scroll(-1)", "Stages before", id="scope.left"),
        Binding("full_stop", "scroll(1)", "Later stages", id="scope.right"),
        Binding("a", "apply", "Use these settings from now on", id="scope.apply"),
    ]

    def __init__(self, reply: InspectedReply, place: int, sampling: Sampling, ask: Ask) -> None:
        super().__init__()
        self._reply, self._place, self._ask = reply, place, ask
        self._sampling = sampling
        self._explained: Explained | None = None
        self._problem = ""
        self._first: int | None = None  # the first stage that is shown; None: as many of the last ones as there is room for
        self._asked = self._again = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="scope"):
            yield SamplerPane(self._sampling, self._sampling, id="scope-sampler")
            with VerticalScroll(id="scope-frame", can_focus=False) as frame:
                frame.border_subtitle = "[ ] token · , . stages · A use these settings · Esc close"
                yield Static(id="scope-table")

    def on_mount(self) -> None:
        self.query_one(SamplerPane).focus()
        self._recompute()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    # ── the engine ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(SamplerPane.Changed)
    def _changed(self, event: SamplerPane.Changed) -> None:
        event.stop()
        self._sampling = event.sampling
        self._recompute()

    @on(SamplerPane.OrderWanted)
    def _order_wanted(self, event: SamplerPane.OrderWanted) -> None:
        event.stop()

        def take(order: str | None) -> None:
            if order is not None:
                self.query_one(SamplerPane).take(replaced(self._sampling, "order", order))

        self.app.push_screen(OrderScreen(stages(self._sampling)), take)

    def _recompute(self) -> None:
        """Ask the engine; of several changes while it answers only the last one is asked for again."""
        if self._asked:
            self._again = True
            return
        self._asked = True
        self._ask(self._place, self._sampling, self._answered, self._refused)

    def _answered(self, explained: Explained) -> None:
        self._explained, self._problem = explained, ""
        self._taken()

    def _refused(self, failed: QueryFailed) -> None:
        self._explained, self._problem = None, f"{failed.error}: {failed.hint}"
        self._taken()

    def _taken(self) -> None:
        self._asked = False
        if self._again:
            self._again = False
            self._recompute()
        if self.is_there:
            self._draw()

    # ── looks ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self) -> None:
        frame = self.query_one("#scope-frame")
        token = self._reply.tokens[self._place]
        frame.border_title = f"Token {self._place + 1} of {len(self._reply.tokens)} · {shown(token.text)}"
        self.query_one("#scope-table", Static).update(Content("\n").join(self._lines()))

    def _lines(self) -> list[Content]:
        if self._explained is None:
            return [Content.styled(self._problem or "…", "$error" if self._problem else "$text-muted")]
        width, height = self.query_one("#scope-table").size.width, self.query_one("#scope-frame").content_size.height
        return scope_lines(self._explained, lambda id: self._reply.text(self._place, id), self._leftmost(width), width, height)

    def _leftmost(self, width: int) -> int:
        count = len(self._explained.stages) if self._explained is not None else 0
        most = max(0, count - columns(count, width))
        return most if self._first is None else min(self._first, most)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_token(self, step: int) -> None:
        place = max(0, min(len(self._reply.tokens) - 1, self._place + step))
        if place != self._place:
            self._place = place
            self._recompute()

    def action_scroll(self, step: int) -> None:
        width = self.query_one("#scope-table").size.width
        self._first = max(0, self._leftmost(width) + step)
        self._first = self._leftmost(width)
        self._draw()

    def action_apply(self) -> None:
        self.dismiss(self._sampling)

    def action_leave(self) -> None:
        self.dismiss(None)
