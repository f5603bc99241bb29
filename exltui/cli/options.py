"""What the commands share: the options of a load and of the sampler, the models folders, and what the app is started with."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exltui.cli.source import read_text
from exltui.errors import ExltuiError, ModelError, SettingsError
from exltui.models.catalog import resolve_adapter
from exltui.protocol import LoadOptions, Sampling
from exltui.settings import Settings, read_preset, read_settings


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the app is started with: the command line over the settings file over the defaults."""

    model: str = ""  # name or path of the model to load first; "": the only one, or ask
    session: str = ""  # id of the chat to open first
    theme: str = "dark"
    models_dirs: tuple[Path, ...] = ()  # where to look for models; downloads go to the first
    load: LoadOptions = field(default_factory=LoadOptions)
    sampling: Sampling | None = None  # None: what the model's files recommend
    linear: bool = False  # line by line, without a screen
    settings: Settings = field(default_factory=Settings)  # what else the file says
    problems: tuple[SettingsError, ...] = ()  # what is wrong with the settings file; the defaults are used then


def app_options(options: argparse.Namespace) -> AppOptions:
    """The app must start whatever the settings file says, so its errors are handed on."""
    problems: tuple[SettingsError, ...] = ()
    settings = Settings()
    try:
        settings = read_settings()
    except SettingsError as error:
        problems = (error,)
    return AppOptions(
        model=options.model or settings.model or settings.last_model,
        session=options.session or "",
        theme=options.theme or settings.theme,
        models_dirs=tuple(model_folders(options, settings)),
        load=load_options(options, settings),
        sampling=settings.sampling,
        settings=settings,
        linear=options.linear,
        problems=problems,
    )


def model_folders(options: argparse.Namespace, settings: Settings | None = None) -> list[Path]:
    """Where to look for models, --models-dir first."""
    extra = [Path(name).expanduser() for name in getattr(options, "models_dir", None) or ()]
    return (settings or read_settings()).folders(extra)


def load_options(options: argparse.Namespace, settings: Settings | None = None) -> LoadOptions:
    """The load flags that were given, over those of the settings file."""
    settings = settings or read_settings()
    given = _given(options, LoadOptions)
    if "lora" in given:
        given["lora"] = tuple(resolve_adapter(use, model_folders(options, settings)) for use in given["lora"])
    return dataclasses.replace(settings.load, **given)


def sampling_options(options: argparse.Namespace) -> Sampling:
    """The flags that were given, over --preset or exltui's defaults: what the app remembers does not change what a script gets."""
    given = _given(options, Sampling)
    if options.greedy:
        given["temperature"] = 0.0
    return dataclasses.replace(read_preset(options.preset) if options.preset else Sampling(), **given)


def job_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of JobSpec that the flags of a job name. Raises ExltuiError for a file that cannot be read or a list that is none."""
    schema = options.json_schema
    given = {
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "loop_window": options.loop_window,
        "loop_repeats": options.loop_repeats,
        "stop_strings": tuple(options.stop),
        "banned_strings": tuple(options.ban),
        "banned_tokens": None if options.banned_tokens is None else _ids("--banned-tokens", options.banned_tokens),
        "allowed_tokens": None if options.allowed_tokens is None else _ids("--allowed-tokens", options.allowed_tokens),
        "logit_bias": tuple(_bias(text) for text in options.logit_bias),
        "negative_prompt": options.negative_prompt,
        "token_healing": options.token_healing,
        "json_schema": schema if schema is None or schema.lstrip().startswith("{") else read_text(schema),
        "regex": options.regex,
        "choices": tuple(options.choice),
        "grammar": None if options.grammar is None else read_text(options.grammar),
    }
    return {name: value for name, value in given.items() if value is not None}


def _ids(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ExltuiError(f"{flag}: {text!r} is no list of token ids", "write it as 5,17,203") from None


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition(":")
    try:
        return int(token), float(value)
    except ValueError:
        raise ExltuiError(f"--logit-bias: {text!r} is no token and number", "write it as 5:-2.5") from None


def _given(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    values = {each.name: getattr(options, each.name, None) for each in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def model_path(options: argparse.Namespace) -> Path:
    """The directory of the model that -m names, or else the settings file. Raises ModelError."""
    from exltui.models.catalog import resolve

    settings = read_settings()
    name = getattr(options, "model", None) or settings.model
    if not name:
        raise ModelError("no model is named", "say which with -m NAME; exltui models list shows what there is")
    return resolve(name, model_folders(options, settings))
