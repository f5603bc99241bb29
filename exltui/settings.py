"""The settings file, settings.toml: read into one dataclass, and changed in place so that a person's comments stay. Sampler presets.

Every key may be missing. A key that is not known or has a value of another kind is refused with the file's and the key's name.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exltui import paths, sampling
from exltui.errors import SamplingError, SettingsError
from exltui.protocol import LoadOptions, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a table"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What settings.toml says. A text that is "" is not set."""

    models_dirs: tuple[str, ...] = ()  # folders with models, beside exltui's own
    theme: str = "dark"
    model: str = ""  # name or path of the model to load at the start
    last_model: str = ""  # the one that was loaded last; written by the app, used when ``model`` is not set
    sampling: Sampling | None = None  # the person's own; None: what the files of each model recommend
    load: LoadOptions = field(default_factory=LoadOptions)
    keys: dict[str, str] = field(default_factory=dict)  # action: keys, as the help screen names them
    you: str = ""  # what the person is called: above their messages, and by characters
    system: str = ""  # the system prompt of a new chat
    max_new_tokens: int | None = None  # longest reply; None: until the context is full
    kept_pages: float = 2.0  # GB of keys and values of chats on the disk, so that they go on without being read again; 0: none
    titles: bool = True  # whether the model gives chats their titles
    signs: str = "auto"  # "unicode", "ascii", or by what the terminal says

    def folders(self, extra: typing.Sequence[Path] = ()) -> list[Path]:
        """The models folders: ``extra`` from the command line, then exltui's own, then those of the file. Downloads go to the first."""
        return [*extra, paths.models_dir(), *(Path(name).expanduser() for name in self.models_dirs)]


def read_settings(file: Path | None = None) -> Settings:
    """The settings in ``file`` (the user's if None); the defaults if there is none. Raises SettingsError."""
    file = file or paths.settings_file()
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}", "mend the file, or remove it to get the defaults back") from error
    return _build(Settings, values, file, "")


def preset_names() -> list[str]:
    """The names of all sampler presets, the user's and those that ship with exltui."""
    return sorted({path.stem for folder in paths.presets_dirs() for path in folder.glob("*.toml")})


def read_preset(name: str) -> Sampling:
    """A preset by its name, or by the path of a .toml file with the keys of ``[sampling]``. Raises SettingsError."""
    places = [Path(name).expanduser()] if name.endswith(".toml") else [folder / f"{name}.toml" for folder in paths.presets_dirs()]
    file = next((place for place in places if place.is_file()), None)
    if file is None or (not name.endswith(".toml") and name not in preset_names()):  # a name must not lead out of the folders
        raise SettingsError(f"there is no sampler preset {name!r}", f"known are {', '.join(preset_names())}; or give a .toml file")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}", "mend the file") from error
    found: Sampling = _build(Sampling, values, file, "")
    try:
        sampling.validate(found)
    except SamplingError as error:
        raise SettingsError(f"{file}: {error}", error.hint) from error
    return found


def save_preset(name: str, values: Sampling) -> Path:
    """Keep ``values`` as a preset of the user's -> its file, which holds what differs from the defaults. Raises SettingsError."""
    if not name or name.strip(". ") != name or any(sign in name for sign in '/\\:*?"<>|') or not name.isprintable():
        raise SettingsError(f"{name!r} cannot be the name of a preset", "use letters, digits, blanks and dashes")
    import tomlkit

    changed = {
        each.name: now for each in dataclasses.fields(values) if (now := getattr(values, each.name)) != getattr(Sampling(), each.name)
    }
    file = paths.presets_dirs()[0] / f"{name}.toml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_text(tomlkit.dumps(changed), encoding="utf-8")
        new.replace(file)
    except OSError as error:
        raise SettingsError(f"{file}: the preset cannot be saved: {error}", "check the folder and the room on its disk") from error
    return file


def delete_preset(name: str) -> bool:
    """Take away one of the user's presets; False if there is none of that name. Raises SettingsError."""
    file = paths.presets_dirs()[0] / f"{name}.toml"
    if name not in preset_names() or not file.is_file():
        return False
    try:
        file.unlink()
    except OSError as error:
        raise SettingsError(f"{file}: cannot be deleted: {error}", "check who owns the folder") from error
    return True


def remember(key: str, value: Any, file: Path | None = None) -> None:
    """Set one key of the settings file and keep all else in it, comments included. A dataclass becomes a table; of it only what differs
    from the defaults is written. Raises SettingsError if the file cannot be read or written.
    """
    import tomlkit
    import tomlkit.exceptions

    file = file or paths.settings_file()
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        document = tomlkit.parse(text)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _set_table(document, key, value)
        elif value is None:
            document.pop(key, None)
        else:
            document[key] = list(value) if isinstance(value, tuple) else value
        changed = tomlkit.dumps(document)
        if changed == text:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_text(changed, encoding="utf-8")
        new.replace(file)
    except (OSError, UnicodeDecodeError, tomlkit.exceptions.TOMLKitError) as error:
        raise SettingsError(f"{file}: {key} cannot be saved: {error}", "check the file and the room on its disk") from error


def _set_table(document: Any, key: str, value: Any) -> None:
    import tomlkit

    table = document.get(key)
    if table is None:
        table = document[key] = tomlkit.table()
    for each in dataclasses.fields(value):
        now, default = getattr(value, each.name), getattr(type(value)(), each.name)
        if now == default:
            table.pop(each.name, None)
        elif table.get(each.name) != now:
            table[each.name] = now


def _build(cls: type, values: dict[str, Any], file: Path, above: str) -> Any:
    """The dataclass ``cls`` from a table; ``above`` is the table's name with a dot, or ""."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise SettingsError(f"{file}: {above}{unknown[0]} is not a setting", f"known are {', '.join(sorted(hints))}")
    return cls(**{key: _value(hints[key], value, file, above + key) for key, value in values.items()})


def _value(hint: Any, value: Any, file: Path, key: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), _of(dict, value, file, key), file, f"{key}.")
    origin = typing.get_origin(hint)
    if origin is tuple:
        return tuple(_of(str, item, file, f"{key}, entry {i + 1}") for i, item in enumerate(_of(list, value, file, key)))
    if origin is dict:
        return {name: _of(str, item, file, f"{key}.{name}") for name, item in _flat(_of(dict, value, file, key)).items()}
    return float(_of(float, value, file, key)) if hint is float else _of(hint, value, file, key)


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """``chat.new = "f6"`` is a table within a table to TOML, and one name here."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value})
    return flat


def _of(kind: type, value: Any, file: Path, key: str) -> Any:
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise SettingsError(f"{file}: {key} must be {WORDS[kind]}, it is {value!r}", "docs/settings.md lists every setting")
    return value
