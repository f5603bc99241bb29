"""From a chat to a job, with the starter model's own template."""

from __future__ import annotations

import pytest

from exltui.app.prepare import Order, Preparer
from exltui.chat.tree import Turn
from exltui.errors import ContextError
from exltui.protocol import Sampling


def test_the_person_is_written_for_where_their_words_would_begin(starter_model):
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello."))
    job = Preparer().prepare_as_person(Order("a", turns, str(starter_model), 2048, Sampling(), 50)).job
    assert job.prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n")
    assert job.max_new_tokens == 50
    with pytest.raises(ContextError, match="the context holds 128"):
        Preparer().prepare_as_person(Order("a", turns, str(starter_model), 128, Sampling()))


def test_a_question_without_an_answer_is_one_message_with_the_next(starter_model):
    turns = (Turn("user", "Hi"), Turn("user", "Are you there?"), Turn("assistant", "Yes."))
    asked = Order("a", turns, str(starter_model), 2048, Sampling())
    for job in (Preparer().prepare(asked).job, Preparer().prepare_as_person(asked).job):
        assert "<|im_start|>user\nHi\n\nAre you there?<|im_end|>" in job.prompt


def test_text_alone_is_written_on(starter_model):
    turns = (Turn("user", "Once upon"),)
    job = Preparer().prepare(Order("a", turns, str(starter_model), 2048, Sampling(), start=" a", options={"format": "text"})).job
    assert job.prompt == "Once upon a", "nothing but the words"
    assert job.stop_strings == ()
