"""The child process of hub.py, run by this file's path: arguments are a repository, a revision ("" for the main branch), and a directory.

It prints one JSON object a line: first what it will fetch, then an error if there is one. It imports nothing of exltui.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

KEPT = (".json", ".safetensors", ".jinja", ".txt", ".md", ".model")  # endings of files that a model needs or that describe it


class UnfitError(Exception):
    """The repository holds nothing that exltui can load."""


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _child(repo_id: str, revision: str, directory: str) -> int:
    try:
        _download(repo_id, revision or None, directory)
    except Exception as error:  # noqa: BLE001  the parent says it in its words
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        _say(error=words[-1] if words else type(error).__name__, kind=type(error).__name__)
        return 1
    return 0


def _download(repo_id: str, revision: str | None, directory: str) -> None:
    """Fetch the files of one commit that lie at the repository's top and that a model needs."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    files = [file for file in info.siblings or [] if _wanted(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        others = sorted({Path(file.rfilename).suffix for file in info.siblings or []})
        raise UnfitError(f"it has no .safetensors files, only {', '.join(others) or 'nothing'}")
    _say(bytes=sum(file.size or 0 for file in files), files=len(files), commit=info.sha)
    snapshot_download(repo_id, revision=info.sha or revision, local_dir=directory, allow_patterns=[file.rfilename for file in files])


def _wanted(name: str) -> bool:
    """Names come from outside: only plain ones, without a folder, a leading dot or a pattern's signs."""
    return re.fullmatch(r"\w[\w.+-]*", name, re.ASCII) is not None and (name.endswith(KEPT) or name.startswith("LICENSE"))


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:4]))
