"""A conversation is a tree of messages, and the one that is read is the path from a root to its head.

Nothing is ever overwritten: to edit a message or to ask for another reply makes a sibling, and the old branch stays one key away.
To delete takes a message with everything below it, and ``undo`` brings exactly that back. Messages are frozen: another thread may
keep one (the writer does) while the conversation goes on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from exltui.chat import thinking
from exltui.protocol import Sampling, Stats

Role = Literal["system", "user", "assistant"]
State = Literal["streaming", "done", "stopped", "failed"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
STATES: tuple[State, ...] = ("streaming", "done", "stopped", "failed")
TITLE_LENGTH = 48
_ROOT = ""  # the key of the first messages among the choices


def new_id() -> str:
    """A name that no other chat or message has."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``parent`` is the message that it answers, ``None`` for a first one. ``created`` is in seconds since 1970."""

    id: str
    parent: str | None
    role: Role
    text: str
    created: float
    order: int  # the how-manieth message of its conversation; siblings stand in this order
    state: State = "done"
    model: str = ""  # which model wrote it
    note: str = ""  # why it failed or stopped, in a sentence
    stats: Stats | None = None
    sampling: Sampling | None = None
    thought_tokens: int = 0  # how many tokens of it are thoughts
    thought_seconds: float = 0.0
    pinned: bool = False  # goes to the model however long the chat is
    dropped: bool = False  # does not go to the model
    asked: str = ""  # how what it was asked with differs from the chat, as the comparison called it
    adapters: str = ""  # the LoRA adapters that acted: "NAME:SCALE, …"
    system: str = ""  # the system prompt, where ``asked`` says that it was not the chat's


@dataclass(frozen=True, slots=True)
class Turn:
    """What goes to the model as one message. ``id`` is the message's own; None for the system prompt and what is not in the chat."""

    role: str
    content: str
    id: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Deletion:
    """What ``delete`` took out, and what ``undo`` needs to put it back."""

    messages: tuple[Message, ...]  # the deleted message first, then all below it
    head: str | None
    choices: dict[str, str]


