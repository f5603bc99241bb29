"""Thoughts are divided from what is said, however the text arrives; words with biases; the budget of a chat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exltui.chat import thinking
from exltui.chat.bias import bias_tokens, parse_bias
from exltui.chat.budget import Budget, shares
from exltui.chat.export import from_json, to_html, to_json, to_markdown
from exltui.chat.fit import fit
from exltui.chat.store import SessionStore
from exltui.chat.tree import Conversation
from exltui.errors import SamplingError

CASES = (
    ("<think>\nWell, 2 + 2.\n</think>\n\nIt is 4.", "Well, 2 + 2.", "It is 4."),
    ("  <thinking>a</thinking>b", "a", "b"),
    ("[THINK]a < b[/THINK]c", "a < b", "c"),
    ("No thoughts, but <think> in the text.", None, "No thoughts, but <think> in the text."),
    ("<thin ice>", None, "<thin ice>"),
    ("<think></think>x", "", "x"),
)


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
def test_a_reply_is_divided(text, thought, answer):
    parts = thinking.split(text)
    assert (parts.thought, parts.answer) == (thought, answer)
    assert thinking.answer(text) == answer


def test_a_reply_that_still_thinks_is_open():
    assert thinking.split("<think>hm") == thinking.Split("hm", "", open=True)


@given(st.sampled_from(CASES), st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_text_in_any_portions_gives_the_same_parts(case, sizes):
    text, thought, answer = case
    stream, said, thoughts, at = thinking.ThoughtStream(), "", "", 0
    for size in [*sizes, len(text)]:
        new_thought, new_answer = stream.feed(text[at : at + size])
        thoughts, said, at = thoughts + new_thought, said + new_answer, at + size
    new_thought, new_answer = stream.close()
    assert said + new_answer == answer
    assert (thoughts + new_thought).strip("\n") == (thought or "")
    assert stream.thinks is (thought is not None)


def test_a_mark_that_the_prompt_leaves_open_is_found():
    assert thinking.opened("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert thinking.opened("<|im_start|>assistant\n") == ""


# ── what goes to the model ───────────────────────────────────────────────────────────────────────────────────────────────────────


def chat() -> Conversation:
    talk = Conversation(title="Sums")
    talk.add("user", "2 + 2?")
    talk.add("assistant", "<think>\nadd\n</think>\n\n4")
    talk.add("user", "And 3 + 3?")
    return talk


def test_thoughts_go_to_the_model_again_only_if_the_chat_keeps_them():
    talk = chat()
    assert [turn.content for turn in talk.turns()] == ["2 + 2?", "4", "And 3 + 3?"]
    talk.options["thoughts"] = "keep"
    assert talk.turns()[1].content.startswith("<think>")


def test_a_note_goes_in_with_the_system_prompt_and_dropped_messages_stay_out():
    talk = chat()
    talk.system, talk.options["note"] = "Be brief.", "Summary: sums."
    talk.mark(talk.path()[1].id, dropped=True)
    turns = talk.turns()
    assert [turn.content for turn in turns] == ["Be brief.\n\nSummary: sums.", "2 + 2?", "And 3 + 3?"]
    assert [turn.id for turn in turns[1:]] == [talk.path()[0].id, talk.path()[2].id]


def test_a_pinned_message_stays_when_the_chat_is_too_long():
    turns = [{"role": role, "content": f"{number} " + "word " * 20} for number in range(10) for role in ("user", "assistant")]
    fitted = fit(turns, lambda kept: "".join(turn["content"] for turn in kept), lambda text: len(text.split()), 150, 20, pinned={2})
    assert set(fitted.left_out) & {2, 3} == set()
    assert 0 in fitted.left_out
    assert fitted.messages[0]["content"].startswith("1 ")
    assert fitted.prompt_tokens <= 130


def test_the_budget_tells_the_fate_of_each_message():
    talk = chat()
    first, reply, last = talk.path()
    talk.mark(first.id, pinned=True)
    found = shares("Be brief.", talk.path(), "and 4 + 4?", {reply.id}, lambda text: len(text.split()), keep_thoughts=False)
    assert [(share.role, share.fate, share.tokens) for share in found] == [
        ("system", "sent", 2),
        ("user", "pinned", 3),
        ("assistant", "cut", 1),
        ("user", "sent", 4),
        ("user", "sent", 4),
    ]
    budget = Budget(found, 20, 100, 10)
    assert (budget.cut, budget.marks) == (1, 7)
    assert found[3].id == last.id


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_with_biases_are_read():
    assert parse_bias('moon=+2, " however"=-3.5 ,delve=ban') == [("moon", 2.0), (" however", -3.5), ("delve", None)]
    assert parse_bias("  ") == []
    with pytest.raises(SamplingError, match="cannot be read"):
        parse_bias("moon")
    with pytest.raises(SamplingError, match="outside"):
        parse_bias("moon=500")


def test_a_word_counts_with_and_without_a_blank_and_must_be_one_token():
    vocabulary = {"moon": [1], " moon": [2], "delve": [3, 4], " delve": [5]}
    biases, bans = bias_tokens("moon=2, delve=ban", lambda text: vocabulary.get(text, [8, 9]))
    assert biases == ((1, 2.0), (2, 2.0))
    assert bans == (5,)
    with pytest.raises(SamplingError, match="several tokens"):
        bias_tokens("antidisestablishment=1", lambda text: [8, 9])


# ── kept and exported ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_marks_options_and_thoughts_are_there_again(tmp_path):
    talk = chat()
    first, reply, _ = talk.path()
    talk.mark(first.id, pinned=True)
    talk.note_thought(reply.id, 12, 0.5)
    talk.options["thinking"] = "off"
    store = SessionStore(tmp_path / "chats.db")
    store.save_all(talk)
    store.set_marks(talk.id, tags="maths  school", pinned=True, archived=False)
    again = store.load(talk.id)
    assert again.path()[0].pinned
    assert (again.path()[1].thought_tokens, again.path()[1].thought_seconds) == (12, 0.5)
    assert again.options == {"thinking": "off"}
    [info] = store.sessions()
    assert (info.tags, bool(info.pinned), bool(info.archived)) == ("maths school", True, False)
    assert store.prompts() == ["And 3 + 3?", "2 + 2?"]
    copy = from_json(to_json(again))
    assert copy.options == again.options
    assert copy.path()[0].pinned
    assert copy.path()[1].thought_tokens == 12


def test_html_shows_markup_and_does_not_use_it():
    talk = Conversation(title="<b>x</b>")
    talk.add("user", "<script>alert(1)</script> and [a](javascript:alert(1))")
    talk.add("assistant", "<think>hm</think>**bold** `code`")
    page = to_html(talk)
    assert "<script>" not in page
    assert 'href="javascript' not in page
    assert "<title>&lt;b&gt;x&lt;/b&gt;</title>" in page
    assert "<details><summary>thoughts</summary>" in page
    assert "<strong>bold</strong>" in page
    assert "> hm" in to_markdown(talk)
