"""Fetching from the hub, against a stand-in on localhost and the real huggingface_hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from model_files import model_files

from exltui.errors import Cancelled, DownloadError
from exltui.models import transfer
from exltui.models.catalog import find_models, read_model
from exltui.models.hub import Repository, get_from_hub, list_branches

LARGE = {"model.embed_tokens.weight": ("F16", (3_000_000, 4)), "model.layers.0.self_attn.q_proj.weight": ("F16", (4, 4))}  # 24 MB
REPOSITORIES = {
    "somebody/tiny": {
        "main": {**model_files(), "README.md": b"# tiny", "pytorch_model.bin": b"a pickle", "original/params.json": b"{}"},
        "4.0bpw": model_files(rope_theta=1.0),
        "broken": {**model_files(), "model.safetensors": b"\xff" * 100},
    },
    "somebody/large": {"main": model_files(LARGE)},
    "somebody/pickles": {"main": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(REPOSITORIES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


def get(name: str, folder: Path) -> Path:
    return get_from_hub(name, folder, lambda *_: None, lambda: False)


def test_fetches_what_a_model_needs_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = get_from_hub("somebody/tiny", tmp_path / "models", lambda *step: steps.append(step), lambda: False)
    assert path == tmp_path / "models" / "somebody_tiny"
    files = REPOSITORIES["somebody/tiny"]["main"]
    kept = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md"}
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {name: files[name] for name in kept}
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["somebody_tiny"]  # nothing is left beside it
    total = sum(len(files[name]) for name in kept)
    assert steps[-1] == ("downloading", total, total)


def test_branches_are_listed_by_size(hub: HubServer) -> None:
    branches = list_branches("somebody/tiny")
    sizes = [size for _, size in branches]
    assert {name for name, _ in branches} == {"main", "4.0bpw", "broken"}
    assert sizes == sorted(sizes)
    assert list_branches("somebody/pickles") == []
    with pytest.raises(DownloadError, match="no such repository"):
        list_branches("somebody/nothing")


def test_a_revision_has_its_own_directory(hub: HubServer, tmp_path: Path) -> None:
    path = get("somebody/tiny@4.0bpw", tmp_path)
    assert path.name == "somebody_tiny_4.0bpw"
    assert (path / "config.json").read_bytes() == REPOSITORIES["somebody/tiny"]["4.0bpw"]["config.json"]


def test_a_model_that_is_there_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    get("somebody/tiny", tmp_path)
    hub.requests.clear()
    get("somebody/tiny", tmp_path)
    assert hub.requests == []


def test_a_stopped_download_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.stall_at = 15_000_000
    kept = 0

    def cancelled() -> bool:
        nonlocal kept
        kept = max((file.stat().st_size for file in tmp_path.rglob("*.part")), default=0)
        return hub.stalled.is_set() and kept >= 10_000_000

    with pytest.raises(Cancelled):
        get_from_hub("somebody/large", tmp_path, lambda *_: None, cancelled)
    assert find_models([tmp_path]) == []  # half a model is none
    hub.release()
    path = get("somebody/large", tmp_path)
    assert (path / "model.safetensors").read_bytes() == REPOSITORIES["somebody/large"]["main"]["model.safetensors"]
    first, second = hub.ranges("model.safetensors")
    assert first is None or first.startswith("bytes=0-")
    assert second is not None and int(second.removeprefix("bytes=").split("-")[0]) >= kept


def test_a_repository_that_changed_meanwhile_is_fetched_anew(hub: HubServer, tmp_path: Path) -> None:
    partial = tmp_path / "somebody_tiny.partial"
    partial.mkdir()
    (partial / ".commit").write_text("another commit")
    (partial / "config.json").write_text("old")
    (partial / "model.safetensors.part").write_text("old")
    path = get("somebody/tiny", tmp_path)
    files = REPOSITORIES["somebody/tiny"]["main"]
    assert all((path / name).read_bytes() == files[name] for name in ("config.json", "model.safetensors"))


def test_a_model_with_terms_says_so(hub: HubServer, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(DownloadError, match="accept the terms") as caught:
        get("somebody/tiny", tmp_path)
    assert "HF_TOKEN" in caught.value.hint


def test_damaged_files_are_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.garble = True
    with pytest.raises(DownloadError, match="arrived damaged"):
        get("somebody/tiny", tmp_path)
    hub.garble = False
    path = get("somebody/tiny", tmp_path)
    assert (path / "config.json").read_bytes() == REPOSITORIES["somebody/tiny"]["main"]["config.json"]


def test_a_broken_connection_says_so_and_keeps_what_was_fetched(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DownloadError) as caught:
        get("somebody/tiny", tmp_path)
    assert "somebody/tiny could not be fetched" in str(caught.value) and "try again" in caught.value.hint
    assert not (tmp_path / "somebody_tiny").exists()


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("somebody/nothing", "there is no such repository, or it is private", "spelling"),
        ("somebody/tiny@7.5bpw", "it has no revision 7.5bpw", "branches"),
        ("somebody/pickles", "no .safetensors files, only .bin, .json", "EXL2 or safetensors"),
        ("somebody/tiny@broken", "header claims", "EXL2 or safetensors"),
        ("tiny", "'tiny' is not the name of a model", "OWNER/REPO"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(hub: HubServer, tmp_path: Path, name: str, words: str, hint: str) -> None:
    with pytest.raises(DownloadError) as caught:
        get(name, tmp_path)
    assert words in str(caught.value) and hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("[!h]*")) == []  # all but the library's own folder


@pytest.mark.parametrize("name", ["../up/down", "a/../b", "a/b@../c", "a/b@/etc", "/a/b", "a/b/c", "a\\b/c", "a/b@", "a/b c", "a/.b", ""])
def test_names_cannot_lead_out_of_the_models_folder(name: str) -> None:
    with pytest.raises(DownloadError):
        Repository.parse(name)


def test_names_of_files_from_outside_are_plain() -> None:
    from exltui.models.hub_child import _wanted

    assert all(map(_wanted, ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "LICENSE", "merges.txt"]))
    assert not any(map(_wanted, ["../config.json", "a/b.json", ".hidden.json", "a\\b.json", "*.json", "model.bin", "run.py", "x\n.json"]))


def test_one_download_of_a_model_at_a_time(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with transfer.aside(tmp_path / "m") as partial:
            (partial / "x").write_text("x")
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(DownloadError, match="another exltui"), transfer.aside(tmp_path / "m"):
        pass
    leave.set()
    thread.join(10)
    assert (tmp_path / "m" / "x").read_text() == "x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_too_little_room_is_said_before_anything_is_fetched(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    hub.stall_at = 1_000_000  # so that the child is still busy when the plan is read
    started = time.monotonic()
    with pytest.raises(DownloadError, match="0 MB free, 24 MB are needed"):
        get("somebody/large", tmp_path)
    assert time.monotonic() - started < 30
    assert read_model(tmp_path / "somebody_large").problem is not None
