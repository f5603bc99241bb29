"""What the app is put together from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.theme import Theme

from exltui import paths
from exltui.app.library import Library
from exltui.app.prepare import Preparer
from exltui.app.records import Records
from exltui.client import EngineLink
from exltui.errors import ExltuiError
from exltui.protocol import LoadOptions, Sampling


def _keep_nothing(key: str, value: Any) -> None:
    """For an app that has no settings file."""


@dataclass
class Parts:
    """All that the app uses and does not make itself; tests put other things in."""

    client: EngineLink
    records: Records
    library: Library
    preparer: Preparer = field(default_factory=Preparer)
    themes: list[Theme] = field(default_factory=list)
    theme: str = "dark"
    keymap: dict[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None  # the person's own; None: what the files of each model recommend
    models_dirs: tuple[str, ...] = ()  # folders with models that the settings name
    options: LoadOptions = field(default_factory=LoadOptions)
    presets: dict[str, Sampling] = field(default_factory=dict)  # by name, as their files say
    characters_dir: Path = field(default_factory=paths.characters_dir)
    you: str = ""  # what the person is called
    system: str = ""  # the system prompt of a new chat
    max_new_tokens: int | None = None
    signs: str = "unicode"
    kept_pages: float = 0.0  # GB of keys and values of chats on the disk
    titles: bool = False  # whether the model gives chats their titles
    model: str = ""  # name or path of the model to load first
    start_model: str = ""  # the one that the settings name
    session: str = ""  # id of the chat to open first
    notices: list[ExltuiError] = field(default_factory=list)  # what went wrong before there was a screen
    remember: Callable[[str, Any], None] = _keep_nothing  # keep a setting for the next start
    settled: Callable[[], None] = lambda: None  # called when the engine is up, with all that it imports
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
