"""The list of chats: open, search, rename, delete with undo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from exltui.app import figures
from exltui.app.widgets.bar import spread
from exltui.app.widgets.typing import LineInput
from exltui.text import one_line


@dataclass(frozen=True)
class SessionRow:
    """One chat in the list. ``updated`` in seconds since 1970; ``snippet`` is where a search found it."""

    id: str
    title: str
    updated: float
    tags: str = ""
    pinned: bool = False
    archived: bool = False
    snippet: str = ""


class SessionList(OptionList):
    """The rows. Keys that change a chat live here, so that they do not reach the search box."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Open", id="sessions.open"),
        Binding("slash", "search", "Search all chats; #tag finds a tag", id="sessions.search"),
        Binding("n", "app.chat('new')", "New chat", id="sessions.new"),
        Binding("r", "rename", "Rename", id="sessions.rename"),
        Binding("p", "app.chat('pinned')", "Pin to the top, or no longer", id="sessions.pin"),
        Binding("a", "app.chat('archived')", "Archive, or take out of the archive", id="sessions.archive"),
        Binding("t", "app.chat('tags')", "Tags", id="sessions.tags"),
        Binding("c", "app.chat('duplicate')", "Duplicate", id="sessions.duplicate"),
        Binding("A", "archive", "Show or hide the archive", id="sessions.show_archive"),
        Binding("d,delete", "app.chat('delete')", "Delete", id="sessions.delete"),
        Binding("u", "app.chat('undo')", "Undo the last deletion", id="sessions.undo"),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]

    @property
    def pane(self) -> SessionsPane:
        return next(node for node in self.ancestors if isinstance(node, SessionsPane))

    def action_search(self) -> None:
        self.pane.ask("search")

    def action_rename(self) -> None:
        if self.pane.chosen:
            self.pane.ask("rename")

    def action_archive(self) -> None:
        self.pane.toggle_archive()


class SessionsPane(Vertical):
    """All chats, the newest first; the one on the screen has a dot."""

    BORDER_TITLE = "Sessions"

    @dataclass
    class Opened(Message):
        """A chat was chosen."""

        id: str

    @dataclass
    class Renamed(Message):
        """A chat has a new title."""

        id: str
        title: str

    @dataclass
    class Searched(Message):
        """The text in the search box changed; empty shows all chats."""

        text: str

    def __init__(self, now: Callable[[], float], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._now = now
        self.rows: list[SessionRow] = []  # as they are shown
        self._all: list[SessionRow] = []
        self._archive = False
        self._current: str | None = None
        self._asking = ""
        self.searched = ""

    def compose(self) -> ComposeResult:
        yield LineInput(id="sessions-input", compact=True)
        yield SessionList(id="sessions-list", compact=True)

    def on_mount(self) -> None:
        self._input.display = False

    @property
    def _input(self) -> Input:
        return self.query_one("#sessions-input", Input)

    @property
    def list(self) -> SessionList:
        return self.query_one("#sessions-list", SessionList)

    @property
    def chosen(self) -> SessionRow | None:
        """The row under the cursor."""
        index = self.list.highlighted
        return self.rows[index] if index is not None and index < len(self.rows) else None

    def show(self, rows: Sequence[SessionRow], current: str | None) -> None:
        """Show these chats, keeping the cursor on its chat."""
        keep = self.chosen.id if self.chosen and self.list.has_focus else current
        self._all, self._current = list(rows), current
        self._fill(keep)

    def toggle_archive(self) -> None:
        """Show archived chats among the others, or not. A search finds them in any case."""
        self._archive = not self._archive
        self._fill(self.chosen.id if self.chosen else None)

    def on_resize(self) -> None:
        self._fill(self.chosen.id if self.chosen else None)

    def _fill(self, keep: str | None) -> None:
        width = self.list.content_region.width or self.content_size.width
        listed = self.list
        listed.clear_options()
        self.rows = [row for row in self._all if self._archive or self.searched or not row.archived or row.id == self._current]
        away = len(self._all) - len(self.rows)
        self.border_subtitle = f"{away} archived · A shows" if away else ""
        if not self.rows:
            text = "Nothing found." if self.searched else "Chats appear here."
            listed.add_option(Option(Content.styled(f" {text}", "$text-muted"), disabled=True))
            return
        listed.add_options([Option(self._line(row, width - 2), id=row.id) for row in self.rows])
        ids = [row.id for row in self.rows]
        listed.highlighted = ids.index(keep) if keep in ids else 0

    def _line(self, row: SessionRow, width: int) -> Content:
        mark = Content.styled("● " if row.id == self._current else "▪ " if row.pinned else "  ", "$accent")
        look = "bold" if row.id == self._current else "$text-muted" if row.archived else ""
        title = Content.assemble(
            (one_line(row.title) or "New chat", look), (f" #{' #'.join(row.tags.split())}" if row.tags else "", "$secondary")
        )
        line = spread(Content.assemble(mark, title), Content.styled(f" {figures.ago(row.updated, self._now())}", "$text-muted"), width)
        if not row.snippet:
            return line
        found = Content.styled(one_line(row.snippet), "$text-muted").truncate(max(4, width - 4), ellipsis=True)
        return Content.assemble(line, "\n    ", found)

    def ask(self, what: str) -> None:
        """Open the input line for a ``search`` or a ``rename``."""
        self._asking = what
        line = self._input
        line.placeholder = "search all chats" if what == "search" else "new title"
        with line.prevent(Input.Changed):
            line.value = self.searched if what == "search" else (self.chosen.title if self.chosen else "")
        line.display = True
        line.focus()

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        if self._asking == "search":
            self.searched = event.value
            self.post_message(self.Searched(event.value))

    @on(Input.Submitted)
    def _commit(self, event: Input.Submitted) -> None:
        event.stop()
        if self._asking == "rename" and self.chosen and event.value.strip():
            self.post_message(self.Renamed(self.chosen.id, event.value.strip()))
        self._close(keep=self._asking == "search" and bool(event.value))

    def on_key(self, event: events.Key) -> None:
        """Esc in the input line closes it; the second Esc closes the drawer."""
        if event.key == "escape" and self._input.has_focus:
            event.stop()
            if self._asking == "search" and self.searched:
                self.searched = ""
                self.post_message(self.Searched(""))
            self._close(keep=False)
        elif event.key == "down" and self._input.has_focus and self._asking == "search":
            event.stop()
            self.list.focus()

    def _close(self, *, keep: bool) -> None:
        self._input.display = keep
        self.list.focus()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(self.Opened(event.option.id))
