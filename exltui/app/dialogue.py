"""From what a person sends to the reply that is kept: the chat on the screen, its jobs and its saving. No widgets.

Everything here runs on the screen's thread and takes no time. What does take time (the database, the template, the tokenizer) goes
through ``work``, which runs it elsewhere and comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Protocol

from exltui import protocol
from exltui.app import figures
from exltui.app.observed import Observed
from exltui.app.prepare import Order, Prepared, Preparer
from exltui.app.records import Records
from exltui.app.revision import Revision
from exltui.app.transcript import Entry
from exltui.chat.thinking import ThoughtStream
from exltui.chat.tree import Conversation, Message, new_id
from exltui.client import EngineLink
from exltui.errors import ContextError, ExltuiError
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
    def thought(self, id: str, label: str) -> None: ...
    def prompt_text(self) -> str: ...
    def put_prompt(self, text: str) -> None: ...
    def chats_changed(self) -> None: ...
    def want_model(self) -> None: ...


@dataclass(frozen=True)
class Variant:
    """What one of several replies is written with. ``adapters``: (name, scale), None: all that are loaded; ``system``: None: the chat's."""

    name: str
    sampling: Sampling
    adapters: tuple[tuple[str, float], ...] | None = None
    system: str | None = None


@dataclass
class Writing:
    """A reply that is being written, on the screen or not."""

    conversation: Conversation
    reply: str
    job: str
    variant: Variant
    limit: int | None = None  # tokens; None: what the settings say
    submitted: bool = False
    cancelled: bool = False
    stream: ThoughtStream = field(default_factory=ThoughtStream)
    thought_tokens: int = 0
    began: float | None = None  # when its first text came


