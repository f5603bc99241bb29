"""The streamer's invariant: pieces join to the whole, minus the stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltui.engine.generate.stream import REPLACEMENT, TextStreamer
from exltui.tokenizer import Tokenizer


def decode_bytes(ids: list[int]) -> str:
    """A byte-level tokenizer: ids below 256 are bytes, 256 and above are two bytes, which cut characters at any place."""
    raw = b"".join(bytes([i]) if i < 256 else bytes([(i - 256) >> 8, (i - 256) & 255]) for i in ids)
    return raw.decode("utf-8", "replace")


def stream(ids: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    streamer = TextStreamer(decode_bytes, stops)
    pieces = [streamer.push(token) for token in ids]
    pieces.append(streamer.finish())
    return pieces, streamer.stop


texts = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab\n ŝ€😀👩‍🚀é")), max_size=60)


def cut(text: str, data: st.DataObject) -> list[int]:
    raw, ids = text.encode(), []
    while raw:
        if len(raw) > 1 and data.draw(st.booleans()):
            ids.append(256 + (raw[0] << 8) + raw[1])
            raw = raw[2:]
        else:
            ids.append(raw[0])
            raw = raw[1:]
    return ids


@given(texts, st.data())
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str, data: st.DataObject) -> None:
    pieces, stop = stream(cut(text, data))
    assert "".join(pieces) == text
    assert stop is None
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in piece for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=80))
def test_broken_bytes_join_to_the_decoded_whole(ids: list[int]) -> None:
    assert "".join(stream(ids)[0]) == decode_bytes(ids)


@given(texts, st.lists(st.text(alphabet="ab\nŝ€😀", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    pieces, stop = stream(cut(text, data), tuple(stops))
    places = [text.find(s) for s in stops if s in text]
    assert "".join(pieces) == (text[: min(places)] if places else text)
    assert (stop is not None) == bool(places)


def test_nothing_is_said_that_could_become_a_stop_string() -> None:
    streamer = TextStreamer(decode_bytes, ("User:",))
    said = [streamer.push(byte) for byte in b"hi\nUse it. User"]
    assert "".join(said) == "hi\nUse it. "
    assert streamer.push(ord(":")) == ""
    assert streamer.stop == "User:"
    assert streamer.finish() == ""


def test_a_long_run_of_broken_bytes_is_not_decoded_again_and_again() -> None:
    seen = 0

    def counting(ids: list[int]) -> str:
        nonlocal seen
        seen = max(seen, len(ids))
        return decode_bytes(ids)

    streamer = TextStreamer(counting)
    joined = "".join([streamer.push(0x80) for _ in range(2000)]) + streamer.finish()
    assert joined == REPLACEMENT * 2000
    assert seen < 64


@pytest.fixture(scope="module")
def tokenizer(starter_model: Path) -> Tokenizer:
    return Tokenizer(starter_model)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_the_real_tokenizer_streams_what_it_decodes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    streamer = TextStreamer(tokenizer.decode)
    assert "".join([streamer.push(i) for i in ids]) + streamer.finish() == tokenizer.decode(ids)
