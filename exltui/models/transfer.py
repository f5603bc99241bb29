"""What all downloads share: a directory aside that becomes the model in one step, and a child process that is watched."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from exltui.errors import Cancelled, DownloadError
from exltui.models.catalog import PARTIAL, read_model

if sys.platform != "win32":
    import fcntl

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all (0: not known yet)
IsCancelled = Callable[[], bool]
LOOK = 0.1  # seconds between two looks at a download's size and the cancel flag
GRACE = 3.0  # seconds that a stopped child has to tidy up


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A directory beside ``target`` to write into. When the block ends well it becomes ``target``; if not, what it holds stays for the
    next attempt. Raises DownloadError if the disk is full or another exltui fetches the same model.
    """
    partial = target.with_name(target.name + PARTIAL)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            try:
                yield partial
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.rmdir()  # if nothing came, nothing stays
                raise
            partial.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(f"the disk is full: {target.parent}", "make room and try again; nothing has to be fetched twice") from error
        raise DownloadError(f"{target} cannot be written: {error.strerror or error}", "choose another folder with --models-dir") from error


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock on ``target`` that the system lets go of when the process ends, however it ends."""
    lock = target.with_name(f".{target.name}.lock")
    with lock.open("w") as stream:
        try:
            if sys.platform != "win32":
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DownloadError(f"{target.name} is being fetched by another exltui", "wait until it is done") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def already_there(target: Path) -> bool:
    """Whether ``target`` is a whole model. Raises DownloadError if something else has its place."""
    if not target.exists():
        return False
    problem = read_model(target).problem
    if problem:
        raise DownloadError(f"{target} is there, but broken: {problem}", f"exltui models rm {target.name} removes it; then get it again")
    return True


def require_room(folder: Path, wanted: int) -> None:
    """Raise DownloadError unless ``folder``'s disk has ``wanted`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DownloadError(
            f"the disk of {folder} has {free / 1e6:,.0f} MB free, {wanted / 1e6:,.0f} MB are needed",
            "make room, or choose another folder with --models-dir",
        )


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def run_watched(
    command: Sequence[str], environment: dict[str, str], log: Path, watch: Callable[[], None], cancelled: IsCancelled
) -> tuple[int, str]:
    """Run ``command`` with its output in ``log``, which goes in the end, calling ``watch`` ten times a second.

    -> (exit status, output). Raises Cancelled.
    """
    try:
        with log.open("wb") as sink:
            child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
            try:
                while child.poll() is None:
                    if cancelled():
                        raise Cancelled("the download was stopped", "get it again to go on")
                    watch()
                    time.sleep(LOOK)
            finally:
                _stop(child)
        watch()
        return child.returncode, log.read_text(encoding="utf-8", errors="replace")
    finally:
        log.unlink(missing_ok=True)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def bytes_below(folder: Path) -> int:
    """Bytes of all files below ``folder``; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
