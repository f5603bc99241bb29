"""How a model is loaded, as a form that is made from the dataclass that it fills; and rows for the settings form."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content

from exltui.app.screens.form import FormScreen, Row
from exltui.app.screens.loader_lines import plan_lines
from exltui.errors import SettingsError
from exltui.models.catalog import ModelInfo
from exltui.protocol import LoadOptions
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

LENGTHS = (None, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LOAD_HELP = {
    "device": "Where the model runs; empty: the first GPU if there is one.",
    "length": "Context in tokens; empty: the model's own, at most 8,192.",
    "cache_tokens": "Tokens that all jobs together may have; empty: as many as the context.",
    "reproducible": "A seed gives the same tokens whatever else runs; slower.",
    "max_batch": "Jobs that run at once.",
    "host_cache": "GB of host memory for pages that the cache has no room for.",
    "cache": "Bits of the key/value cache: less memory, a little less exact.",
    "chunk_size": "Prompt tokens read in one pass.",
    "threads": "Processor threads; empty: as many as there are cores.",
    "rope_scale": "Linear scale of the positions, for a context longer than the model was trained with.",
    "rope_alpha": "NTK alpha, the other way to a longer context.",
    "rope_yarn": "YaRN factor, from the trained context on.",
    "draft_model": "A smaller model of the same vocabulary that guesses ahead.",
    "load_as": "How plain weights are held on the processor; empty: q4 where nothing is lost.",
    "ngram_draft": "Guess ahead from what the text had before.",
    "activations": "Of quantised weights on the processor; empty: int8.",
    "lora": "Adapters that are loaded with the model: DIR or DIR:SCALE, with commas.",
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "length": LENGTHS,
    "cache": ("fp16", "q8", "q6", "q4"),
    "load_as": (None, "q4", "q8", "f16"),
    "activations": (None, "int8", "fp32"),
}


def typed_row(key: str, hint: object, help: str, group: str, choices: Sequence[Any] = ()) -> Row:
    """The row for a field of this kind."""
    kind = next((k for k in typing.get_args(hint) if k is not type(None)), str) if isinstance(hint, types.UnionType) else hint
    label = key.replace("_", " ")
    if kind is bool:
        return Row(key, label, help, group, (False, True), show=lambda value: "yes" if value else "no")
    if choices:
        return Row(key, label, help, group, tuple(choices), show=shown)
    return Row(key, label, help, group, parse=parser(label, kind), show=shown)


def shown(value: Any) -> str:
    """A value as the form writes it."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return ", ".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parser(label: str, kind: object) -> Callable[[str], Any]:
    """Makes a value of this kind from what was typed; raises SettingsError."""

    def parse(text: str) -> Any:
        try:
            if kind is int:
                return int(text.replace(",", ""))
            if kind is float:
                return float(text)
        except ValueError:
            raise SettingsError(f"{label}: {text!r} is not a {'whole number' if kind is int else 'number'}.") from None
        if typing.get_origin(kind) is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text

    return parse


def load_rows(devices: Sequence[str], drafts: Sequence[str]) -> list[Row]:
    """One row for each of the options of a load. ``drafts``: directories of models that may guess ahead."""
    hints = typing.get_type_hints(LoadOptions)
    choices = {**CHOICES, "device": (None, *devices), "draft_model": (None, *drafts) if drafts else ()}
    return [
        typed_row(field.name, hints[field.name], LOAD_HELP.get(field.name, ""), "Loading", choices.get(field.name, ()))
        for field in dataclasses.fields(LoadOptions)
    ]


def as_values(data: Any) -> dict[str, Any]:
    """The fields of a dataclass, one level deep."""
    return {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}


def load_form(app: ExltuiApp, model: ModelInfo | None) -> FormScreen:
    """The options of the next load; the last line loads the model."""

    def changed(key: str, value: Any) -> None:
        app.parts.options = dataclasses.replace(app.parts.options, **{key: value})
        app.remember("load", app.parts.options)

    def about(values: dict[str, Any]) -> list[Content]:
        usable = model is not None and not model.problem
        return plan_lines(model, LoadOptions(**values), app.observed, 90) if model is not None and usable else []

    rows = load_rows(app.observed.host.devices if app.observed.host else (), app.desk.drafts(model))
    title = f"Load {one_line(model.name, 50)}" if model is not None else "Load options"
    done = "Load it with these options" if model is not None and not model.problem else ""
    return FormScreen(title, rows, as_values(app.parts.options), as_values(LoadOptions()), changed=changed, about=about, done=done)
