"""Writing a text in the person's own editor, and reading one in their pager."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

from exltui import paths
from exltui.errors import SettingsError
from exltui.text import strip_terminal


def edit_text(text: str, suffix: str = ".md") -> str:
    """Open ``text`` in $VISUAL or $EDITOR, as a file with this ``suffix``, and return what was saved.

    The screen must be given up before. Raises SettingsError.
    """
    command = shlex.split(paths.environment("VISUAL") or paths.environment("EDITOR") or "vi")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"message{suffix}"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*command, str(path)], check=True)
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"The editor {command[0]!r} did not work: {error}", "Set $EDITOR to an editor that is installed."
            ) from error


def page_text(text: str) -> None:
    """Show ``text`` in $PAGER, and come back when it is left. The screen must be given up before. Raises SettingsError."""
    command = shlex.split(paths.environment("PAGER") or "less -R")
    try:
        subprocess.run(command, input=strip_terminal(text), text=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(f"The pager {command[0]!r} did not work: {error}", "Set $PAGER to a pager that is installed.") from error