class Dialogue:
    """The chat on the screen and all replies that are being written.

    ``sampling`` is what the next reply uses, ``start`` what it begins with.
    """

    def __init__(
        self, client: EngineLink, observed: Observed, view: View, records: Records, work: Work, preparer: Preparer | None = None
    ) -> None:
        self._client = client
        self._observed = observed
        self.view = view
        self.records = records
        self._work = work
        self._preparer = preparer or Preparer()
        self._noted: set[str] = set()  # what was said already about templates
        self._writings: dict[str, Writing] = {}  # by job
        self._waiting: list[Writing] = []  # for a model
        self._dropped: dict[str, int] = {}  # chat -> messages that the last prompt left out
        self.conversation = records.new_chat()
        self.sampling = Sampling()
        self.max_new_tokens: int | None = None
        self.start = ""
        self.system = ""  # of a new chat
        self.you = ""  # what the person is called
        self.keeping = False  # whether a GPU is to keep logits too, which costs it the head start of its next step
        self.jobs: dict[str, list[str]] = {}  # what the engine keeps the logits of, by message
        self.revision = Revision(self)

    # ── what is on the screen ────────────────────────────────────────────────────────────────────────────────────────────────────

    def entries(self) -> list[Entry]:
        """The chat's branch that is read, as the transcript takes it."""
        return [self.entry(message) for message in self.conversation.path()]

    @property
    def writing(self) -> Writing | None:
        """The reply of this chat that is being written, or the first of several."""
        return next((w for w in self._all_writings() if w.conversation is self.conversation), None)

    @property
    def failed(self) -> bool:
        """Whether the last reply of this chat failed."""
        head = self.conversation.head
        return head is not None and self.conversation[head].state == "failed"

    def may_change(self) -> bool:
        """Whether this chat can be changed; if not, because a reply is being written, the person is told."""
        if self.writing is not None:
            self.view.tell("A reply is being written.", "Esc stops it.")
        return self.writing is None

    @property
    def busy(self) -> bool:
        """Whether any reply is being written or waits for the model."""
        return bool(self._writings or self._waiting)

    def _all_writings(self) -> list[Writing]:
        return [*self._writings.values(), *self._waiting]

    def entry(self, message: Message) -> Entry:
        mine = message.role == "user"
        versions = self.conversation.siblings(message.id)
        place = f"◂ {versions.index(message) + 1}/{len(versions)} ▸" if len(versions) > 1 else ""
        fate = "pinned" if message.pinned else "not sent" if message.dropped else ""
        meta = "   ".join(part for part in (fate, place, "" if mine else reply_figures(message)) if part)
        name = self.you or "you" if mine else self.conversation.options.get("character") or message.model or message.role
        return Entry(message.id, message.role, name, message.text, meta, message.state, message.note, thought_figures(message))

    def show(self) -> None:
        self.view.show(self.entries(), [m.text for m in self.conversation.path() if m.role == "user"])

    # ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def new_chat(self) -> None:
        """An empty chat. One that is empty already stays."""
        self.revision.leave()
        if len(self.conversation):
            self.conversation = self._empty()
            self._observed.forget_figures()
            self.view.put_prompt("")
        self.show()
        self.view.chats_changed()

    def open(self, id: str, *, keep_prompt: bool = False) -> None:
        """Show the chat ``id``. One whose reply is being written is taken as it is, not from the disk.

        With ``keep_prompt`` what stands in the prompt stays there; otherwise the chat's own draft takes its place.
        """
        live = next((w.conversation for w in self._all_writings() if w.conversation.id == id), None)
        if live is not None:
            self._opened((live, ""), keep_prompt)
        elif id != self.conversation.id:
            self._work(lambda: self.records.load(id), lambda found: self._opened(found, keep_prompt), self._failed)

    def _opened(self, found: tuple[Conversation, str], keep_prompt: bool) -> None:
        self.revision.leave()
        self.conversation, draft = found
        if not keep_prompt:
            self.view.put_prompt(draft)
        self._observed.forget_figures()
        self.show()
        self.view.chats_changed()

    def writes(self, id: str) -> bool:
        """Whether a reply is being written in the chat ``id``."""
        return any(writing.conversation.id == id for writing in self._all_writings())

    def forget(self) -> None:
        """The chat on the screen was deleted: an empty one takes its place."""
        self.conversation = self._empty()
        self._observed.forget_figures()
        self.show()

    def _empty(self) -> Conversation:
        conversation = self.records.new_chat()
        conversation.system = self.system
        return conversation

    def _failed(self, error: ExltuiError) -> None:
        self.view.tell(str(error), error.hint, error=True)

    def keep_draft(self, text: str) -> None:
        """What stands in the prompt now; it is there again when the chat is."""
        if not self.revision.what and (text or len(self.conversation)):
            self.records.save_draft(self.conversation, text)

    def take_character(self, name: str, system: str, greeting: str, options: dict[str, str]) -> None:
        """Have this chat's next replies be this character's; ``greeting`` begins it if nothing else has. ``options`` as the chat's."""
        conversation = self.conversation
        conversation.system = system
        conversation.options.update({**options, "character": name})
        if not name:
            del conversation.options["character"]
        if greeting and not len(conversation):
            self.records.save(conversation, conversation.add("assistant", greeting))
        self.records.save(conversation)
        self.show()
        self.view.chats_changed()

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, text: str) -> None:
        """A message of the person: it is saved, shown, and answered."""
        if self.revision.what:
            self.revision.take(text)
        elif not text.strip():
            return
        elif not self.may_change():
            self.view.put_prompt(text)
        else:
            message = self.conversation.add("user", text)
            self.records.save(self.conversation, message)
            self.view.add(self.entry(message))
            self.reply_to(message.id)

    def regenerate(self, id: str | None) -> None:
        """Have the reply ``id``, or the one to the message ``id``, written again beside the old one."""
        id = id or self.conversation.head
        if id is not None and id in self.conversation and self._answers(id) and self.may_change():
            self.reply_to(id)

    def go_on(self, limit: int | None = None) -> None:
        """Have the last reply continued where it ends, by ``limit`` tokens if given, or a message without a reply answered."""
        head = self.conversation.head
        if head is None or not self._answers(head) or not self.may_change():
            return
        if self.conversation[head].role == "user":
            self.reply_to(head)
            return
        reply = self.conversation.resume(head)
        self.records.save(self.conversation, reply)
        self.show()
        self._start(Writing(self.conversation, reply.id, new_id(), Variant("", self.sampling), limit))

    def candidates(self, id: str | None, variants: Sequence[Variant]) -> list[str]:
        """Have several replies written at once, all of them versions; their ids. None of them if something stands against it."""
        id = id or self.conversation.head
        if id is None or id not in self.conversation or not self._answers(id) or not self.may_change():
            return []
        parent = self.conversation[id].parent if self.conversation[id].role == "assistant" else id
        return [self._new_reply(parent or id, variant) for variant in variants]

    def _answers(self, id: str) -> bool:
        """Whether there is something to answer in the place of message ``id``; the first message of a character answers nothing."""
        answers = self.conversation[id].role == "user" or self.conversation[id].parent is not None
        if not answers:
            self.view.tell("The chat begins with this message; it answers nothing.", "E changes it.")
        return answers

    def reply_to(self, id: str) -> None:
        """Have the message ``id`` answered, or the reply ``id`` written again."""
        self._new_reply(id, Variant("", self.sampling))

    def _new_reply(self, id: str, variant: Variant) -> str:
        conversation = self.conversation
        loaded, loading = self._observed.loaded, self._observed.loading
        conversation.model = loaded.name if loaded else PurePath(loading.model_dir).name if loading else ""
        reply = conversation.regenerate(id, model=conversation.model, sampling=variant.sampling)
        if self.start:
            reply = conversation.append_text(reply.id, self.start)
            self.start = ""
        self.records.save(conversation, reply)
        if len(conversation.siblings(reply.id)) > 1:
            self.show()
        else:
            self.view.add(self.entry(reply))
        self._start(Writing(conversation, reply.id, new_id(), variant))
        return reply.id

    def _start(self, writing: Writing) -> None:
        """Send a reply on its way, or have it wait for a model."""
        self.view.chats_changed()
        loaded = self._observed.loaded
        if loaded is not None:
            self._order(writing, loaded)
            return
        self._waiting.append(writing)
        if self._observed.loading is not None:
            self.view.tell(WAITING)
        else:
            self.view.want_model()

    def order(self, conversation: Conversation, leaf: str | None, loaded: protocol.Loaded, system: str | None = None) -> Order:
        """What the path to ``leaf`` makes of a prompt for this model, with another ``system`` prompt than the chat's if given."""
        turns = tuple(conversation.turns(leaf, system)) if leaf is not None or conversation.system else ()
        options = dict(conversation.options)
        return Order(new_id(), turns, loaded.model_dir, loaded.context, self.sampling, self.max_new_tokens, options=options)

    def _order(self, writing: Writing, loaded: protocol.Loaded) -> None:
        self._writings[writing.job] = writing
        conversation = writing.conversation
        variant = writing.variant
        loras = [(name, each.scale) for name, each in self._observed.adapters.items()] if variant.adapters is None else variant.adapters
        acting = ", ".join(f"{name}:{scale:g}" for name, scale in loras if scale)
        reply = conversation[writing.reply]
        if variant.name or not reply.asked:  # one that is continued stays what it was
            reply = conversation.note_asked(reply.id, variant.name, acting, variant.system or "")
        order = self.order(conversation, reply.parent, loaded, variant.system)
        order = replace(order, job=writing.job, sampling=variant.sampling, adapters=variant.adapters, start=reply.text)
        order = replace(order, max_new_tokens=writing.limit or order.max_new_tokens)
        order = replace(order, keep=self.keeping or loaded.device == "cpu", session=conversation.id)
        writing.stream.feed(reply.text)
        self._work(
            lambda: self._preparer.prepare(order),
            lambda prepared: self._submit(writing, prepared),
            lambda error: self._end(writing, "failed", note=f"{error}\n{way_out(error)}".strip()),
        )

    def _submit(self, writing: Writing, prepared: Prepared) -> None:
        if writing.cancelled:
            self._end(writing, "stopped")
            return
        if prepared.dropped and self._dropped.get(writing.conversation.id) != prepared.dropped:
            self._dropped[writing.conversation.id] = prepared.dropped
            self.view.tell(f"The chat is longer than the context: its first {prepared.dropped} messages were left out of this prompt.")
        if prepared.note and prepared.note not in self._noted:
            self._noted.add(prepared.note)
            self.view.tell(prepared.note)
        if prepared.opening:
            self._grow(writing, prepared.opening, 0)
        writing.submitted = True
        if prepared.job.keep:
            self.jobs.setdefault(writing.reply, []).append(writing.job)
        command = protocol.Submit(prepared.job)
        self._observed.sent(command)
        self._client.send(command)

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> bool:
        """Stop the reply of this chat; False if none is being written."""
        mine = [writing for writing in self._all_writings() if writing.conversation is self.conversation]
        for writing in mine:
            writing.cancelled = True
            if writing in self._waiting:
                self._waiting.remove(writing)
                self._end(writing, "stopped")
            elif writing.submitted:
                self._client.send(protocol.Cancel(writing.job))
        return bool(mine)

    def close(self) -> None:
        """Leave: keep what there is of every reply."""
        for writing in self._all_writings():
            self._client.send(protocol.Cancel(writing.job))
            self.records.save(writing.conversation, writing.conversation.finish(writing.reply, "stopped"))
        self._writings.clear()
        self._waiting.clear()

    # ── events of the engine ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those that are not about a reply or a model pass by."""
        if isinstance(event, protocol.Loaded):
            waiting, self._waiting = self._waiting, []
            for writing in waiting:
                self._order(writing, event)
        elif isinstance(event, protocol.PagesFailed):
            self.view.tell(f"{event.error[:1].upper()}{event.error[1:]}.", event.hint)
        elif isinstance(event, (protocol.Text, protocol.Done, protocol.Failed)) and event.id in self._writings:
            self._job_event(self._writings[event.id], event)

    def _job_event(self, writing: Writing, event: protocol.Text | protocol.Done | protocol.Failed) -> None:
        if isinstance(event, protocol.Text):
            self._grow(writing, event.text, event.tokens)
        elif isinstance(event, protocol.Done):
            reason = event.stats.stop_reason
            note = "The context is full: the reply ends here." if reason == "context_full" else ""
            self._end(writing, "stopped" if reason == "cancelled" else "done", event.stats, note)
        else:
            self._end(writing, "failed", note=f"{event.error}\n{event.hint}".strip())

    def _grow(self, writing: Writing, text: str, tokens: int) -> None:
        """Text has come: save and show it, and count what of it is thought."""
        conversation, here = writing.conversation, writing.conversation is self.conversation
        now = self._observed.clock()
        writing.began = now if writing.began is None else writing.began
        before = writing.stream.thinking
        writing.stream.feed(text)
        if before or writing.stream.thinking:
            writing.thought_tokens += tokens
            conversation.note_thought(writing.reply, writing.thought_tokens, now - writing.began)
        self.records.save(conversation, conversation.append_text(writing.reply, text))
        if here:
            self.view.feed(writing.reply, text)
            if writing.stream.thinks:
                self.view.thought(writing.reply, thought_figures(conversation[writing.reply]))

    def _end(self, writing: Writing, state: Any, stats: protocol.Stats | None = None, note: str = "") -> None:
        self._writings.pop(writing.job, None)
        message = writing.conversation.finish(writing.reply, state, stats=stats, note=note)
        self.records.save(writing.conversation, message)
        if writing.conversation is self.conversation:
            self.view.finish(self.entry(message))
        self.view.chats_changed()


def way_out(error: ExltuiError) -> str:
    """What a person can do about it, by the keys."""
    if isinstance(error, ContextError):
        return "/edit changes the message, /delete takes it out, F6 shows what fills the context, Ctrl+L loads the model with a longer one"
    return error.hint


def reply_figures(message: Message) -> str:
    """What stands beside a finished reply: tokens, time and speed."""
    stats = message.stats
    if stats is None:
        return ""
    parts = [f"{figures.count(stats.new_tokens)} tok", figures.duration(stats.decode_seconds)]
    if stats.decode_seconds > 0 and stats.new_tokens > 1:
        parts.append(f"{figures.rate(stats.new_tokens / stats.decode_seconds)}/s")
    return " · ".join(parts)


def thought_figures(message: Message) -> str:
    """How long a reply thought, as far as it is known."""
    if not message.thought_tokens:
        return ""
    return f"{figures.count(message.thought_tokens)} tokens, {figures.duration(message.thought_seconds)}"
