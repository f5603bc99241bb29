"""The main screen: sessions, conversation, sampler and devices side by side, or as drawers where there is no room."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget

from exltui.app.observed import Observed
from exltui.app.panes.conversation import ConversationPane, Talk
from exltui.app.panes.devices import DevicesPane
from exltui.app.panes.sampler import SamplerPane
from exltui.app.panes.sessions import SessionsPane
from exltui.app.widgets.prompt import PromptBox
from exltui.app.widgets.slowly import Link
from exltui.app.widgets.status import StatusLine
from exltui.protocol import Sampling


class MainScreen(Screen[None]):
    """What stands where. What it shows is put in by the app. ``link``: the way to the terminal, None where there is none to watch."""

    AUTO_FOCUS = "#prompt"

    def __init__(self, observed: Observed, sampling: Sampling, now: Callable[[], float], link: Link) -> None:
        super().__init__()
        self._observed = observed
        self._sampling = sampling
        self._now, self._link = now, link

    def compose(self) -> ComposeResult:
        with Horizontal(id="body"):
            yield SessionsPane(self._now, id="sessions")
            yield ConversationPane(self._link, id="centre")
            with Vertical(id="side"):
                yield SamplerPane(self._sampling, Sampling(), id="sampler")
                yield DevicesPane(self._observed, id="devices")
        yield StatusLine(id="status")

    @property
    def sessions(self) -> SessionsPane:
        return self.query_one("#sessions", SessionsPane)

    @property
    def conversation(self) -> ConversationPane:
        return self.query_one("#centre", ConversationPane)

    @property
    def talk(self) -> Talk:
        return self.conversation.talk

    @property
    def prompt(self) -> PromptBox:
        return self.conversation.prompt

    @property
    def sampler(self) -> SamplerPane:
        return self.query_one("#sampler", SamplerPane)

    @property
    def devices(self) -> DevicesPane:
        return self.query_one("#devices", DevicesPane)

    @property
    def status(self) -> StatusLine:
        return self.query_one("#status", StatusLine)

    # ── panes and drawers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def show_pane(self, name: str) -> None:
        """Bring a pane forward and focus it; from the pane itself, go back to the prompt."""
        target: Widget = self.sessions.list if name == "sessions" else self.query_one(f"#{name}")
        if target.has_focus:
            self.close_drawers()
            return
        if name == "sessions":
            self.set_class(False, "-drawer-side")
            if not self.has_class("-wide"):
                self.set_class(True, "-drawer-sessions")
        else:
            self.set_class(False, "-drawer-sessions")
            self.set_class(name == "devices", "-side-devices")
            if self.has_class("-narrow"):
                self.set_class(True, "-drawer-side")
        self.call_after_refresh(target.focus)

    @property
    def in_drawer(self) -> bool:
        """Whether a drawer is open, or a pane beside the conversation has the focus."""
        focused = self.focused
        beside = focused is not None and any(node.id in ("sessions", "side") for node in focused.ancestors_with_self)
        return beside or self.has_class("-drawer-sessions") or self.has_class("-drawer-side")

    def close_drawers(self) -> None:
        """Back to the conversation."""
        self.remove_class("-drawer-sessions", "-drawer-side")
        self.prompt.focus()
