"""Copying that says which way it went: the desktop's own tool where there is one, and the terminal's OSC 52 sequence otherwise."""

from __future__ import annotations

import shutil
import subprocess

from exltui import paths

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


def describe(text: str, tool: str) -> str:
    """One sentence on what was copied and how."""
    lines = text.count("\n") + 1
    what = f"{lines} lines" if lines > 1 else f"{len(text)} characters"
    if tool:
        return f"Copied {what} ({tool})."
    if len(text.encode()) > OSC52_LIMIT:
        return f"Sent {what} to the terminal, which may cut so long a text."
    return f"Sent {what} to the terminal's clipboard (OSC 52)."
