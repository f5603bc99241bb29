"""Text to token ids and back, and the ids at which a model's turn ends. No torch: the command line and the app count tokens with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from exltui.errors import ModelError

# Tokens that end a turn in the chat templates of the families that do not name them as EOS everywhere. One counts only if it is a
# special token of the vocabulary and the model's template writes it.
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endoftext|>",
)


class Tokenizer:
    """The tokenizer of a model directory. Raises ModelError if there is none that can be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "tokenizer.json"
        if not path.exists():
            _refuse(directory)
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path}: cannot be read as a tokenizer: {error}", "download the file again") from error
        self._config = _read_json(directory / "tokenizer_config.json")
        self._ids_with: dict[str, frozenset[int]] = {}
        self._grammar_words: Any = None
        self.bos_id = self._named("bos_token")
        self.eos_ids = frozenset(self._eos_ids())

    @property
    def size(self) -> int:
        """Entries of the vocabulary, added tokens included. A model's head may be wider."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @cached_property
    def adds_bos(self) -> bool:
        """Whether plain text (not a rendered chat template) begins with BOS: what the file says, or what its post-processor does."""
        if self.bos_id is None:
            return False
        stated = self._config.get("add_bos_token")
        if isinstance(stated, bool):
            return stated
        return bool(self._inner.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id])

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = False) -> list[int]:
        """Ids of ``text``. With ``parse_special``, ``<|im_end|>`` and the like in the text become their tokens; otherwise they are text."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no tokens
        ids = (self._inner if parse_special else self._plain).encode(text, add_special_tokens=False).ids
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return list(ids)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special tokens are ordinary text."""
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text of ``ids``; special tokens are left out unless ``special``. Incomplete UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(ids, skip_special_tokens=not special))

    def piece(self, token: int) -> str:
        """How the vocabulary spells ``token``, or ``""`` for an id that is not in it."""
        return self._inner.id_to_token(token) or ""

    @cached_property
    def texts(self) -> list[str]:
        """What each id adds to a text, special tokens spelled out; what is no whole character is U+FFFD."""
        before = self.encode("a")[-1:]
        start = len(self.decode(before, special=True))
        ids = [[*before, i] for i in range(self.size)]
        return [text[start:] for text in self._inner.decode_batch(ids, skip_special_tokens=False)]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that were added to the vocabulary, such as the end of a turn."""
        return frozenset(self._inner.get_added_tokens_decoder())

    def ids_with(self, characters: str) -> frozenset[int]:
        """Ids whose text holds one of ``characters``, and all special ones."""
        if characters not in self._ids_with:
            wanted = set(characters)
            self._ids_with[characters] = self.special_ids | {i for i, text in enumerate(self.texts) if not wanted.isdisjoint(text)}
        return self._ids_with[characters]

    def grammar_words(self, build: Callable[[], Any]) -> Any:
        """What ``build`` made of this vocabulary for grammars, made once: it takes a second for a large one."""
        if self._grammar_words is None:
            self._grammar_words = build()
        return self._grammar_words

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether both give every piece of text the same id."""
        return bool(self._inner.get_vocab(with_added_tokens=True) == other._inner.get_vocab(with_added_tokens=True))

    def id(self, piece: str) -> int | None:
        return self._inner.token_to_id(piece)

    @property
    def special_pieces(self) -> list[str]:
        """The special tokens as they are spelt, by id."""
        added = self._inner.get_added_tokens_decoder()
        return [token.content for _, token in sorted(added.items()) if token.special]

    def count(self, text: str) -> int:
        """Tokens of ``text``, special tokens recognised."""
        return len(self.encode(text))

    def _named(self, key: str) -> int | None:
        """The id of a token that tokenizer_config.json or config.json names."""
        value = self._config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            return self.id(content)
        stated = _read_json(self.directory / "config.json").get(f"{key}_id")
        return stated if isinstance(stated, int) else None

    def _eos_ids(self) -> set[int]:
        """The union of every place that names an end: config, generation_config, tokenizer_config, and the template's end of turn."""
        found: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            values = _read_json(self.directory / name)
            text = values.get("text_config")  # of a model that also sees
            for stated in (values.get("eos_token_id"), text.get("eos_token_id") if isinstance(text, dict) else None):
                found.update(i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int))
        named = self._named("eos_token")
        if named is not None:
            found.add(named)
        template = self.template_source
        special = {token.content for token in self._inner.get_added_tokens_decoder().values()}
        found.update(i for piece in TURN_ENDS if piece in special and piece in template and (i := self.id(piece)) is not None)
        return found

    @cached_property
    def template_source(self) -> str:
        """The chat template's source, or ``""``: chat_template.jinja before tokenizer_config.json (in the list form, the default one)."""
        path = self.directory / "chat_template.jinja"
        if path.exists():
            return path.read_text(encoding="utf-8", errors="replace")
        template = self._config.get("chat_template") or ""
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template", "") for entry in template if isinstance(entry, dict)}
            template = named.get("default", next(iter(named.values()), ""))
        return template if isinstance(template, str) else ""


def _refuse(directory: Path) -> None:
    if not (directory / "config.json").exists():
        raise ModelError(
            f"{directory}: there is no config.json, so this is not a model directory", "choose the folder that holds config.json"
        )
    if (directory / "tokenizer.model").exists():
        code = f"from transformers import AutoTokenizer as T; T.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
        hint = f'python -c "{code}" writes tokenizer.json (pip install transformers sentencepiece)'
        raise ModelError(f"{directory.name}: there is a SentencePiece tokenizer.model but no tokenizer.json", hint)
    raise ModelError(f"{directory.name}: there is no tokenizer.json", "download the model again; the file belongs to it")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``, or ``{}``: these files are optional, and a broken one must not keep a model from loading."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
