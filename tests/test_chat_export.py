"""Markdown that reads well, and JSON that comes back as it was."""

from __future__ import annotations

import dataclasses
import itertools
import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exltui.chat.export import from_json, to_json, to_markdown
from exltui.chat.store import SessionStore
from exltui.chat.tree import Conversation
from exltui.errors import ExltuiError
from exltui.protocol import Sampling, Stats


def branched() -> Conversation:
    clock = itertools.count(1)
    chat = Conversation(title="Tides", system="Be brief.\nBe kind.", model="llama", now=lambda: next(clock) + 0.125)
    question = chat.add("user", "Why two tides?")
    reply = chat.add("assistant", "", state="streaming", model="llama", sampling=Sampling(seed=4))
    chat.append_text(reply.id, "The Moon pulls.")
    chat.finish(reply.id, stats=Stats("stop_token", 5, 0, 4, 0.1, 0.2, 4))
    chat.edit(question.id, "Why not three?")
    failed = chat.add("assistant", "", state="streaming")
    chat.finish(failed.id, "failed", note="The context is full.")
    chat.select(question.id)
    return chat


def shape(chat: Conversation) -> tuple[object, ...]:
    """All of a conversation except its ids, which become numbers."""
    number = {message.id: i for i, message in enumerate(chat)}
    number[""] = -1
    messages = [dataclasses.replace(m, id="", parent=None) for m in chat]
    parents = [m.parent and number[m.parent] for m in chat]
    choices = {number[k]: number[v] for k, v in chat.choices.items()}
    return (chat.title, chat.system, chat.model, chat.created, chat.head and number[chat.head], choices, messages, parents)


def test_json_comes_back_under_new_ids():
    chat = branched()
    again = from_json(to_json(chat))
    assert shape(again) == shape(chat)
    assert not {again.id, *(m.id for m in again)} & {chat.id, *(m.id for m in chat)}
    assert shape(from_json(to_json(again))) == shape(chat)


def test_an_imported_chat_stands_beside_the_first():
    sessions = SessionStore(None)
    chat = branched()
    again = from_json(to_json(chat))
    sessions.save_all(chat)
    sessions.save_all(again)
    assert len(sessions.sessions()) == 2
    assert shape(sessions.load(again.id)) == shape(sessions.load(chat.id)) == shape(chat)


@given(st.lists(st.tuples(st.sampled_from(["add", "edit", "again", "go"]), st.integers(0, 100), st.text(max_size=20))))
def test_any_tree_comes_back(steps: list[tuple[str, int, str]]):
    chat = Conversation()
    for what, which, text in steps:
        ids = [message.id for message in chat]
        if what == "add" or not ids:
            chat.add("user" if which % 2 else "assistant", text)
        elif what == "edit":
            chat.edit(ids[which % len(ids)], text)
        elif what == "again":
            chat.finish(chat.regenerate(ids[which % len(ids)]).id, "stopped")
        else:
            chat.select(ids[which % len(ids)])
    assert shape(from_json(to_json(chat))) == shape(chat)


def test_a_reply_that_streams_is_a_stopped_one_when_it_comes_back():
    chat = Conversation()
    chat.add("assistant", "half", state="streaming")
    assert from_json(to_json(chat)).path()[0].state == "stopped"


def test_markdown_is_the_branch_that_is_read():
    assert to_markdown(branched()) == ("# Tides\n\n> Be brief.\n> Be kind.\n\n## user\n\nWhy two tides?\n\n## llama\n\nThe Moon pulls.\n")


def test_markdown_tells_what_went_wrong():
    chat = branched()
    chat.select(chat.children(None)[1].id)
    assert to_markdown(chat).endswith("## user\n\nWhy not three?\n\n## assistant\n\n*The context is full.*\n")


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("```python\nx", "```python\nx\n```\n"),
        ("```\nx\n```", "```\nx\n```\n"),
        ("~~~~\n~~~\nx", "x\n~~~~\n"),
        ("````\n```\n````", "````\n```\n````\n"),
    ],
)
def test_an_open_fence_is_closed(text: str, ending: str):
    chat = Conversation()
    chat.add("assistant", text)
    assert to_markdown(chat).endswith(ending)


def broken(change) -> str:
    values = json.loads(to_json(branched()))
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[1]", "format"),
        ("{}", "format"),
        (broken(lambda v: v.update(version=9)), "version is 9"),
        (broken(lambda v: v.update(messages={})), "list of objects"),
        (broken(lambda v: v.update(messages=[1])), "list of objects"),
        (broken(lambda v: v.update(title=1)), '"title" is not a text'),
        (broken(lambda v: v.update(created="now")), '"created" is not a number'),
        (broken(lambda v: v.update(choices=[1])), '"choices"'),
        (broken(lambda v: v["messages"][1].update(parent="nobody")), "message 2"),
        (broken(lambda v: v["messages"][0].update(parent=v["messages"][1]["id"])), "message 1"),
        (broken(lambda v: v["messages"][1].update(id=v["messages"][0]["id"])), "used twice"),
        (broken(lambda v: v["messages"][1].update(role="tool")), "role"),
        (broken(lambda v: v["messages"][1].update(state=[])), "state"),
        (broken(lambda v: v["messages"][1].update(text=None)), "text"),
        (broken(lambda v: v["messages"][1].update(stats=[])), "stats"),
        (broken(lambda v: v["messages"][1].update(stats={})), "incomplete"),
    ],
    ids=count(),  # the texts hold new identifiers in each process, and every worker must name the cases alike
)
def test_what_is_no_chat_is_refused_in_one_sentence(text: str, says: str):
    with pytest.raises(ExltuiError, match=says) as caught:
        from_json(text)
    assert "\n" not in str(caught.value) and caught.value.hint


def test_what_is_only_lost_is_made_up():
    again = from_json(broken(lambda v: v.update(head="nobody", choices={"x": "y", "": "z"})))
    assert again.head is not None and again.choices == {}
