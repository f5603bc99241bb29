"""The conversation tree against a naive model, and the promises that the app makes with it."""

from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exltui.chat.tree import TITLE_LENGTH, Conversation, Header, title_of
from exltui.protocol import Stats


def conversation() -> Conversation:
    clock = itertools.count(1000)
    return Conversation(now=lambda: float(next(clock)))


def ask(chat: Conversation, question: str, answer: str) -> tuple[str, str]:
    user = chat.add("user", question)
    reply = chat.add("assistant", "", state="streaming")
    chat.append_text(reply.id, answer)
    chat.finish(reply.id)
    return user.id, reply.id


def texts(chat: Conversation) -> list[str]:
    return [message.text for message in chat.path()]


def test_messages_follow_one_another():
    chat = conversation()
    ask(chat, "one", "1")
    ask(chat, "two", "2")
    assert texts(chat) == ["one", "1", "two", "2"]
    assert [m.created for m in chat.path()] == sorted(m.created for m in chat.path())
    assert chat.title == "one"


def test_an_edit_is_a_sibling_and_the_old_branch_stays():
    chat = conversation()
    first, _ = ask(chat, "one", "1")
    ask(chat, "two", "2")
    edited = chat.edit(first, "uno")
    assert texts(chat) == ["uno"]
    assert [m.text for m in chat.siblings(edited.id)] == ["one", "uno"]
    chat.select(first)
    assert texts(chat) == ["one", "1", "two", "2"]


def test_regenerate_makes_another_reply_to_the_same_question():
    chat = conversation()
    user, reply = ask(chat, "one", "1")
    again = chat.regenerate(reply)
    assert (again.parent, again.state, again.text) == (user, "streaming", "")
    third = chat.regenerate(user)
    assert [m.id for m in chat.siblings(reply)] == [reply, again.id, third.id]


def test_going_to_another_branch_and_back_returns_to_where_one_was():
    chat = conversation()
    _, first = ask(chat, "q", "a")
    second_user, _ = ask(chat, "follow", "f1")
    chat.edit(second_user, "other")
    chat.select(second_user)  # the older of two follow-ups is the one that is read
    here = chat.head
    again = chat.regenerate(first)
    assert chat.head == again.id
    chat.select(first)
    assert chat.head == here


def test_branch_from_begins_a_branch_there():
    chat = conversation()
    _, reply = ask(chat, "q", "a")
    ask(chat, "more", "b")
    chat.branch_from(reply)
    chat.add("user", "instead")
    assert texts(chat) == ["q", "a", "instead"]
    chat.branch_from(None)
    chat.add("user", "afresh")
    assert texts(chat) == ["afresh"]
    assert [m.text for m in chat.children(None)] == ["q", "afresh"]


def test_deleting_a_reply_shows_its_neighbour_and_undo_brings_it_back():
    chat = conversation()
    _, first = ask(chat, "q", "a1")
    second = chat.regenerate(first)
    chat.finish(second.id)
    before = (texts(chat), chat.header)
    gone = chat.delete(second.id)
    assert [m.id for m in gone.messages] == [second.id]
    assert chat.head == first
    assert chat.undo() == gone
    assert (texts(chat), chat.header) == before
    assert chat.undo() is None


def test_deleting_the_only_message_leaves_an_empty_chat():
    chat = conversation()
    user, _ = ask(chat, "q", "a")
    chat.delete(user)
    assert (len(chat), chat.head, chat.path()) == (0, None, [])
    chat.undo()
    assert texts(chat) == ["q", "a"]


def test_turns_leave_out_empty_replies():
    chat = conversation()
    chat.system = "Be brief."
    chat.add("user", "one")
    failed = chat.add("assistant", "", state="streaming")
    chat.finish(failed.id, "failed", note="out of memory")
    chat.add("user", "two")
    assert [(turn.role, turn.content) for turn in chat.turns()] == [("system", "Be brief."), ("user", "one"), ("user", "two")]


def test_finish_keeps_the_figures():
    chat = conversation()
    reply = chat.add("assistant", "", state="streaming", model="m")
    stats = Stats("stop_token", 3, 0, 1, 0.1, 0.2, 7)
    assert chat.finish(reply.id, "stopped", stats=stats).stats == stats
    assert chat[reply.id].state == "stopped"


def test_a_message_keeps_its_text_while_the_conversation_goes_on():
    chat = conversation()
    reply = chat.add("assistant", "a", state="streaming")
    chat.append_text(reply.id, "b")
    assert (reply.text, chat[reply.id].text) == ("a", "ab")


