"""LoRA adapters while chatting: which there are, loading and dropping them, how strongly each acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exltui import protocol
from exltui.adapter import AdapterInfo
from exltui.app.screens.adapters import AdapterScreen
from exltui.chat.tree import new_id
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


class AdapterDesk:
    """Talks to the engine about adapters, and to their screen while it is open."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._screen: AdapterScreen | None = None
        self._asked: dict[str, protocol.LoadAdapter | protocol.DropAdapter] = {}  # without an answer yet, in their order

    def open(self, text: str = "") -> None:
        """Show the adapters, or do what ``text`` says: ``NAME``, ``NAME:SCALE``, ``NAME off``."""
        if self._app.observed.loaded is None:
            self._app.tell("No model is loaded.", "Adapters are loaded beside a model: Ctrl+L.")
            return
        self._app.work_aside(
            self._app.parts.library.adapters, lambda found: self._do(found, text) if text else self._show(found), self._app.fail
        )

    def _show(self, found: list[AdapterInfo]) -> None:
        if self._screen is None:
            self._screen = AdapterScreen(found, self._app.observed, self)
            self._app.push_screen(self._screen, lambda _: self._closed())

    def _closed(self) -> None:
        self._screen = None

    def _do(self, found: list[AdapterInfo], text: str) -> None:
        name, _, last = text.rpartition(" ")
        if last == "off" and name:
            self.drop(name.strip())
            return
        name, _, scale = text.rpartition(":")
        try:
            name, factor = (name, float(scale)) if name else (text, 1.0)
        except ValueError:
            name, factor = text, 1.0
        info = next((info for info in found if info.name == name.strip()), None)
        if name in self._app.observed.adapters:
            self.scale(name, factor)
        elif info is None:
            known = f"There are {', '.join(info.name for info in found)}." if found else "None lies beside the models."
            self._app.tell(f"There is no adapter {one_line(name, 40)}.", known, error=True)
        else:
            self.load(info, factor)

    # ── what the engine is asked for ─────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, info: AdapterInfo, scale: float = 1.0) -> None:
        """Load an adapter beside the model; the next reply is written with it."""
        if info.problem:
            self._app.tell(info.problem, error=True)
        else:
            self._send(protocol.LoadAdapter(new_id(), str(info.path), info.name, scale))

    def drop(self, name: str) -> None:
        self._send(protocol.DropAdapter(new_id(), name))

    def scale(self, name: str, scale: float) -> None:
        """How strongly a loaded adapter acts on the next reply."""
        self._send(protocol.LoadAdapter(new_id(), "", name, scale))

    def wanted(self, name: str) -> float:
        """The scale of a loaded adapter once the engine has done all that it was asked."""
        asked = [command.scale for command in self._asked.values() if isinstance(command, protocol.LoadAdapter) and command.name == name]
        return asked[-1] if asked else self._app.observed.adapters[name].scale

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def _send(self, command: protocol.LoadAdapter | protocol.DropAdapter) -> None:
        self._asked[command.id] = command
        self._app.parts.client.send(command)
        self._app.wake()

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those that are not about adapters pass by."""
        if isinstance(event, protocol.AboutAdapters):
            self._asked.pop(event.id, None)
        if isinstance(event, protocol.AdapterFailed):
            self._app.tell(event.error, event.hint, error=True)
        elif not isinstance(event, protocol.AboutAdapters):
            return
        elif self._screen is None:
            done = f"with a scale of {event.scale:g}" if isinstance(event, protocol.AdapterLoaded) else "without it from now on"
            self._app.tell(f"LoRA {one_line(event.name, 60)}: {done}.")
        if self._screen is not None and self._screen.is_there:
            self._screen.fill()
