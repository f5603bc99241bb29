"""The child process of hub.py, run by this file's path: arguments are a repository, a revision ("" for the main branch), and a directory;
or a repository and ``--branches``.

It prints one JSON object a line: first what it will fetch, then an error if there is one. It imports nothing of exltui. Each file goes to
NAME.part, from the byte where an earlier attempt ended, is checked against the digest that the hub names, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KEPT = (".json", ".safetensors", ".jinja", ".txt", ".md", ".model")  # endings of files that a model needs or that describe it
AT_ONCE = 4  # downloads
CHUNK = 1 << 20


class UnfitError(Exception):
    """The repository holds nothing that exltui can load."""


class DamagedError(Exception):
    """What arrived is not what the hub said that it would be."""


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _child(repo_id: str, revision: str, directory: str = "") -> int:
    try:
        if revision == "--branches":
            _list_branches(repo_id)
        else:
            _download(repo_id, revision or None, Path(directory))
    except Exception as error:  # noqa: BLE001  the parent says it in its words
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        _say(error=words[-1] if words else type(error).__name__, kind=type(error).__name__)
        return 1
    return 0


def _download(repo_id: str, revision: str | None, directory: Path) -> None:
    """Fetch the files of one commit that lie at the repository's top and that a model needs."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    files = [file for file in info.siblings or [] if _wanted(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        others = sorted({Path(file.rfilename).suffix for file in info.siblings or []})
        raise UnfitError(f"it has no .safetensors files, only {', '.join(others) or 'nothing'}")
    _say(bytes=sum(file.size or 0 for file in files), files=len(files))
    _forget_other_commits(directory, str(info.sha))
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for job in [pool.submit(_fetch, repo_id, info.sha, file, directory) for file in files]:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _list_branches(repo_id: str) -> None:
    """Say every branch with the bytes that a download of it would fetch."""
    from huggingface_hub import HfApi

    names = [branch.name for branch in HfApi().list_repo_refs(repo_id).branches]

    def size(name: str) -> int:
        info = HfApi().model_info(repo_id, revision=name, files_metadata=True)
        files = [file for file in info.siblings or [] if _wanted(file.rfilename)]
        return sum(file.size or 0 for file in files) if any(file.rfilename.endswith(".safetensors") for file in files) else 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        _say(branches=list(zip(names, pool.map(size, names), strict=True)))


def _wanted(name: str) -> bool:
    """Names come from outside: only plain ones, without a folder, a leading dot or a pattern's signs."""
    return re.fullmatch(r"\w[\w.+-]*", name, re.ASCII) is not None and (name.endswith(KEPT) or name.startswith("LICENSE"))


def _forget_other_commits(directory: Path, commit: str) -> None:
    """What an earlier attempt fetched counts only if the repository has not changed since."""
    mark = directory / ".commit"
    if not mark.exists() or mark.read_text(encoding="utf-8") != commit:
        for file in directory.iterdir():
            if file.name.endswith((".part", *KEPT)) or file.name.startswith("LICENSE"):
                file.unlink()
        mark.write_text(commit, encoding="utf-8")


def _fetch(repo_id: str, commit: str | None, file: Any, directory: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target = directory / file.rfilename
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    start = part.stat().st_size if part.exists() else 0
    if file.size is not None and start > file.size:
        part.unlink()
        start = 0
    with part.open("ab") as stream:
        if start != file.size:
            url = hf_hub_url(repo_id, file.rfilename, revision=commit)
            http_get(url, stream, resume_size=start, headers=build_hf_headers(), expected_size=file.size)
    if not _is_whole(part, file):
        part.unlink()
        raise DamagedError(f"{file.rfilename} arrived damaged")
    part.replace(target)


def _is_whole(part: Path, file: Any) -> bool:
    """Whether ``part`` has the digest that the hub names: SHA-256 of large files, git's blob id (SHA-1 after a header) of others."""
    if file.lfs is not None:
        digest, expected = hashlib.sha256(), file.lfs.sha256
    elif file.blob_id:
        digest, expected = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False), file.blob_id
    else:
        return file.size is None or part.stat().st_size == file.size
    with part.open("rb") as stream:
        for block in iter(lambda: stream.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest() == expected


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:4]))