def test_a_lone_surrogate_does_not_get_in():
    chat = conversation()
    assert chat.add("user", "a\ud800b").text == "a?b"


def test_a_missing_parent_is_an_error():
    chat = conversation()
    _, reply = ask(chat, "q", "a")
    with pytest.raises(ValueError, match="not there"):
        Conversation.of(Header("x"), [chat[reply]])


def test_a_lost_head_becomes_the_end_of_the_newest_branch():
    chat = conversation()
    ask(chat, "q", "a")
    again = Conversation.of(Header("x", head="nowhere"), list(chat))
    assert again.head == chat.head


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("What is the capital of France?", "What is the capital of France?"),
        ("\n\n  ## Heading  here\nmore", "Heading here"),
        ("```\nprint(1)\n```", "print(1)"),
        ("word " * 30, "word word word word word word word word word…"),
        ("x" * 90, "x" * (TITLE_LENGTH - 1) + "…"),
        ("", ""),
        ("???", "???"),
    ],
)
def test_title(text: str, title: str):
    assert title_of(text) == title
    assert len(title_of(text)) <= TITLE_LENGTH


class TreeAgainstLists(RuleBasedStateMachine):
    """The naive model: a list of (id, parent, text) in the order of writing, and a stack of what was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.chat = conversation()
        self.rows: list[tuple[str, str | None, str]] = []
        self.deleted: list[tuple[list[tuple[str, str | None, str]], str | None]] = []
        self.written: list[str] = []  # all ids ever, in order

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([id for id, _, _ in self.rows]))

    def note(self, message) -> None:
        self.rows.append((message.id, message.parent, message.text))
        self.written.append(message.id)
        assert self.chat.head == message.id

    @rule(role=st.sampled_from(["user", "assistant"]), text=st.text(max_size=5))
    def add(self, role, text):
        head = self.chat.head
        message = self.chat.add(role, text)
        assert message.parent == head
        self.note(message)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), text=st.text(max_size=5))
    def edit(self, data, text):
        id = self.pick(data)
        self.note(self.chat.edit(id, text))
        assert self.rows[-1][1] == self.chat[id].parent

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def regenerate(self, data):
        self.note(self.chat.regenerate(self.pick(data)))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def select(self, data):
        id = self.pick(data)
        head = self.chat.select(id)
        assert not self.chat.children(head)
        assert id in [m.id for m in self.chat.path()]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def branch_from(self, data):
        id = self.pick(data)
        self.chat.branch_from(id)
        assert self.chat.head == id

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data):
        id = self.pick(data)
        before = (copy.deepcopy(list(self.chat)), self.chat.header)
        head = self.chat.head
        self.chat.delete(id)
        self.chat.undo()
        assert (list(self.chat), self.chat.header) == before
        deletion = self.chat.delete(id)
        doomed = {id}
        for row in self.rows:  # a parent is written before its children
            if row[1] in doomed:
                doomed.add(row[0])
        assert {m.id for m in deletion.messages} == doomed
        self.deleted.append(([row for row in self.rows if row[0] in doomed], head))
        self.rows = [row for row in self.rows if row[0] not in doomed]
        assert self.chat.head == head or head in doomed

    @precondition(lambda self: self.deleted)
    @rule()
    def undo(self):
        rows, head = self.deleted.pop()
        self.chat.undo()
        self.rows = sorted([*self.rows, *rows], key=lambda row: self.written.index(row[0]))
        assert self.chat.head == head

    @invariant()
    def same(self):
        assert [(m.id, m.parent, m.text) for m in self.chat] == self.rows
        assert len({m.order for m in self.chat}) == len(self.rows)
        for id, parent, _ in self.rows:
            assert [m.id for m in self.chat.siblings(id)] == [i for i, p, _ in self.rows if p == parent]
        head, path = self.chat.head, []
        parents = {id: parent for id, parent, _ in self.rows}
        while head is not None:
            path.append(head)
            head = parents[head]
        assert [m.id for m in self.chat.path()] == path[::-1]

    @invariant()
    def reopened_is_the_same(self):
        again = Conversation.of(self.chat.header, reversed(list(self.chat)))
        assert list(again) == list(self.chat)
        if self.chat.head is not None:
            assert (again.header, again.path()) == (self.chat.header, self.chat.path())


TreeAgainstLists.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTreeAgainstLists = TreeAgainstLists.TestCase
