"""config.json, read once: each value with its type, its alternatives and its default."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from exltui.errors import ModelError

T = TypeVar("T", int, float, bool, str, dict, list)
MISSING: Any = object()
CONTEXT = ("max_sequence_length", "max_position_embeddings", "max_seq_len", "n_positions")  # names of the trained context


class Config:
    """A model's config.json. Names are paths into it, ``"a.b"`` for b within a; each is tried in turn, then within text_config."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.asked: set[str] = set()  # the top-level names that somebody wanted to know
        self._defaults: dict[str, Any] = {}

    def under(self, **defaults: Any) -> Config:
        """The same config with a family's own defaults for what it leaves out."""
        fresh = Config(self.values, self.where)
        fresh.asked, fresh._defaults = self.asked, {**self._defaults, **defaults}
        return fresh

    @classmethod
    def read(cls, directory: Path) -> Config:
        """Raises ModelError if there is no readable config.json."""
        path = directory / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{directory}: there is no config.json, so this is not a model directory",
                "choose the folder that holds config.json",
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read as JSON: {error}", "download the file again") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path}: does not hold a JSON object", "download the file again")
        return cls(values, directory.name)

    @property
    def architecture(self) -> str:
        """The one entry of ``architectures``."""
        names = self.get(list, "architectures", default=[])
        if len(names) != 1 or not isinstance(names[0], str):
            raise ModelError(f"{self.where}: config.json must name one architecture, it has {names}", "exltui runs causal language models")
        return str(names[0])

    def get(self, kind: type[T], *names: str, default: Any = MISSING) -> T:
        """The first of ``names`` that is there and not null, as ``kind``. Raises ModelError on a wrong type, or if nothing is there."""
        self.asked.update(name.partition(".")[0] for name in names)
        for root in (self.values, self.values.get("text_config"), self._defaults):
            for name in names:
                value: Any = root
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    return self._as(kind, name, value)
        if default is MISSING:
            raise ModelError(f"{self.where}: config.json has no {' or '.join(names)}", "the file is incomplete; download it again")
        return default

    def size(self, *names: str, default: Any = MISSING, limit: int = 1 << 31) -> int:
        """A whole number from 1 to ``limit``. Raises ModelError as ``get`` does, and for a number outside."""
        value = self.get(int, *names, default=default)
        if not 1 <= value <= limit:
            raise ModelError(
                f"{self.where}: {names[0]} in config.json is {value}, it must be from 1 to {limit:,}",
                "the file is damaged; download it again",
            )
        return value

    def _as(self, kind: type[T], name: str, value: Any) -> T:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]  # T is float here
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)  # type: ignore[return-value]  # T is int here
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise ModelError(
                f"{self.where}: {name} in config.json is {value!r}, not {kind.__name__}", "the file is damaged; download it again"
            )
        return value