@dataclass(frozen=True, slots=True)
class Header:
    """A conversation without its messages; the fields are those of ``Conversation``."""

    id: str
    title: str = ""
    system: str = ""
    model: str = ""
    created: float = 0.0
    head: str | None = None
    choices: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Conversation:
    """The tree of one chat. Not safe for several threads; what it hands out (messages, lists) is.

    ``choices`` remembers which of several siblings was read last (parent -> child, only at forks), so that going to another
    branch and back returns to the same place. ``options`` are what a person set for this chat: ``note`` (a summary that goes in with the
    system prompt), ``thoughts`` ("keep": they go to the model again), ``format``, ``thinking`` and ``tools`` for the template.
    """

    id: str = field(default_factory=new_id)
    title: str = ""
    system: str = ""  # the system prompt; not part of the tree, so that it can change without a branch
    model: str = ""  # the name of the model that the chat was last held with
    created: float = 0.0
    head: str | None = None
    choices: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    now: Callable[[], float] = field(default=time.time, repr=False, compare=False)
    _messages: dict[str, Message] = field(default_factory=dict, repr=False)
    _children: dict[str | None, list[str]] = field(default_factory=dict, repr=False)
    _deleted: list[Deletion] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.created = self.created or self.now()

    @classmethod
    def of(cls, header: Header, messages: Iterable[Message]) -> Conversation:
        """The conversation with these ``messages``, which may come in any order. Raises ValueError for one without its parent."""
        conversation = cls(header.id, header.title, header.system, header.model, header.created, header.head)
        for message in sorted(messages, key=_place):
            conversation._insert(message)
        conversation.choices, conversation.options = dict(header.choices), dict(header.options)
        if header.head not in conversation._messages:
            conversation.head = conversation._leaf(None)
        return conversation

    @property
    def header(self) -> Header:
        """All that is not a message, as it is now."""
        choices, options = tuple(self.choices.items()), tuple(self.options.items())
        return Header(self.id, self.title, self.system, self.model, self.created, self.head, choices, options)

    # ── reading ──

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        """All messages of all branches, in the order in which they were written."""
        return iter(sorted(self._messages.values(), key=_place))

    def __contains__(self, id: str) -> bool:
        return id in self._messages

    def __getitem__(self, id: str) -> Message:
        return self._messages[id]

    def path(self, leaf: str | None = None) -> list[Message]:
        """The messages from the first one to ``leaf`` (without it: to the head)."""
        path = []
        at = self.head if leaf is None else leaf
        while at is not None:
            path.append(self._messages[at])
            at = path[-1].parent
        return path[::-1]

    def siblings(self, id: str) -> list[Message]:
        """The alternatives in the place of message ``id``, itself among them, the oldest first."""
        return [self._messages[child] for child in self._children[self._messages[id].parent]]

    def children(self, id: str | None) -> list[Message]:
        """The messages that answer ``id``; of ``None``, the first ones."""
        return [self._messages[child] for child in self._children.get(id, [])]

    def leaves(self) -> list[str]:
        """The ids of the messages that end a branch, in the order in which they were written."""
        return [message.id for message in self if not self._children.get(message.id)]

    def turns(self, leaf: str | None = None, system: str | None = None) -> list[Turn]:
        """What a model is asked with: the system prompt (``system`` in its place, if given) with the note, and the path to ``leaf``.

        Replies without a word (failed ones) and dropped messages are left out, and so are thoughts unless the chat keeps them.
        """
        keep = self.options.get("thoughts") == "keep"
        own = self.system if system is None else system
        system = "\n\n".join(part for part in (own.strip() and own, self.options.get("note", "")) if part)
        turns = [Turn("system", system, pinned=True)] if system else []
        for message in self.path(leaf):
            text = message.text if keep or message.role != "assistant" else thinking.answer(message.text)
            if message.dropped or (message.role == "assistant" and not text):
                continue
            turns.append(Turn(message.role, text, message.id, message.pinned))
        return turns

    # ── writing ──

    def add(self, role: Role, text: str, *, state: State = "done", model: str = "", sampling: Sampling | None = None) -> Message:
        """Append a message after the head and make it the head. The first message of the user names an untitled chat."""
        if role == "user" and not self.title:
            self.title = title_of(text)
        message = Message(new_id(), self.head, role, _clean(text), self.now(), self._next_order(), state, model, sampling=sampling)
        return self._grow(message)

    def edit(self, id: str, text: str) -> Message:
        """A sibling of message ``id`` with another text; it is the head, and what followed the old one stays with the old one."""
        old = self._messages[id]
        return self._grow(Message(new_id(), old.parent, old.role, _clean(text), self.now(), self._next_order(), model=old.model))

    def regenerate(self, id: str, *, model: str = "", sampling: Sampling | None = None) -> Message:
        """An empty reply that streams: a sibling of the reply ``id``, or another answer to the message ``id`` of the user."""
        old = self._messages[id]
        parent = old.parent if old.role == "assistant" else old.id
        order = self._next_order()
        return self._grow(Message(new_id(), parent, "assistant", "", self.now(), order, "streaming", model, sampling=sampling))

    def resume(self, id: str) -> Message:
        """Have message ``id`` stream again, so that more text can follow what it has."""
        self._messages[id] = replace(self._messages[id], state="streaming", note="")
        return self._messages[id]

    def mark(self, id: str, *, pinned: bool = False, dropped: bool = False) -> Message:
        """Have message ``id`` always or never go to the model."""
        self._messages[id] = replace(self._messages[id], pinned=pinned, dropped=dropped)
        return self._messages[id]

    def note_asked(self, id: str, asked: str, adapters: str, system: str) -> Message:
        """Keep what message ``id`` was asked with."""
        self._messages[id] = replace(self._messages[id], asked=asked, adapters=adapters, system=system)
        return self._messages[id]

    def note_thought(self, id: str, tokens: int, seconds: float) -> Message:
        """Keep how long message ``id`` thought."""
        self._messages[id] = replace(self._messages[id], thought_tokens=tokens, thought_seconds=seconds)
        return self._messages[id]

    def append_text(self, id: str, text: str) -> Message:
        """Add to the text of a message that streams."""
        old = self._messages[id]
        self._messages[id] = replace(old, text=old.text + _clean(text))
        return self._messages[id]

    def finish(self, id: str, state: State = "done", *, stats: Stats | None = None, note: str = "") -> Message:
        """End the streaming of message ``id``."""
        self._messages[id] = replace(self._messages[id], state=state, stats=stats, note=note)
        return self._messages[id]

    def select(self, id: str) -> str:
        """Go to the branch of message ``id``: the head becomes the message below it that was read last. Returns the head."""
        self._remember(id)
        self.head = self._leaf(id)
        return self.head or id

    def branch_from(self, id: str | None) -> None:
        """Make message ``id`` the head, so that the next one begins a branch there; ``None``: a new first message."""
        if id is not None:
            self._remember(id)
        self.head = id

    def delete(self, id: str) -> Deletion:
        """Take out message ``id`` and all below it. If the head was there, it moves to the nearest sibling's branch, or the parent."""
        doomed = list(self._below(id))
        deletion = Deletion(tuple(doomed), self.head, dict(self.choices))
        gone = {message.id for message in doomed}
        parent = doomed[0].parent
        neighbours = self._children[parent]
        at = neighbours.index(id)
        nearest = neighbours[at - 1] if at else (neighbours[1] if len(neighbours) > 1 else None)
        neighbours.remove(id)
        for message in doomed:
            del self._messages[message.id]
            self._children.pop(message.id, None)
        self.choices = {k: v for k, v in self.choices.items() if k not in gone and v not in gone}
        if self.head in gone:
            self.head = parent
            if nearest is not None:
                self.select(nearest)
        self._deleted.append(deletion)
        return deletion

    def undo(self) -> Deletion | None:
        """Take back the last deletion: its messages and the head are where they were. ``None`` if there is none."""
        if not self._deleted:
            return None
        deletion = self._deleted.pop()
        for message in deletion.messages:
            self._insert(message)
        self.head, self.choices = deletion.head, dict(deletion.choices)
        return deletion

    # ── within ──

    def _grow(self, message: Message) -> Message:
        """Put a new message into the tree and make it the head."""
        self._insert(message)
        self._remember(message.id)
        self.head = message.id
        return message

    def _next_order(self) -> int:
        """One more than any order in use, those of deleted messages among them: they may come back."""
        hidden = (message for deletion in self._deleted for message in deletion.messages)
        return max((m.order for m in (*self._messages.values(), *hidden)), default=-1) + 1

    def _insert(self, message: Message) -> None:
        if message.parent is not None and message.parent not in self._messages:
            raise ValueError(f"message {message.id} answers {message.parent}, which is not there")
        self._messages[message.id] = message
        siblings = self._children.setdefault(message.parent, [])
        siblings.append(message.id)
        siblings.sort(key=lambda id: _place(self._messages[id]))

    def _remember(self, id: str) -> None:
        """Note at every fork above ``id`` that this branch was the last one read; and the one that was left, where it was read."""
        for message in (*self.path(), *self.path(id)):
            if len(self._children[message.parent]) > 1:
                self.choices[message.parent or _ROOT] = message.id

    def _leaf(self, id: str | None) -> str | None:
        """The end of the branch through ``id``: at a fork the child that was read last, or the newest."""
        while children := self._children.get(id):
            chosen = self.choices.get(id or _ROOT)
            id = chosen if chosen in children else children[-1]
        return id

    def _below(self, id: str) -> Iterator[Message]:
        """Message ``id`` and all below it, every parent before its children."""
        waiting = [id]
        while waiting:
            message = self._messages[waiting.pop()]
            yield message
            waiting.extend(self._children.get(message.id, []))


def _place(message: Message) -> tuple[int, float, str]:
    """Where a message stands among the others. Two programs that held the same chat may have used one order twice."""
    return (message.order, message.created, message.id)


def _clean(text: str) -> str:
    """``text`` without lone surrogates (they come with pastes), which no database and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def title_of(text: str) -> str:
    """A title from the first line of ``text`` that says something: one line, cut at a word."""
    line = next((line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)), text)
    line = " ".join(line.lstrip("#>*- ").split())
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[: TITLE_LENGTH - 1]
    words = cut.rsplit(" ", 1)[0] if " " in cut else cut  # a word longer than the line (or Chinese) is cut inside
    return words.rstrip(" ,;:.") + "…"
