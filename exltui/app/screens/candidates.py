"""Several replies to one prompt in columns, written at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen

from exltui.app.screens.once import ClosesOnce
from exltui.app.transcript import Entry, Transcript


class CandidatesScreen(ClosesOnce, Screen[str | None]):
    """Gives the id of the reply that is to be read on, or None. In a narrow terminal one column is seen at a time."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Stop, then close", id="candidates.close"),
        Binding("left,h,shift+tab", "move(-1)", "Column to the left", id="candidates.left", priority=True),
        Binding("right,l,tab", "move(1)", "Column to the right", id="candidates.right", priority=True),
        Binding("enter", "choose", "Read on with this one", id="candidates.choose"),
        *(Binding(str(number), f"choose({number - 1})", show=False) for number in range(1, 9)),
    ]

    def __init__(self, columns: Sequence[tuple[str, Entry]], stop: Callable[[], bool]) -> None:
        super().__init__()
        self._columns = list(columns)
        self._stop = stop
        self._at = 0

    def compose(self) -> ComposeResult:
        with Horizontal(id="columns"):
            for number, (name, _) in enumerate(self._columns):
                with Vertical(classes="column") as frame:
                    frame.border_title = name
                    frame.border_subtitle = f"{number + 1} or Enter chooses"
                    yield Transcript(id=f"column-{number}")

    def on_mount(self) -> None:
        for number, (_, entry) in enumerate(self._columns):
            self._talk(number).show([entry])
        self.action_move(0)

    def _talk(self, number: int) -> Transcript:
        return self.query_one(f"#column-{number}", Transcript)

    def feed(self, id: str, text: str) -> None:
        """Text of one of the replies has come."""
        for number, (_, entry) in enumerate(self._columns):
            if entry.id != id:
                continue
            if self.is_there:
                self._talk(number).feed(id, text)
            else:
                entry.text += text

    def finish(self, entry: Entry) -> None:
        """One of the replies is complete."""
        for number, (_, known) in enumerate(self._columns):
            if known.id == entry.id and self.is_there:
                self._talk(number).finish(entry.id, entry.meta, entry.state, entry.hint)

    def action_move(self, step: int) -> None:
        self._at = (self._at + step) % len(self._columns)
        for number, frame in enumerate(self.query(".column")):
            frame.set_class(number == self._at, "-chosen")
        self._talk(self._at).focus()

    def action_choose(self, number: int | None = None) -> None:
        number = self._at if number is None else number
        if number < len(self._columns):
            self.dismiss(self._columns[number][1].id)

    def action_leave(self) -> None:
        if not self._stop():
            self.dismiss(None)
