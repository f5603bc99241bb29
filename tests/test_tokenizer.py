"""The tokenizer: what is special and when, where a turn ends, and directories without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from exltui.engine.generate.stream import TextStreamer
from exltui.errors import ModelError
from exltui.tokenizer import Tokenizer

# The starter's vocabulary has no token for some bytes; control characters and those from U+40000 on need them.
characters = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(directory: Path, **config: object) -> Path:
    """A byte-level tokenizer without merges: each byte is a token, then the special ones at 256 to 259."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    directory.mkdir(exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_metaspace_tokenizer(directory: Path) -> Path:
    """A tokenizer of SentencePiece's kind: spaces are part of the words, the first one is dropped, unknown characters are bytes."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcde", "▁ab", "▁cd", "ab", "cd", "▁▁", "é", "\n"]
    inner = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [("▁", "ab"), ("▁", "cd"), ("a", "b"), ("c", "d"), ("▁", "▁")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    inner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens(["</s>"])
    directory.mkdir(exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Tokenizer:
    return Tokenizer(starter_model)


def test_special_tokens_are_recognised_only_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    text = "a<|im_end|>b"
    ids = tokenizer.encode(text)
    assert 259 in ids
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, special=True) == text
    plain = tokenizer.encode(text, parse_special=False)
    assert max(plain) < 256
    assert tokenizer.decode(plain) == text
    assert 259 in tokenizer.encode(text), "asking once for plain text changed the tokenizer"


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(
        st.one_of(st.sampled_from(["<|im_end|>", "<|", "<|im_start|>", "</s>", " "]), st.text(characters, max_size=5)), max_size=6
    ).map("".join)
)
def test_plain_text_comes_back_as_it_was(starter: Tokenizer, text: str) -> None:
    ids = starter.encode(text, parse_special=False)
    assert starter.decode(ids) == text
    assert not set(ids) & set(range(17)), "the special tokens of this model are its first 17"


@pytest.mark.parametrize(
    ("config", "text", "want"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, "a", True),
        ({"bos_token": "<s>", "add_bos_token": False}, "a", False),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, "a", True),
        ({"bos_token": "<s>"}, "a", False),  # this tokenizer has no post-processor that adds it
        ({}, "a", False),
    ],
)
def test_bos_is_added_where_the_tokenizer_wants_it(tmp_path: Path, config: dict, text: str, want: bool) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, **config))
    assert tokenizer.adds_bos is want
    assert (tokenizer.encode(text, add_bos=True)[0] == 256) is ("bos_token" in config)


def test_bos_is_not_added_twice(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, bos_token="<s>"))
    assert tokenizer.encode("<s>a", add_bos=True).count(256) == 1


def test_eos_is_the_union_of_all_places(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    write_tokenizer(tmp_path, eos_token={"content": "</s>"}, chat_template=template)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert Tokenizer(tmp_path).eos_ids == {7, 8, 9, 257, 259}


def test_eos_of_a_nested_text_config_counts_and_a_strange_one_does_not(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 5}}')
    assert Tokenizer(tmp_path).eos_ids == {5}
    (tmp_path / "config.json").write_text('{"text_config": [1], "eos_token_id": "x"}')
    assert Tokenizer(tmp_path).eos_ids == frozenset()


def test_an_end_of_turn_counts_only_if_the_template_writes_it(tmp_path: Path) -> None:
    assert Tokenizer(write_tokenizer(tmp_path, chat_template="{{ messages }}")).eos_ids == frozenset()


def test_the_default_template_of_a_list_is_taken_and_the_file_beside_it_wins(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "<|im_end|>"}]
    tokenizer = Tokenizer(write_tokenizer(tmp_path, chat_template=named))
    assert tokenizer.template_source == "<|im_end|>"
    assert tokenizer.eos_ids == {259}
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer(tmp_path).template_source == "J"


def test_the_starter_ends_where_its_files_say(starter_model: Path) -> None:
    tokenizer = Tokenizer(starter_model)
    assert tokenizer.id("<|im_end|>") in tokenizer.eos_ids
    assert tokenizer.piece(2) == "<|im_end|>"
    assert tokenizer.piece(10**9) == ""
    assert tokenizer.size == 49152
    assert tokenizer.count("Hello world") == len(tokenizer.encode("Hello world")) == 2


@settings(max_examples=100, deadline=None)
@given(text=st.text(characters, max_size=60))
def test_any_text_survives_encoding(starter: Tokenizer, text: str) -> None:
    assert starter.decode(starter.encode(text, parse_special=False)) == text


def test_lone_surrogates_do_no_harm(starter_model: Path) -> None:
    assert Tokenizer(starter_model).encode("a\ud800b")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json, so this is not a model directory"):
        Tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match="SentencePiece") as error:
        Tokenizer(tmp_path)
    assert "save_pretrained" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 3}', b"\xff\xfe"])
def test_a_damaged_tokenizer_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="abcde é€😀\n", max_size=30), stop=st.sampled_from([(), ("ab",), (" ",)]))
def test_a_sentencepiece_like_tokenizer_streams_what_it_decodes(tmp_path_factory: pytest.TempPathFactory, text: str, stop: tuple) -> None:
    tokenizer = Tokenizer(write_metaspace_tokenizer(tmp_path_factory.getbasetemp() / "metaspace"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    streamer = TextStreamer(tokenizer.decode, stop)
    said = "".join([streamer.push(i) for i in ids]) + streamer.finish()
    assert said == (text.split(stop[0], maxsplit=1)[0] if stop else text)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(257, 270), st.just(271)), max_size=20))
def test_special_tokens_in_the_middle_cost_no_spaces(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    tokenizer = Tokenizer(write_metaspace_tokenizer(tmp_path_factory.getbasetemp() / "metaspace"))
    streamer = TextStreamer(tokenizer.decode)
    assert "".join([streamer.push(i) for i in ids]) + streamer.finish() == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="abcde é€😀\n", max_size=30), cut=st.integers(0, 20))
@example("aaaaa€😀😀€ ", 20)  # the last four ids of the prompt begin within a character
def test_a_reply_continues_the_prompt_with_its_spaces(tmp_path_factory: pytest.TempPathFactory, text: str, cut: int) -> None:
    tokenizer = Tokenizer(write_metaspace_tokenizer(tmp_path_factory.getbasetemp() / "metaspace"))
    ids = tokenizer.encode(text)
    prompt, reply = ids[:cut], ids[cut:]
    if "\ufffd" in tokenizer.decode(prompt):
        return  # cut within a character, which no reply can mend
    streamer = TextStreamer(tokenizer.decode, (), prompt[-4:])
    said = "".join([streamer.push(i) for i in reply]) + streamer.finish()
    assert tokenizer.decode(prompt) + said == text


def test_a_prompt_that_ends_within_a_character_does_not_hold_the_reply_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    streamer = TextStreamer(tokenizer.decode, (), tokenizer.encode("€")[:2])
    assert "".join(streamer.push(i) for i in tokenizer.encode("ab")) == "ab"
