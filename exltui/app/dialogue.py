"""From what a person sends to the reply that is kept: the chat on the screen, its jobs and its saving. No widgets.

Everything here runs on the screen's thread and takes no time. What does take time (the database, the template, the tokenizer) goes
through ``work``, which runs it elsewhere and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

from exltui import protocol
from exltui.app import figures
from exltui.app.observed import Observed
from exltui.app.prepare import Order, Prepared, Preparer
from exltui.app.records import Records
from exltui.app.transcript import Entry
from exltui.chat.tree import Conversation, Message, new_id
from exltui.client import EngineLink
from exltui.errors import ExltuiError
from exltui.protocol import Sampling

Work = Callable[[Callable[[], Any], Callable[[Any], None], Callable[[ExltuiError], None]], None]
WAITING = "The model is not ready yet; the reply starts as soon as it is."


class View(Protocol):
    """What the dialogue asks of the screen."""

    def show(self, entries: list[Entry], history: list[str]) -> None: ...
    def add(self, entry: Entry) -> None: ...
    def feed(self, id: str, text: str) -> None: ...
    def finish(self, entry: Entry) -> None: ...
    def tell(self, text: str, hint: str = "", *, error: bool = False) -> None: ...
    def put_prompt(self, text: str) -> None: ...
    def chats_changed(self) -> None: ...
    def want_model(self) -> None: ...


@dataclass
class Writing:
    """A reply that is being written, on the screen or not."""

    conversation: Conversation
    reply: str
    job: str
    submitted: bool = False
    cancelled: bool = False


class Dialogue:
    """The chat on the screen and all replies that are being written. ``sampling`` is what the next reply uses."""

    def __init__(
        self, client: EngineLink, observed: Observed, view: View, records: Records, work: Work, preparer: Preparer | None = None
    ) -> None:
        self._client = client
        self._observed = observed
        self._view = view
        self._records = records
        self._work = work
        self._preparer = preparer or Preparer()
        self._noted: set[str] = set()  # what was said already about templates
        self._writings: dict[str, Writing] = {}  # by job
        self._waiting: list[Writing] = []  # for a model
        self._editing: str | None = None
        self._dropped: dict[str, int] = {}  # chat -> messages that the last prompt left out
        self.conversation = records.new_chat()
        self.sampling = Sampling()
        self.max_new_tokens: int | None = None

    # ── what is on the screen ────────────────────────────────────────────────────────────────────────────────────────────────────

    def entries(self) -> list[Entry]:
        """The chat's branch that is read, as the transcript takes it."""
        return [self._entry(message) for message in self.conversation.path()]

    @property
    def writing(self) -> Writing | None:
        """The reply of this chat that is being written."""
        return next((w for w in self._all_writings() if w.conversation is self.conversation), None)

    @property
    def busy(self) -> bool:
        """Whether any reply is being written or waits for the model."""
        return bool(self._writings or self._waiting)

    def _all_writings(self) -> list[Writing]:
        return [*self._writings.values(), *self._waiting]

    def _entry(self, message: Message) -> Entry:
        mine = message.role == "user"
        versions = self.conversation.siblings(message.id)
        place = f"◂ {versions.index(message) + 1}/{len(versions)} ▸" if len(versions) > 1 else ""
        meta = "   ".join(part for part in (place, "" if mine else reply_figures(message)) if part)
        name = "you" if mine else message.model or message.role
        return Entry(message.id, message.role, name, message.text, meta, message.state, message.note)

    def _show(self) -> None:
        self._view.show(self.entries(), [m.text for m in self.conversation.path() if m.role == "user"])

    # ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def new_chat(self) -> None:
        """An empty chat. One that is empty already stays."""
        self._editing = None
        if len(self.conversation):
            self.conversation = self._records.new_chat()
            self._observed.forget_figures()
            self._view.put_prompt("")
        self._show()
        self._view.chats_changed()

    def open(self, id: str, *, keep_prompt: bool = False) -> None:
        """Show the chat ``id``. One whose reply is being written is taken as it is, not from the disk.

        With ``keep_prompt`` what stands in the prompt stays there; otherwise the chat's own draft takes its place.
        """
        live = next((w.conversation for w in self._all_writings() if w.conversation.id == id), None)
        if live is not None:
            self._opened((live, ""), keep_prompt)
        elif id != self.conversation.id:
            self._work(lambda: self._records.load(id), lambda found: self._opened(found, keep_prompt), self._failed)

    def _opened(self, found: tuple[Conversation, str], keep_prompt: bool) -> None:
        self._editing = None
        self.conversation, draft = found
        if not keep_prompt:
            self._view.put_prompt(draft)
        self._observed.forget_figures()
        self._show()
        self._view.chats_changed()

    def writes(self, id: str) -> bool:
        """Whether a reply is being written in the chat ``id``."""
        return any(writing.conversation.id == id for writing in self._all_writings())

    def forget(self) -> None:
        """The chat on the screen was deleted: an empty one takes its place."""
        self.conversation = self._records.new_chat()
        self._observed.forget_figures()
        self._show()

    def _failed(self, error: ExltuiError) -> None:
        self._view.tell(str(error), error.hint, error=True)

    def keep_draft(self, text: str) -> None:
        """What stands in the prompt now; it is there again when the chat is."""
        if self._editing is None and (text or len(self.conversation)):
            self._records.save_draft(self.conversation, text)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, text: str) -> None:
        """A message of the person: it is saved, shown, and answered."""
        if not text.strip():
            return
        if self.writing is not None:
            self._view.put_prompt(text)
            self._view.tell("A reply is being written.", "Esc stops it.")
            return
        conversation = self.conversation
        if self._editing is not None and self._editing in conversation:
            message = conversation.edit(self._editing, text)
            self._editing = None
            self._records.save(conversation, message)
            self._show()
        else:
            message = conversation.add("user", text)
            self._records.save(conversation, message)
            self._view.add(self._entry(message))
        self._reply_to(message.id)

    def regenerate(self, id: str | None) -> None:
        """Have the reply ``id``, or the one to the message ``id``, written again beside the old one."""
        id = id or self.conversation.head
        if id is None or id not in self.conversation:
            return
        if self.writing is not None:
            self._view.tell("A reply is being written.", "Esc stops it.")
            return
        self._reply_to(id)

    def _reply_to(self, id: str) -> None:
        conversation = self.conversation
        loaded, loading = self._observed.loaded, self._observed.loading
        conversation.model = loaded.name if loaded else PurePath(loading.model_dir).name if loading else ""
        reply = conversation.regenerate(id, model=conversation.model, sampling=self.sampling)
        self._records.save(conversation, reply)
        if len(conversation.siblings(reply.id)) > 1:
            self._show()
        else:
            self._view.add(self._entry(reply))
        writing = Writing(conversation, reply.id, new_id())
        self._view.chats_changed()
        if loaded is None:
            self._waiting.append(writing)
            if self._observed.loading is not None:
                self._view.tell(WAITING)
            else:
                self._view.want_model()
        else:
            self._order(writing, loaded)

    def _order(self, writing: Writing, loaded: protocol.Loaded) -> None:
        self._writings[writing.job] = writing
        conversation = writing.conversation
        parent = conversation[writing.reply].parent
        turns = tuple(conversation.turns(parent))
        order = Order(writing.job, turns, loaded.model_dir, loaded.context, self.sampling, self.max_new_tokens)
        self._work(
            lambda: self._preparer.prepare(order),
            lambda prepared: self._submit(writing, prepared),
            lambda error: self._end(writing, "failed", note=" ".join(part for part in (str(error), error.hint) if part)),
        )

    def _submit(self, writing: Writing, prepared: Prepared) -> None:
        if writing.cancelled:
            self._end(writing, "stopped")
            return
        if prepared.dropped and self._dropped.get(writing.conversation.id) != prepared.dropped:
            self._dropped[writing.conversation.id] = prepared.dropped
            self._view.tell(f"The chat is longer than the context: its first {prepared.dropped} messages were left out of this prompt.")
        if prepared.note and prepared.note not in self._noted:
            self._noted.add(prepared.note)
            self._view.tell(prepared.note)
        writing.submitted = True
        command = protocol.Submit(prepared.job)
        self._observed.sent(command)
        self._client.send(command)

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> bool:
        """Stop the reply of this chat; False if none is being written."""
        writing = self.writing
        if writing is None:
            return False
        writing.cancelled = True
        if writing in self._waiting:
            self._waiting.remove(writing)
            self._end(writing, "stopped")
        elif writing.submitted:
            self._client.send(protocol.Cancel(writing.job))
        return True

    def close(self) -> None:
        """Leave: keep what there is of every reply."""
        for writing in self._all_writings():
            self._client.send(protocol.Cancel(writing.job))
            self._records.save(writing.conversation, writing.conversation.finish(writing.reply, "stopped"))
        self._writings.clear()
        self._waiting.clear()

    # ── events of the engine ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those that are not about a reply or a model pass by."""
        if isinstance(event, protocol.Loaded):
            waiting, self._waiting = self._waiting, []
            for writing in waiting:
                self._order(writing, event)
        elif isinstance(event, (protocol.Text, protocol.Done, protocol.Failed)) and event.id in self._writings:
            self._job_event(self._writings[event.id], event)

    def _job_event(self, writing: Writing, event: protocol.Text | protocol.Done | protocol.Failed) -> None:
        if isinstance(event, protocol.Text):
            self._records.save(writing.conversation, writing.conversation.append_text(writing.reply, event.text))
            if writing.conversation is self.conversation:
                self._view.feed(writing.reply, event.text)
        elif isinstance(event, protocol.Done):
            reason = event.stats.stop_reason
            note = "The context is full: the reply ends here." if reason == "context_full" else ""
            self._end(writing, "stopped" if reason == "cancelled" else "done", event.stats, note)
        else:
            self._end(writing, "failed", note=" ".join(part for part in (event.error, event.hint) if part))

    def _end(self, writing: Writing, state: Any, stats: protocol.Stats | None = None, note: str = "") -> None:
        self._writings.pop(writing.job, None)
        message = writing.conversation.finish(writing.reply, state, stats=stats, note=note)
        self._records.save(writing.conversation, message)
        if writing.conversation is self.conversation:
            self._view.finish(self._entry(message))
        self._view.chats_changed()

    # ── branches ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def edit(self, id: str | None) -> None:
        """Put the message into the prompt; what is sent next becomes another version of it. Without ``id``: the last of the person."""
        path = [message for message in self.conversation.path() if message.role == "user"]
        chosen = next((message for message in path if message.id == id), path[-1] if path and id is None else None)
        if chosen is None:
            self._view.tell("Only your own messages can be edited.")
            return
        self._editing = chosen.id
        self._view.put_prompt(chosen.text)

    @property
    def editing(self) -> bool:
        """Whether what is sent next replaces a message."""
        return self._editing is not None

    def stop_editing(self) -> None:
        """The next message is a new one again."""
        self._editing = None

    def step_sibling(self, id: str | None, step: int) -> str | None:
        """Show the version before or after that of message ``id`` (without it: the last fork). The version's id if there is one."""
        if self.writing is not None:
            return None
        path = self.conversation.path()
        forks = [message for message in path if len(self.conversation.siblings(message.id)) > 1 and id in (None, message.id)]
        if not forks:
            return None
        versions = self.conversation.siblings(forks[-1].id)
        at = versions.index(forks[-1]) + step
        if not 0 <= at < len(versions):
            return None
        self.conversation.select(versions[at].id)
        self._records.save(self.conversation)
        self._show()
        return versions[at].id

    def delete(self, id: str | None) -> None:
        """Take out a message and what follows; ``undo`` brings it back."""
        id = id or self.conversation.head
        if id is None or id not in self.conversation or self.writing is not None:
            return
        deletion = self.conversation.delete(id)
        self._records.delete_messages(self.conversation, deletion)
        self._show()
        self._view.tell(f"{len(deletion.messages)} deleted." if len(deletion.messages) > 1 else "Deleted.", "U brings it back.")

    def undo(self) -> None:
        """Bring back what was deleted last."""
        deletion = self.conversation.undo() if self.writing is None else None
        if deletion is None:
            self._view.tell("There is nothing to bring back.")
            return
        self._records.restore_messages(self.conversation, deletion)
        self._show()


def reply_figures(message: Message) -> str:
    """What stands beside a finished reply: tokens, time and speed."""
    stats = message.stats
    if stats is None:
        return ""
    parts = [f"{figures.count(stats.new_tokens)} tok", figures.duration(stats.decode_seconds)]
    if stats.decode_seconds > 0 and stats.new_tokens > 1:
        parts.append(f"{figures.rate(stats.new_tokens / stats.decode_seconds)}/s")
    return " · ".join(parts)
