"""config.json, read once: each value with its type, its alternatives and its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from exltui.errors import ModelError

T = TypeVar("T", int, float, bool, str, dict, list)
MISSING: Any = object()


class Config:
    """A model's config.json. Names are paths into it, ``"a.b"`` for b within a; each is tried in turn, then within text_config."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

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
            raise ModelError(
                f"{self.where}: config.json must name one architecture, it has {names}", "exltui runs causal language models"
            )
        return str(names[0])

    def get(self, kind: type[T], *names: str, default: Any = MISSING) -> T:
        """The first of ``names`` that is there and not null, as ``kind``. Raises ModelError on a wrong type, or if nothing is there."""
        for root in (self.values, self.values.get("text_config")):
            for name in names:
                value: Any = root
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    return self._as(kind, name, value)
        if default is MISSING:
            raise ModelError(f"{self.where}: config.json has no {' or '.join(names)}", "the file is incomplete; download it again")
        return default

    def _as(self, kind: type[T], name: str, value: Any) -> T:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]  # T is float here
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)  # type: ignore[return-value]  # T is int here
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(
                f"{self.where}: {name} in config.json is {value!r}, not {kind.__name__}", "the file is damaged; download it again"
            )
        return value
