"""The list of chats: what is in it, and what the keys of its pane do to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exltui.app.panes.sessions import SessionRow
from exltui.protocol import Loaded

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


class ChatDesk:
    """Reads and changes the list of chats beside the screen's thread, and keeps the pane and the frame's title up to date."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    def refresh(self) -> None:
        """Show the newest list of chats, and the name of this one."""
        self.name()
        search = self._app.main.sessions.searched
        self._app.work_aside(lambda: self._app.parts.records.rows(search), self._show, self._app.fail)

    def _show(self, rows: list[SessionRow]) -> None:
        self._app.main.sessions.show(rows, self._app.dialogue.conversation.id)

    def name(self) -> None:
        """Put the chat's title and the model's name into the frame of the conversation."""
        loaded, loading = self._app.observed.loaded, self._app.observed.loading
        model = f"{loaded.name} {format_of(loaded)}" if loaded else "loading" if loading else ""
        self._app.main.conversation.name_chat(self._app.dialogue.conversation.title, model)

    def rename(self, id: str, title: str) -> None:
        """Give a chat another title."""
        if id == self._app.dialogue.conversation.id:
            self._app.dialogue.conversation.title = title
        self._app.work_aside(lambda: self._app.parts.records.rename(id, title), lambda _: self.refresh(), self._app.fail)

    def delete(self, id: str) -> None:
        """Take a chat out of the list; ``undelete`` brings it back."""
        if self._app.dialogue.writes(id):
            self._app.tell("A reply is being written in this chat.", "Esc stops it.")
            return

        def gone(title: str) -> None:
            self._app.tell(f"Deleted {title or 'the chat'}.", "U brings it back.")
            if id == self._app.dialogue.conversation.id:
                self._app.dialogue.forget()
            self.refresh()

        self._app.work_aside(lambda: self._app.parts.records.delete(id), gone, self._app.fail)

    def undelete(self) -> None:
        """Bring back the chat that was deleted last."""

        def back(title: str | None) -> None:
            self._app.tell("There is nothing to bring back." if title is None else f"{title or 'The chat'} is back.")
            self.refresh()

        self._app.work_aside(self._app.parts.records.undelete, back, self._app.fail)


def format_of(loaded: Loaded) -> str:
    """The weight format in two words at most: ``f16``, ``exl2 4.0``."""
    return f"{loaded.format} {loaded.bits_per_weight:.1f}" if loaded.format in ("exl2", "gptq") else loaded.format
