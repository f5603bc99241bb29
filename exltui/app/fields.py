"""The sampler settings as the sampler pane shows them: how a value is written, typed and stepped. What there is: ``sampling.SETTINGS``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from exltui.app.figures import DASH
from exltui.errors import SamplingError
from exltui.protocol import Sampling
from exltui.sampling import SETTINGS, Setting, Value

WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
COMMON = ("temperature", "top_k", "top_p", "min_p", "token_repetition_penalty", "seed")  # always in sight
EMPTY = {"seed": "random", "mirostat_mu": "2 tau", "order": "usual", "token_repetition_range": "all", "dry_range": "all"}


@dataclass(frozen=True)
class Field:
    """One setting in the pane."""

    setting: Setting

    @property
    def name(self) -> str:
        return self.setting.name

    @property
    def label(self) -> str:
        return self.setting.label

    def text(self, value: Value) -> str:
        """The value as the pane shows it."""
        kind = self.setting.kind
        if value in (None, "") or (self.name, value) in (("token_repetition_range", -1), ("dry_range", 0)):
            return EMPTY.get(self.name, DASH)
        if kind == "switch":
            return "on" if value else "off"
        if kind == "text":
            return str(value).encode("unicode_escape").decode("ascii")
        return str(int(value)) if kind == "whole" else f"{value:.2f}"

    def parse(self, text: str) -> Value:
        """The value that a person typed. Raises SamplingError that names the setting and its range."""
        word, kind = text.strip().lower(), self.setting.kind
        if kind == "text":
            return _unescaped(text)
        if kind == "switch":
            if word not in WORDS:
                raise SamplingError(f"{self.label}: {text!r} is neither on nor off.")
            return WORDS[word]
        if word == "off" and self.setting.off is not None:
            return self.setting.off
        if word in ("", EMPTY.get(self.name)):
            return self.setting.default
        try:
            value: float = int(word) if kind == "whole" else float(word)
        except ValueError:
            what = "whole number" if kind == "whole" else "number"
            raise SamplingError(f"{self.label}: {text!r} is not a {what}.", self.range()) from None
        if not self.setting.low <= value <= self.setting.high:
            raise SamplingError(f"{self.label}: {text} is outside {self.setting.low:g} to {self.setting.high:g}.", self.range())
        return value

    def stepped(self, value: Value, steps: int) -> Value:
        """The value ``steps`` steps up or down, kept in the range and free of rounding dust."""
        kind = self.setting.kind
        if kind == "text":
            return value
        if kind == "switch":
            return not value
        if value is None:
            return None if steps < 0 else self.setting.low
        moved = min(self.setting.high, max(self.setting.low, float(value) + steps * self.setting.step))
        if kind == "whole":
            return min(int(self.setting.high), max(int(self.setting.low), int(value) + steps * int(self.setting.step)))
        return round(moved, 4)

    def range(self) -> str:
        """The range, the unit and the off value, for the help line."""
        setting = self.setting
        if setting.kind == "text":
            return "text"
        if setting.kind == "switch":
            return "on or off"
        high = f"{setting.high:,.0f}" if setting.kind == "whole" else f"{setting.high:g}"
        off = "" if setting.off is None else f"off at {self.text(setting.off)}"
        return " · ".join(part for part in (f"{setting.low:g} to {high}", setting.unit, off) if part)


FIELDS = tuple(Field(setting) for setting in SETTINGS if setting.group != "guidance")  # a chat has no negative prompt
BY_NAME = {field.name: field for field in FIELDS}


def grouped() -> list[tuple[str, list[Field]]]:
    """The settings in the order of the pane: the common ones, then the others by group."""
    groups: dict[str, list[Field]] = {}
    for field in FIELDS:
        if field.name not in COMMON:
            groups.setdefault(field.setting.group, []).append(field)
    alone = [field for fields in groups.values() if len(fields) == 1 for field in fields]
    several = [(group, fields) for group, fields in groups.items() if len(fields) > 1]
    return [("", [BY_NAME[name] for name in COMMON] + alone), *several]


def changed(sampling: Sampling, defaults: Sampling) -> set[str]:
    """Names of the settings that differ from ``defaults``."""
    return {field.name for field in FIELDS if getattr(sampling, field.name) != getattr(defaults, field.name)}


def replaced(sampling: Sampling, name: str, value: Value) -> Sampling:
    """``sampling`` with one setting changed."""
    changes: dict[str, Any] = {name: value}
    return dataclasses.replace(sampling, **changes)


def summary(sampling: Sampling) -> str:
    """One short line: what a reply is sampled with."""
    if sampling.temperature == 0:
        return "greedy"
    parts = [f"temp {sampling.temperature:g}"]
    for name in ("top_k", "top_p", "min_p"):
        value = getattr(sampling, name)
        if value != BY_NAME[name].setting.off:
            parts.append(f"{BY_NAME[name].label} {BY_NAME[name].text(value)}")
    return " · ".join(parts)


def _unescaped(text: str) -> str:
    r"""``text`` with ``\n``, ``\t`` and ``\\`` read as what they stand for."""
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")
