"""Where a command's input comes from: files, standard input, token ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from exltui.errors import ExltuiError


def read_text(name: str) -> str:
    """The text of a file, or of standard input for ``-``. Raises ExltuiError if it cannot be read or is not UTF-8."""
    where = "standard input" if name == "-" else name
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise ExltuiError(f"{where} cannot be read: {error.strerror or error}", "check the file's name and permissions") from error
    except UnicodeDecodeError as error:
        raise ExltuiError(f"{where} is not UTF-8 text (byte {error.start:,})", "convert it, for example with iconv -t utf-8") from error


def read_ids(name: str) -> list[int]:
    """The token ids in a JSON file. Raises ExltuiError if it is anything but a list of numbers from 0 up."""
    try:
        ids = json.loads(read_text(name))
    except (ValueError, RecursionError) as error:
        raise ExltuiError(f"{name} is not JSON: {error}", "it must be a list of token ids, such as [1, 2, 3]") from error
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise ExltuiError(f"{name} is not a list of token ids", "it must look like [1, 2, 3]")
    return ids
