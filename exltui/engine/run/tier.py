"""Pages that the cache has no room for: a second tier in host memory, and files from which a session goes on with no prefill."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import chain, common
from exltui.errors import CheckpointError, ModelError
from exltui.text import one_line

SUFFIX = ".kv"
UNFINISHED = ".new"
MEND = "remove the file; the prompt is read again"


@dataclass(frozen=True, slots=True)
class Kept:
    """A page: what it follows, its tokens, and their keys and values in every layer of every store. Of a chat the last one may be short."""

    previous: bytes
    tokens: tuple[int, ...]
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


class HostTier:
    """Pages in host memory, at most ``limit`` bytes of them and ``guests`` more; the least recently used goes first."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.guests = 0  # bytes of what came from a file
        self.nbytes = 0
        self._pages: OrderedDict[bytes, Kept] = OrderedDict()
        self._after: dict[bytes, set[bytes]] = {}  # hash of the page before -> hashes of what follows it

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, here: bytes) -> bool:
        return here in self._pages

    def put(self, page: Kept) -> None:
        here = chain(page.previous, page.tokens)
        if here in self._pages:
            self._pages.move_to_end(here)
            return
        self._pages[here] = page
        self._after.setdefault(page.previous, set()).add(here)
        self.nbytes += page.nbytes
        self.trim()

    def trim(self) -> None:
        """Let go of what is too much."""
        while self.nbytes > self.limit + self.guests and self._pages:
            gone, page = self._pages.popitem(last=False)
            self.nbytes -= page.nbytes
            siblings = self._after[page.previous]
            siblings.discard(gone)
            if not siblings:
                del self._after[page.previous]

    def get(self, here: bytes) -> Kept | None:
        page = self._pages.get(here)
        if page is not None:
            self._pages.move_to_end(here)
        return page

    def following(self, previous: bytes, tokens: Sequence[int]) -> tuple[Kept, int] | None:
        """The page behind ``previous`` that begins most like ``tokens``, and how many tokens that are; None if there is none."""
        wanted = tuple(tokens)
        found = [(common(self._pages[here].tokens, wanted), here) for here in self._after.get(previous, ())]
        count, here = max(found, default=(0, b""))
        if not count:
            return None
        self._pages.move_to_end(here)
        return self._pages[here], count


def write(file: Path, about: Mapping[str, str], pages: Sequence[Kept]) -> None:
    """Write ``pages``, a chain from a sequence's first on. ``about``: what their keys and values depend on. Raises OSError."""
    first = pages[0].previous.hex() if pages else ""
    tensors = {f"{i}.{j}": part.contiguous() for i, page in enumerate(pages) for j, part in enumerate(page.parts)}
    tensors = tensors or {"empty": torch.zeros(1)}  # the format wants a tensor
    new = file.with_name(f"{file.name}{UNFINISHED}")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # a chat's tokens are in it
    metadata = {"about": json.dumps(dict(about)), "first": first, "tokens": json.dumps([page.tokens for page in pages])}
    try:
        save_file(tensors, new, metadata=metadata)
        new.chmod(0o600)
        new.replace(file)
    except safetensors.SafetensorError as error:  # a full disk, among others
        new.unlink(missing_ok=True)
        raise OSError(f"{file}: cannot be written: {error}") from error


def read(file: Path, about: Mapping[str, str]) -> list[Kept]:
    """The pages in ``file``. Raises CheckpointError for a damaged file, ModelError if it was written for something else than ``about``."""
    try:
        with safetensors.safe_open(file, "pt") as source:
            metadata = source.metadata() or {}
            _compare(file, json.loads(metadata["about"]), about)
            names = set(source.keys())
            found: list[Kept] = []
            previous = bytes.fromhex(metadata["first"])
            sequences = json.loads(metadata["tokens"])
            for i, ids in enumerate(sequences):
                count = next(j for j in itertools.count() if f"{i}.{j}" not in names)
                parts = tuple(source.get_tensor(f"{i}.{j}") for j in range(count))
                tokens = tuple(int(token) for token in ids)
                short = len(tokens) < PAGE and i < len(sequences) - 1
                if not 0 < len(tokens) <= PAGE or short or not parts or any(len(part) != len(tokens) for part in parts):
                    raise ValueError(f"page {i} is incomplete")
                found.append(Kept(previous, tokens, parts))
                previous = chain(previous, tokens)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}", MEND) from error
    return found


def _compare(file: Path, stated: Mapping[str, str], about: Mapping[str, str]) -> None:
    """Raise ModelError with the first thing in which ``stated`` is not ``about``."""
    for name, mine in about.items():
        if stated.get(name) != mine:
            theirs = one_line(str(stated.get(name, "unknown")), 80)
            raise ModelError(f"{file.name} was computed with another {name}: {theirs}; loaded is {mine}", "the prompt is read again")


def prune(folder: Path, limit: int) -> None:
    """Remove the files that were used least recently until those in ``folder`` have at most ``limit`` bytes, and what was left unfinished.

    One that cannot be removed stays.
    """
    for rest in folder.glob(f"*{SUFFIX}{UNFINISHED}"):
        with contextlib.suppress(OSError):
            rest.unlink()
    found: list[tuple[float, int, Path]] = []
    for file in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            file.unlink()
            total -= size
