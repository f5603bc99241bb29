"""What goes in when a chat is longer than the context."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exltui.chat.fit import alternating, fit
from exltui.errors import ContextError


def render(messages) -> str:
    return "".join(f"{m['role'][0]}:{m['content']} " for m in messages) + "a:"


def count(text: str) -> int:
    return len(text)


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def test_a_short_chat_goes_in_whole():
    messages = chat("a", "b", "c", system="s")
    fitted = fit(messages, render, count, context=100, reserve=50)
    assert list(fitted.messages) == messages
    assert (fitted.dropped, fitted.prompt, fitted.prompt_tokens) == (0, "s:s u:a a:b u:c a:", 18)


def test_the_oldest_turns_go_first_and_the_system_prompt_stays():
    messages = chat("one", "1", "two", "2", "three", system="sys")
    fitted = fit(messages, render, count, context=40, reserve=10)
    assert fitted.prompt == "s:sys u:two a:2 u:three a:"
    assert fitted.dropped == 2 and fitted.prompt_tokens == len(fitted.prompt)


def test_a_turn_goes_with_its_answer():
    fitted = fit(chat("x" * 50, "1", "two", "2", "three"), render, count, context=60, reserve=10)
    assert fitted.messages[0]["role"] == "user"


def test_the_beginning_stays_the_same_for_some_turns():
    """The engine's prompt cache is of use only if it does."""
    texts: list[str] = []
    beginnings = []
    for i in range(60):
        texts.append(f"question {i:3}")
        fitted = fit(chat(*texts, system="sys"), render, count, context=300, reserve=20)
        assert fitted.prompt_tokens <= 280
        beginnings.append(fitted.messages[1]["content"])
        texts.append("answer")
    changes = sum(a != b for a, b in itertools.pairwise(beginnings))
    assert 0 < changes <= 60 / 4


def test_too_long_a_message_is_told_in_numbers():
    with pytest.raises(ContextError, match=r"the last message is 2,004 tokens long; the context holds 1,000, of which 100") as caught:
        fit(chat("a", "b", "x" * 1999), render, count, context=1000, reserve=100)
    assert "longer context" in caught.value.hint
    with pytest.raises(ContextError, match="with the system prompt"):
        fit(chat("a", system="y" * 2000), render, count, context=1000, reserve=100)
    with pytest.raises(ContextError, match="the last message"):
        fit(chat("x" * 2000), render, count, context=1000, reserve=100)


def test_a_question_that_was_too_long_to_be_answered_goes_before_the_next() -> None:
    messages = [{"role": "user", "content": "x" * 5000}, {"role": "user", "content": "why?"}]
    fitted = fit(messages, lambda kept: render(alternating(kept)), count, context=1000, reserve=100)
    assert fitted.left_out == (0,) and [message["content"] for message in fitted.messages] == ["why?"]


def test_messages_of_one_role_in_a_row_become_one() -> None:
    messages = [{"role": role, "content": text} for role, text in (("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))]
    assert [(m["role"], m["content"]) for m in alternating(messages)] == [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]


def test_the_reserve_is_at_most_half_of_the_context():
    assert fit(chat("x" * 40), render, count, context=100, reserve=5000).dropped == 0


def test_the_work_does_not_grow_with_the_chat():
    lengths = []

    def measured(messages) -> str:
        lengths.append(len(messages))
        return render(messages)

    fitted = fit(chat(*["text"] * 20001), measured, count, context=500, reserve=100)
    assert 400 - 4 * 14 <= fitted.prompt_tokens <= 400  # a turn has 14 characters, and four go at once
    assert len(lengths) <= 16 and max(lengths) <= 4 * len(fitted.messages)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=25), st.booleans(), st.integers(20, 400), st.integers(0, 100))
def test_against_trying_everything(lengths: list[int], with_system: bool, context: int, reserve: int):
    messages = chat(*("x" * n for n in lengths), system="sys" if with_system else "")
    head, rest = messages[: int(with_system)], messages[int(with_system) :]
    cuts = range(0, len(rest), 2)  # every turn begins with the user
    room = context - min(reserve, context // 2)
    fitting = [cut for cut in cuts if count(render(head + rest[cut:])) <= room]
    if not fitting:
        with pytest.raises(ContextError):
            fit(messages, render, count, context, reserve)
        return
    fitted = fit(messages, render, count, context, reserve)
    assert fitted.prompt_tokens == count(fitted.prompt) <= room
    assert list(fitted.messages) == head + rest[fitted.dropped :]
    assert fitted.dropped in fitting
    assert (fitted.dropped - fitting[0]) // 2 < 4
