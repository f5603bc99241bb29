"""The dialogue's view of the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exltui.app.transcript import Entry

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp
    from exltui.app.screens.candidates import CandidatesScreen


class ScreenView:
    """Puts what the dialogue says into the transcript, the prompt and the notices of the main screen."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self.columns: CandidatesScreen | None = None  # replies that are shown side by side

    def show(self, entries: list[Entry], history: list[str]) -> None:
        self._app.main.talk.show(entries)
        self._app.main.prompt.set_history(history)

    def add(self, entry: Entry) -> None:
        self._app.main.talk.add(entry)

    def feed(self, id: str, text: str) -> None:
        self._app.main.talk.feed(id, text)
        if self.columns is not None:
            self.columns.feed(id, text)

    def finish(self, entry: Entry) -> None:
        self._app.main.talk.set_thought(entry.id, entry.thought)
        self._app.main.talk.finish(entry.id, entry.meta, entry.state, entry.hint)
        if self.columns is not None:
            self.columns.finish(entry)

    def tell(self, text: str, hint: str = "", *, error: bool = False) -> None:
        self._app.tell(text, hint, error=error)

    def thought(self, id: str, label: str) -> None:
        self._app.main.talk.set_thought(id, label)

    def prompt_text(self) -> str:
        return self._app.main.prompt.full_text

    def put_prompt(self, text: str) -> None:
        self._app.main.prompt.put(text)

    def chats_changed(self) -> None:
        self._app.chats.refresh()

    def want_model(self) -> None:
        self._app.tell("No model is loaded.", "Choose one; the reply starts when it is ready.")
        self._app.desk.open()
