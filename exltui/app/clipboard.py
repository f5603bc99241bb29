"""Copying that says which way it went: the desktop's own tool where there is one, and the terminal's OSC 52 sequence otherwise."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from exltui import paths
from exltui.errors import SettingsError

TOOLS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
)
OSC52_LIMIT = 74_000  # bytes of text; many terminals drop longer sequences


def copy_with_tool(text: str) -> str:
    """Give ``text`` to the desktop's clipboard tool. The tool's name, or "" when there is none that works."""
    if paths.environment("SSH_CONNECTION") and not paths.environment("DISPLAY"):
        return ""
    for variable, command in TOOLS:
        if (variable and not paths.environment(variable)) or shutil.which(command[0]) is None:
            continue
        try:
            subprocess.run(command, input=text.encode(), check=True, timeout=3, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            continue
        return command[0]
    return ""


def too_long(text: str) -> bool:
    """Whether a terminal may drop or cut it."""
    return len(text.encode("utf-8", "replace")) > OSC52_LIMIT


def to_file(text: str) -> Path:
    """Write ``text`` where it can be fetched from, for when no clipboard takes it. Raises SettingsError."""
    path = paths.data_dir() / "copied.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}", "Check the room on the disk.") from error
    return path


def describe(text: str, tool: str) -> str:
    """One sentence on what was copied and how."""
    lines = text.count("\n") + 1
    what = f"{lines} lines" if lines > 1 else f"{len(text)} characters"
    if tool:
        return f"Copied {what} ({tool})."
    return f"Sent {what} to the terminal's clipboard (OSC 52)."
