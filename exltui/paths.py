"""Where things live, and the only module that reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def _user(kind: str) -> Path:
    return Path(getattr(platformdirs, f"user_{kind}_path")("exltui", appauthor=False))


def data_dir() -> Path:
    """Models and sessions. Not created here."""
    return _user("data")


def models_dir() -> Path:
    """Where ``exltui models get`` puts models."""
    return data_dir() / "models"


def sessions_file() -> Path:
    """The SQLite database of all chats."""
    return data_dir() / "sessions.db"


def usage_file() -> Path:
    """When each model was loaded last."""
    return data_dir() / "last_used.json"


def settings_file() -> Path:
    return _user("config") / "settings.toml"


def user_themes_dir() -> Path:
    return _user("config") / "themes"


def presets_dirs() -> tuple[Path, Path]:
    """Where sampler presets lie: the user's, then those that ship with exltui."""
    return _user("config") / "presets", package_dir() / "presets"


def characters_dir() -> Path:
    """The person's own system prompts and characters."""
    return _user("config") / "characters"


def log_file() -> Path:
    return _user("log") / "exltui.log"


def build_dir() -> Path:
    """Compiled extensions, one folder for each (torch, CUDA, architecture, source hash)."""
    return _user("cache") / "csrc"


def synthetic_dir() -> Path:
    """Models of random content, which ``exltui bench --synthetic`` writes; may be removed at any time."""
    return _user("cache") / "synthetic"


def package_dir() -> Path:
    return Path(__file__).resolve().parent


def themes_dir() -> Path:
    """The themes that ship with exltui: inside the package when installed, beside it in a checkout."""
    installed = package_dir() / "themes"
    return installed if installed.is_dir() else package_dir().parent / "themes"


def csrc_dir() -> Path:
    return package_dir() / "csrc"


def environment(name: str, default: str = "") -> str:
    """One environment variable. Every reading of the environment goes through here, so that ``exltui doctor`` can list them."""
    return os.environ.get(name, default)


def environment_copy(**changes: str) -> dict[str, str]:
    """The whole environment with ``changes``, for a child process."""
    return {**os.environ, **changes}
