"""settings.toml: read, refused with the key's name, changed with its comments kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from exltui import paths
from exltui.errors import SettingsError
from exltui.protocol import LoadOptions, Sampling
from exltui.settings import Settings, preset_names, read_preset, read_settings, remember, save_preset

FULL = """\
# mine
models_dirs = ["~/models", "/data/models"]
theme = "light"   # for the day
model = "smollm2-135m"

[sampling]
temperature = 1
top_k = 20
seed = 7

[load]
length = 4096
cache = "q8"
rope_alpha = 2.5

[keys]
stop = "ctrl+x"
chat.new = "f6"
"chat.stop" = "f7"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "nothing.toml") == Settings()
    assert read_settings() == Settings()  # the tests' own home has none


def test_every_setting_is_read(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, FULL))
    assert settings.models_dirs == ("~/models", "/data/models")
    assert (settings.theme, settings.model, settings.last_model) == ("light", "smollm2-135m", "")
    assert settings.sampling == Sampling(temperature=1.0, top_k=20, seed=7)
    assert isinstance(settings.sampling.temperature, float)
    assert settings.load == LoadOptions(length=4096, cache="q8", rope_alpha=2.5)
    assert settings.keys == {"stop": "ctrl+x", "chat.new": "f6", "chat.stop": "f7"}


def test_folders_in_their_order(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, FULL))
    assert settings.folders([Path("/first")]) == [Path("/first"), paths.models_dir(), Path("~/models").expanduser(), Path("/data/models")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("theme = 3", "theme must be a text in quotes, it is 3"),
        ("colour = 'red'", "colour is not a setting"),
        ("models_dirs = 'x'", "models_dirs must be a list"),
        ("models_dirs = ['x', 1]", "models_dirs, entry 2 must be a text"),
        ("sampling = 1", "sampling must be a table"),
        ("[sampling]\ntemperature = 'hot'", "sampling.temperature must be a number"),
        ("[sampling]\ntop_k = 1.5", "sampling.top_k must be a whole number"),
        ("[sampling]\ntop_k = true", "sampling.top_k must be a whole number"),
        ("[sampling]\nheat = 1", "sampling.heat is not a setting"),
        ("[load]\nthreads = '4'", "load.threads must be a whole number"),
        ("[keys]\nstop = 1", "keys.stop must be a text"),
        ("[keys]\nchat.stop = 1", "keys.chat.stop must be a text"),
        ("theme = ", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert words in str(caught.value) and str(file) in str(caught.value) and caught.value.hint


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"theme = '\xff'")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(file)
    with pytest.raises(SettingsError, match="cannot be saved"):
        remember("theme", "dark", file)
    assert file.read_bytes() == b"theme = '\xff'"


def test_a_change_keeps_all_else(tmp_path: Path) -> None:
    file = write(tmp_path, FULL)
    remember("theme", "dark", file)
    assert file.read_text() == FULL.replace('"light"', '"dark"')
    remember("last_model", "/data/models/other", file)
    remember("models_dirs", ("/a",), file)
    settings = read_settings(file)
    assert (settings.last_model, settings.models_dirs, settings.keys) == (
        "/data/models/other",
        ("/a",),
        {"stop": "ctrl+x", "chat.new": "f6", "chat.stop": "f7"},
    )
    assert file.read_text().startswith("# mine\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings.toml"]


def test_sampling_is_written_where_it_differs_from_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, FULL)
    wanted = Sampling(temperature=0.3, min_p=0.1)
    remember("sampling", wanted, file)
    assert read_settings(file).sampling == wanted
    assert "top_k" not in file.read_text() and "seed" not in file.read_text()
    remember("sampling", Sampling(), file)
    assert read_settings(file).sampling == Sampling()


def test_the_first_setting_makes_file_and_folder() -> None:
    remember("theme", "light")
    assert paths.settings_file().read_text() == 'theme = "light"\n'
    assert read_settings().theme == "light"
    before = paths.settings_file().stat().st_mtime_ns
    remember("theme", "light")  # nothing changes, nothing is written
    assert paths.settings_file().stat().st_mtime_ns == before
    paths.settings_file().unlink()


def test_a_file_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="theme cannot be saved") as caught:
        remember("theme", "dark", tmp_path / "file" / "settings.toml")
    assert caught.value.hint


# ── presets ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shipped = paths.presets_dirs()[1]
    monkeypatch.setattr(paths, "presets_dirs", lambda: (tmp_path / "presets", shipped))
    return tmp_path / "presets"


def test_a_saved_preset_is_read_back_and_holds_only_what_differs(own_presets: Path) -> None:
    mine = Sampling(temperature=1.3, mirostat=True, mirostat_mu=2.5, order="min_p, temperature", dry_sequence_breakers="\n")
    file = save_preset("my story", mine)
    assert read_preset("my story") == read_preset(str(file)) == mine
    assert "top_k" not in file.read_text() and "my story" in preset_names()
    save_preset("greedy", Sampling(top_k=2))
    assert read_preset("greedy") == Sampling(top_k=2), "one's own comes before that of the program"


def test_every_preset_that_ships_can_be_used(own_presets: Path) -> None:
    assert {"greedy", "creative", "precise"} <= set(preset_names())
    found = [read_preset(name) for name in preset_names()]
    assert len(set(found)) == len(found) and Sampling() not in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature = 1", "temprature is not a setting"),
        ("top_k = 1.5", "top_k must be a whole number"),
        ("top_p = 7", "top_p is 7.0"),
        ("=", "cannot be read"),
    ],
)
def test_a_broken_preset_is_refused_with_its_file_and_key(own_presets: Path, text: str, words: str) -> None:
    own_presets.mkdir()
    (own_presets / "bad.toml").write_text(text)
    with pytest.raises(SettingsError, match=f"bad.toml.*{words}"):
        read_preset("bad")


def test_a_preset_that_is_not_there_names_those_that_are(own_presets: Path) -> None:
    for name in ("nothing", "../presets/greedy", "nothing.toml"):
        with pytest.raises(SettingsError, match="no sampler preset") as caught:
            read_preset(name)
        assert "greedy" in caught.value.hint
    for name in ("", "a/b", "..", "x\n"):
        with pytest.raises(SettingsError, match="cannot be the name"):
            save_preset(name, Sampling())
