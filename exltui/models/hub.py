"""Models from the hub, through huggingface_hub in a child process: it can be stopped at any byte, and the next attempt goes on there.

The child is hub_child.py. Its settings (HF_TOKEN, HF_ENDPOINT, proxies) are those of huggingface_hub.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exltui import paths
from exltui.errors import DownloadError
from exltui.models import hub_child, transfer
from exltui.models.catalog import directory_name, read_model
from exltui.text import one_line

LIST_SECONDS = 60.0  # how long the hub may take to say its branches


@dataclass(frozen=True, slots=True)
class Repository:
    """OWNER/REPO and a branch, tag or commit ("" for the main branch); the bit rates of EXL2 models are branches."""

    id: str
    revision: str = ""

    @classmethod
    def parse(cls, name: str) -> Repository:
        """``OWNER/REPO[@REVISION]``. Raises DownloadError for anything else."""
        word = r"[A-Za-z0-9](?:[\w.-]*\w)?"
        found = re.fullmatch(rf"({word}/{word})(?:@({word}(?:/{word})*))?", name, re.ASCII)
        if found is None or ".." in name:
            raise DownloadError(f"{name!r} is not the name of a model", "say smollm2-135m, or OWNER/REPO or OWNER/REPO@REVISION of the hub")
        return cls(found[1], found[2] or "")

    @property
    def name(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def get_from_hub(name: str, models_dir: Path, progress: transfer.Progress, cancelled: transfer.IsCancelled) -> Path:
    """The directory of ``name`` (OWNER/REPO[@REVISION]) below ``models_dir``, fetched if it is not there.

    Raises DownloadError or Cancelled.
    """
    repository = Repository.parse(name)
    target = models_dir / directory_name(repository.name)
    if transfer.already_there(target):
        return target
    with transfer.aside(target) as partial:
        log = partial / "download.log"
        plan: dict[str, int] = {}

        def watch() -> None:
            if not plan:
                plan.update(_said(log.read_text(encoding="utf-8", errors="replace"), "bytes"))
                if plan:
                    transfer.require_room(partial, plan["bytes"] - transfer.bytes_below(partial))
            total = plan.get("bytes", 0)
            progress("downloading", min(transfer.bytes_below(partial), total), total)

        command = [sys.executable, hub_child.__file__, repository.id, repository.revision, str(partial)]
        environment = paths.environment_copy(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", PYTHONSAFEPATH="1")
        status, output = transfer.run_watched(command, environment, log, watch, cancelled)
        if status != 0:
            raise _explain(repository, output)
        problem = read_model(partial, target.name).problem
        if problem is not None:
            transfer.remove_tree(partial)
            raise DownloadError(
                f"{repository.name} is not a model that exltui can load: {problem}", "look for an EXL2 or safetensors version"
            )
        (partial / ".commit").unlink()
    return target


def list_branches(name: str) -> list[tuple[str, int]]:
    """The branches of OWNER/REPO that hold a model, each with its bytes, the smallest first. Raises DownloadError."""
    repository = Repository.parse(name)
    environment = paths.environment_copy(HF_HUB_DISABLE_TELEMETRY="1", PYTHONSAFEPATH="1")
    command = [sys.executable, hub_child.__file__, repository.id, "--branches"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIST_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"the branches of {repository.id} could not be listed: {error}", "check the network and try again") from error
    if done.returncode != 0:
        raise _explain(repository, done.stdout + done.stderr)
    found = [(one_line(str(branch)), int(size)) for branch, size in _said(done.stdout, "branches").get("branches", []) if size]
    return sorted(found, key=lambda branch: branch[1])


def _said(output: str, key: str) -> dict[str, Any]:
    """The object with ``key`` among the child's lines; {} if there is none."""
    for line in output.splitlines():
        if line.startswith('{"' + key) and line.endswith("}"):
            return dict(json.loads(line))
    return {}


def _explain(repository: Repository, output: str) -> DownloadError:
    """What the child failed at, in a sentence, and the way out."""
    said = _said(output, "error")
    known = {
        "RepositoryNotFoundError": (
            "there is no such repository, or it is private",
            "check the spelling; a private one needs a token in HF_TOKEN",
        ),
        "RevisionNotFoundError": (
            f"it has no revision {repository.revision or 'main'}",
            "the repository's page lists its branches; EXL2 bit rates are branches",
        ),
        "GatedRepoError": ("its owner gives it only to those who accept the terms", "accept them on its page, and set HF_TOKEN"),
        "UnfitError": (said.get("error"), "look for an EXL2 or safetensors version"),
        "DamagedError": (said.get("error"), "try again; if it stays so, a proxy on the way changes files"),
    }
    lines = output.strip().splitlines() or ["it gave no reason"]
    other = (said.get("error") or lines[-1], "check the network and try again; what was fetched is kept")
    reason, hint = known.get(said.get("kind", ""), other)
    return DownloadError(f"{repository.name} could not be fetched: {one_line(str(reason), 300)}", hint)
