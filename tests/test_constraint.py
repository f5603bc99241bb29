"""Replies with a form, from the real starter model: whatever it would rather say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from exltui import Engine
from exltui.engine.generate.constraint import constraint
from exltui.errors import GrammarError
from exltui.protocol import JobSpec, LoadOptions, Sampling
from exltui.tokenizer import Tokenizer

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
WILD = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=4)


@pytest.fixture(scope="module")
def engine(starter_model: Path):
    with Engine.open(starter_model, LoadOptions(device="cpu", length=512)) as engine:
        yield engine


def test_a_reply_follows_its_json_schema(engine: Engine) -> None:
    done = engine.generate("Describe a person as JSON: ", WILD, json_schema=SCHEMA, max_new_tokens=80)
    person = json.loads(done.text)
    assert set(person) == {"name", "age"} and 0 <= person["age"] <= 150


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
        ({"choices": ("yes", "no", 'may"be')}, 'yes|no|may"be'),
        ({"grammar": 'start: "<" WORD ">"\nWORD: /[a-z]{2,5}/'}, "<[a-z]{2,5}>"),
        ({"grammar": 'root ::= "[" [0-9] ("," [0-9])? "]"'}, r"\[\d(,\d)?\]"),
    ],
)
def test_a_reply_follows_what_it_is_held_to(engine: Engine, form: dict, pattern: str) -> None:
    for seed in (1, 2):
        done = engine.generate("Answer:", Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed), max_new_tokens=40, **form)
        assert re.fullmatch(pattern, done.text), done.text
        assert done.stats.stop_reason in ("grammar_end", "stop_token")


def test_banned_strings_and_a_grammar_go_together(engine: Engine) -> None:
    words = ("apple", "apricot", "banana")
    for seed in range(3):
        sampling = Sampling(temperature=1.0, top_k=0, seed=seed)
        assert engine.generate("Fruit: ", sampling, choices=words, banned_strings=("APPLE", "banana")).text == "apricot"


def test_a_grammar_that_allows_no_token_is_an_error_and_not_a_hang(engine: Engine) -> None:
    with pytest.raises(Exception, match="no token is left to draw"):
        engine.generate("x", WILD, choices=("yes",), banned_strings=("y",), max_new_tokens=9)
    with pytest.raises(Exception, match="no token is left to draw"):
        engine.generate("x", WILD, regex="[0-9]+", allowed_tokens=tuple(engine.session.tokenizer.encode("hello")))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"json_schema": "{"}, "json_schema: "),
        ({"json_schema": '{"type": "colour"}'}, "json_schema: "),
        ({"regex": "("}, "regex: "),
        ({"grammar": "start: nothing"}, "grammar: "),
        ({"regex": "a", "choices": ("b",)}, "both regex and choices"),
    ],
)
def test_what_cannot_be_followed_is_refused(starter_model: Path, form: dict, words: str) -> None:
    tokenizer = Tokenizer(starter_model)
    with pytest.raises(GrammarError, match=words):
        constraint(JobSpec("a", prompt="x", **form), tokenizer, tokenizer.size)


def test_masks_go_back_with_the_reply(starter_model: Path) -> None:
    tokenizer = Tokenizer(starter_model)
    form = constraint(JobSpec("a", prompt="x", choices=("one two", "one three")), tokenizer, tokenizer.size)
    assert form is not None
    start, ids = form.mask().clone(), tokenizer.encode("one two")
    for token in ids[:2]:
        assert form.mask()[token // 32] >> (token % 32) & 1
        form.accept(token)
    form.take_back(2)
    assert (form.mask() == start).all() and not form.finished
