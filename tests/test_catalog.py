"""Which models are there, read off headers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from model_files import PLAIN, model_files, safetensors_bytes, write_model

from exltui.errors import ModelError
from exltui.models.catalog import find_models, read_model, resolve

EXL2 = {
    "model.embed_tokens.weight": ("F16", (10, 64)),
    "model.layers.0.mlp.up_proj.q_weight": ("I32", (8, 32)),  # 8 rows of 32 bits for 64 weights a column: 4 bits
    "model.layers.0.mlp.up_proj.q_invperm": ("I32", (64,)),
    "model.layers.0.mlp.up_proj.q_scale": ("I32", (1, 4)),
    "model.layers.0.mlp.up_proj.q_scale_max": ("F16", (1,)),
    "model.layers.0.mlp.up_proj.q_groups": ("I16", (2,)),
    "lm_head.q_weight": ("I32", (12, 10)),
    "lm_head.q_invperm": ("I32", (64,)),
}
GPTQ = {
    "model.embed_tokens.weight": ("F16", (10, 64)),
    "model.layers.0.mlp.up_proj.qweight": ("I32", (8, 32)),
    "model.layers.0.mlp.up_proj.qzeros": ("I32", (1, 4)),
    "model.layers.0.mlp.up_proj.scales": ("F16", (1, 32)),
    "model.layers.0.mlp.up_proj.g_idx": ("I32", (64,)),
}


def test_a_plain_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "plain")
    (info,) = find_models([tmp_path])
    assert (info.name, info.path, info.architecture, info.format, info.bpw) == ("plain", path, "LlamaForCausalLM", "f16", 16.0)
    assert info.parameters == 10 * 4 + 4 * 4 + 4
    assert info.context == 4096 and info.has_template and info.problem is None
    assert info.size == sum(len(data) for data in model_files().values())


def test_exl2_and_gptq(tmp_path: Path) -> None:
    write_model(tmp_path / "exl2", model_files(EXL2))
    write_model(tmp_path / "gptq", model_files(GPTQ, tie_word_embeddings=False))
    exl2, gptq = find_models([tmp_path])
    assert exl2.format == "exl2" and gptq.format == "gptq"
    # weights of the layer's one linear: 64 x 32; its bits: packed words, permutation, scales and groups
    assert exl2.bpw == 8 * (4 * 8 * 32 + 4 * 64 + 4 * 4 + 2 + 4) / (64 * 32)
    assert gptq.bpw == 8 * (4 * 8 * 32 + 4 * 4 + 2 * 32 + 4 * 64) / (64 * 32)
    assert exl2.layers == (exl2.bpw,)
    assert exl2.parameters == 10 * 64 + 64 * 32  # the head is a copy of the embedding
    assert gptq.parameters == 10 * 64 + 64 * 32


def test_the_starter_model_is_described_as_it_is(starter_model: Path) -> None:
    started = time.perf_counter()
    info = read_model(starter_model)
    assert time.perf_counter() - started < 0.5  # it takes milliseconds; reading the weights would take longer
    assert (info.format, info.bpw, info.parameters, info.context) == ("f16", 16.0, 134_515_008, 8192)
    assert info.architecture == "LlamaForCausalLM" and info.has_template and info.problem is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config.json": None}, "there is no config.json"),
        ({"config.json": b"{"}, "config.json cannot be read"),
        ({"config.json": b"[]"}, "does not hold a JSON object"),
        ({"config.json": b"{}"}, "names no architecture"),
        ({"tokenizer.json": None}, "there is no tokenizer.json"),
        ({"model.safetensors": None}, "there is no .safetensors file"),
        ({"model.safetensors": b"\x00" * 20}, "the header claims 0 bytes"),
    ],
)
def test_broken_directories_are_listed_with_what_is_wrong(tmp_path: Path, change: dict[str, bytes | None], words: str) -> None:
    files = {name: data for name, data in {**model_files(), **change}.items() if data is not None}
    write_model(tmp_path / "bad", files)
    write_model(tmp_path / "good")
    bad, good = find_models([tmp_path])
    assert bad.problem is not None and words in bad.problem and "\n" not in bad.problem
    assert good.problem is None


def test_what_is_no_model_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    write_model(tmp_path / "half.partial")
    write_model(tmp_path / ".hidden")
    assert find_models([tmp_path, tmp_path / "nowhere"]) == []


def test_models_one_level_down_and_a_folder_that_is_a_model(tmp_path: Path) -> None:
    write_model(tmp_path / "owner" / "repo")
    alone = write_model(tmp_path / "elsewhere" / "alone")
    assert [info.name for info in find_models([tmp_path / "elsewhere" / "alone", tmp_path])] == ["alone", "elsewhere/alone", "owner/repo"]
    assert resolve("owner/repo", [tmp_path]) == tmp_path / "owner" / "repo"
    assert read_model(alone).name == "alone"


def test_the_first_folder_wins(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "m")
    write_model(tmp_path / "b" / "m")
    (info,) = find_models([tmp_path / "b", tmp_path / "a"])
    assert info.path == tmp_path / "b" / "m" == resolve("m", [tmp_path / "b", tmp_path / "a"])


def test_a_changed_model_is_read_again(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    assert read_model(path).format == "f16"
    (path / "model.safetensors").write_bytes(safetensors_bytes({**PLAIN, "model.layers.0.self_attn.q_proj.weight": ("F32", (4, 4))}))
    assert read_model(path).format == "f32"


def test_resolve_by_name_path_and_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "models" / "Owner_Repo_4.0bpw")
    folders = [tmp_path / "models"]
    assert resolve("Owner_Repo_4.0bpw", folders) == path
    assert resolve("Owner/Repo@4.0bpw", folders) == path
    assert resolve("owner_repo_4.0bpw", folders) == path
    assert resolve(str(path), []) == path
    monkeypatch.chdir(tmp_path / "models")
    assert resolve("./Owner_Repo_4.0bpw", []).samefile(path)


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    with pytest.raises(ModelError, match="there is no model 'two'; there are one"):
        resolve("two", [tmp_path])
    with pytest.raises(ModelError, match="no models in") as caught:
        resolve("two", [tmp_path / "nowhere"])
    assert "models get smollm2-135m" in caught.value.hint
    with pytest.raises(ModelError):
        resolve("", [tmp_path])
