"""The list of chats: what is in it, and what the keys of its pane and the commands do to a chat."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui.app.panes.sessions import SessionRow
from exltui.chat.export import WRITERS, from_json
from exltui.chat.tree import TITLE_LENGTH, Conversation, title_of
from exltui.errors import ExltuiError, StoreError
from exltui.protocol import Loaded
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

TITLE = "Give the conversation above a title of two to six words. Answer with the title alone."
TITLE_TOKENS = 20
TALK = ("here is", "here's", "here’s", "sure", "a title", "the title")  # how a small model begins to talk about the title


class ChatDesk:
    """Reads and changes the list of chats beside the screen's thread, and keeps the pane and the frame's title up to date."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._titled: set[str] = set()  # chats whose title was asked for, or given by the person

    def refresh(self) -> None:
        """Show the newest list of chats, and the name of this one."""
        self.name()
        self._app.context.changed()
        if not self._app.chats_open:  # they are shown once they are
            return
        search = self._app.main.sessions.searched
        self._app.work_aside(lambda: self._app.parts.records.rows(search), self._show, self._app.fail)

    def _show(self, rows: list[SessionRow]) -> None:
        self._app.main.sessions.show(rows, self._app.dialogue.conversation.id)

    def name(self) -> None:
        """Put the chat's title and the model's name into the frame of the conversation."""
        loaded, loading = self._app.observed.loaded, self._app.observed.loading
        model = f"{loaded.name} {format_of(loaded)}" if loaded else "loading" if loading else ""
        self._app.main.conversation.name_chat(self._app.dialogue.conversation.title, model)

    # ── the chat under the cursor ────────────────────────────────────────────────────────────────────────────────────────────────

    def act(self, what: str) -> None:
        """Do what a key of the list asks for."""
        row = self._app.main.sessions.chosen
        if what == "new":
            self._app.new_chat()
        elif what == "undo":
            self._undelete()
        elif row is None:
            self._app.tell("There is no chat here.")
        elif what == "delete":
            self._delete(row.id)
        elif what == "duplicate":
            self._copy(row.id)
        elif what == "tags":
            self._app.looks.ask("Tags, with blanks between them", lambda text: self._mark(row, tags=_tags(text)), row.tags, empty=True)
        else:
            self._mark(row, **{what: not getattr(row, what)})

    def _mark(self, row: SessionRow, **changes: Any) -> None:
        changed = dataclasses.replace(row, **changes)
        self._app.work_aside(lambda: self._app.parts.records.set_marks(changed), lambda _: self.refresh(), self._app.fail)

    def rename(self, id: str, title: str) -> None:
        """Give a chat another title."""
        self._titled.add(id)
        if id == self._app.dialogue.conversation.id:
            self._app.dialogue.conversation.title = title
            self._app.parts.records.save(self._app.dialogue.conversation)
        self._app.work_aside(lambda: self._app.parts.records.rename(id, title), lambda _: self.refresh(), self._app.fail)

    def _delete(self, id: str) -> None:
        """Take a chat out of the list; ``_undelete`` brings it back."""
        if self._app.dialogue.writes(id):
            self._app.tell("A reply is being written in this chat.", "Esc stops it.")
            return

        def gone(title: str) -> None:
            self._app.tell(f"Deleted {title or 'the chat'}.", "U brings it back.")
            if id == self._app.dialogue.conversation.id:
                self._app.dialogue.forget()
            self.refresh()

        self._app.work_aside(lambda: self._app.parts.records.delete(id), gone, self._app.fail)

    def _undelete(self) -> None:
        """Bring back the chat that was deleted last."""

        def back(title: str | None) -> None:
            self._app.tell("There is nothing to bring back." if title is None else f"{title or 'The chat'} is back.")
            self.refresh()

        self._app.work_aside(self._app.parts.records.undelete, back, self._app.fail)

    # ── this chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def retitle(self, title: str) -> None:
        """Another title for the chat on the screen."""
        conversation = self._app.dialogue.conversation
        if title:
            self.rename(conversation.id, title)
        else:
            self._app.looks.ask("Title of this chat", lambda text: self.rename(conversation.id, text), conversation.title)

    def duplicate(self) -> None:
        """Copy the chat on the screen and open the copy."""
        if len(self._app.dialogue.conversation):
            self._copy(self._app.dialogue.conversation.id)
        else:
            self._app.tell("There is no message yet.")

    def _copy(self, id: str) -> None:
        self._app.work_aside(lambda: self._app.parts.records.duplicate(id), self._take_in, self._app.fail)

    def _take_in(self, conversation: Conversation) -> None:
        self._titled.add(conversation.id)
        self._app.dialogue.open(conversation.id)
        self._app.tell(f"Opened {one_line(conversation.title, 60) or 'the chat'}.")

    def export(self, name: str) -> None:
        """Write the chat on the screen to a file; its ending says how."""
        conversation = self._app.dialogue.conversation
        if not len(conversation):
            self._app.tell("There is no message to export yet.")
            return

        def write_to(answer: str) -> None:
            path = Path(answer).expanduser()
            self._app.work_aside(
                lambda: write_chat(conversation, path), lambda size: self._app.tell(f"Wrote {path}, {size:,} bytes."), self._app.fail
            )

        if name:
            write_to(name)
        else:
            proposal = re.sub(r"[^\w-]+", "-", conversation.title).strip("-").lower() or "chat"
            self._app.looks.ask("Write this chat to a file (.md, .html, .json)", write_to, f"{proposal}.md")

    def import_file(self, name: str) -> None:
        """Read an exported chat."""
        if not name:
            self._app.looks.ask("File of an exported chat (.json)", self.import_file)
            return
        path = Path(name).expanduser()
        self._app.work_aside(lambda: self._app.parts.records.take_in(read_chat(path)), self._take_in, self._app.fail)

    # ── titles by the model ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def title_when_idle(self) -> None:
        """Ask the model for a title of the chat on the screen, once, after its first reply, while nothing else is going on."""
        app, conversation = self._app, self._app.dialogue.conversation
        path = conversation.path()
        ready = app.parts.titles and app.observed.loaded is not None and not app.dialogue.busy and not app.errands.busy
        if not ready or conversation.id in self._titled or len(path) < 2 or path[1].state != "done" or not path[1].text:
            return
        self._titled.add(conversation.id)
        if conversation.title != title_of(path[0].text) or len(path) > 4:  # it has got one, from the person or an earlier run
            return
        order = app.dialogue.order(conversation, path[1].id, app.observed.loaded)  # type: ignore[arg-type]
        order = dataclasses.replace(order, max_new_tokens=TITLE_TOKENS)

        def take(text: str) -> None:
            title = clean_title(text)
            if title and conversation.title == title_of(path[0].text):
                self._titled.add(conversation.id)
                conversation.title = title
                app.parts.records.save(conversation)
                self.refresh()

        app.errands.ask(order, TITLE, take, lambda error: None)


