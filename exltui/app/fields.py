"""The sampler settings as the sampler pane shows them: range, step, off value and one line of help each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from exltui.app.figures import DASH
from exltui.errors import SamplingError
from exltui.protocol import Sampling

Value = float | int | None


@dataclass(frozen=True)
class Field:
    """One setting of ``protocol.Sampling``. ``off`` is the value at which it does nothing."""

    name: str
    label: str
    low: float
    high: float
    step: float
    off: Value
    help: str
    whole: bool = False
    group: str = "shape"

    def text(self, value: Value) -> str:
        """The value as the pane shows it."""
        if self.name == "seed":
            return "random" if value is None else str(value)
        if self.name == "token_repetition_range" and value == -1:
            return "all"
        if value is None:
            return DASH
        return str(int(value)) if self.whole else f"{value:.2f}"

    def parse(self, text: str) -> Value:
        """The value that a person typed. Raises SamplingError that names the setting and its range."""
        text = text.strip().lower()
        if text == "off":
            return self.off
        if self.name == "seed" and text in ("", "random"):
            return None
        if self.name == "token_repetition_range" and text == "all":
            return -1
        try:
            value: float = int(text) if self.whole else float(text)
        except ValueError:
            raise SamplingError(f"{self.label}: {text!r} is not a {'whole number' if self.whole else 'number'}.", self.range()) from None
        if not self.low <= value <= self.high:
            raise SamplingError(f"{self.label}: {text} is outside {self.low:g} to {self.high:g}.", self.range())
        return value

    def stepped(self, value: Value, steps: int) -> Value:
        """The value ``steps`` steps up or down, kept in the range and free of rounding dust."""
        if self.name == "seed":
            return max(0, (0 if value is None else int(value)) + steps) if value is not None or steps > 0 else None
        moved = min(self.high, max(self.low, (value or 0) + steps * self.step))
        return int(moved) if self.whole else round(moved, 4)

    def range(self) -> str:
        """The range and the off value, for the help line."""
        low, high = f"{self.low:g}", f"{self.high:,.0f}" if self.whole else f"{self.high:g}"
        off = "random" if self.name == "seed" else "" if self.off is None else f"off at {self.text(self.off)}"
        return " · ".join(part for part in (f"{low} to {high}", off) if part)


FIELDS = (
    Field("temperature", "temperature", 0, 5, 0.05, 1.0, "Higher is more surprising, lower more certain; 0 takes the likeliest."),
    Field("top_k", "top-k", 0, 1000, 5, 0, "Only the k likeliest tokens stay.", whole=True),
    Field("top_p", "top-p", 0, 1, 0.05, 1.0, "Only the likeliest tokens that together reach this probability stay."),
    Field("min_p", "min-p", 0, 1, 0.01, 0.0, "Tokens below this share of the likeliest one's probability go."),
    Field("token_repetition_penalty", "repetition", 0.5, 3, 0.05, 1.0, "Lowers the score of tokens that occurred.", group="penalties"),
    Field("token_presence_penalty", "presence", -2, 2, 0.1, 0.0, "Taken off a token that occurred.", group="penalties"),
    Field("token_frequency_penalty", "frequency", -2, 2, 0.1, 0.0, "Taken off for each time it occurred.", group="penalties"),
    Field("token_repetition_range", "range", -1, 65536, 64, None, "How many last tokens penalties see.", whole=True, group="penalties"),
    Field("seed", "seed", 0, 2**63 - 1, 1, None, "The same seed and settings give the same reply.", whole=True, group="chance"),
)  # fmt: skip
BY_NAME = {field.name: field for field in FIELDS}


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
    parts += [f"{field.label} {field.text(value)}" for field in FIELDS[1:4] if (value := getattr(sampling, field.name)) != field.off]
    return " · ".join(parts)
