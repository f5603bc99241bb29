"""Text files that a person names."""

from __future__ import annotations

from pathlib import Path

from exltui.errors import SettingsError


def read_text(name: str, largest: int, hint: str) -> tuple[Path, str]:
    """The path and the text of the file ``name``, of at most ``largest`` bytes. Raises SettingsError with the ``hint``."""
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > largest:
            raise SettingsError(f"{path} is larger than {largest // 1_000_000} MB.", hint)
        return path, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as text: {error}", hint) from error