def clean_title(text: str) -> str:
    """What a model wrote as a title, if it is one: a few words on one line, without quotation marks. Else ""."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    title = one_line(lines[0]).strip("\"'“”«»*#. ").removeprefix("Title:").strip("\"'“”* ") if lines else ""
    sounds = len(title) <= TITLE_LENGTH and len(title.split()) <= 8 and not title.endswith(":") and not title.lower().startswith(TALK)
    return title if sounds else ""


def write_chat(conversation: Conversation, path: Path) -> int:
    """Write a chat in the form that the file's ending names; its size in bytes. Raises StoreError."""
    writer = WRITERS.get(path.suffix.lstrip(".").lower())
    if writer is None:
        raise StoreError(f"{path.name} does not say how to write it.", f"End its name in .{', .'.join(WRITERS)}.")
    text = writer(conversation)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}", "Choose another folder.") from error
    return len(text.encode("utf-8"))


def read_chat(path: Path) -> Conversation:
    """The chat in an exported file. Raises ExltuiError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}", "Choose a .json file that exltui has exported.") from error
    try:
        return from_json(text)
    except ExltuiError as error:
        raise StoreError(f"{path.name}: {error}", error.hint) from error


def _tags(text: str) -> str:
    """Tags as they are kept: without the number sign, each once."""
    return " ".join(dict.fromkeys(tag.lstrip("#") for tag in text.split() if tag.lstrip("#")))


def format_of(loaded: Loaded) -> str:
    """The weight format in two words at most: ``f16``, ``exl2 4.0``."""
    return f"{loaded.format} {loaded.bits_per_weight:.1f}" if loaded.format in ("exl2", "gptq") else loaded.format
