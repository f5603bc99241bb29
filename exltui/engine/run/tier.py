"""Pages that the cache has no room for: a second tier in host memory, and files from which a session goes on with no prefill."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import chain
from exltui.errors import CheckpointError, ModelError

SUFFIX = ".kv"


@dataclass(frozen=True, slots=True)
class Kept:
    """A full page: what it follows, its tokens, and its keys and values in every layer of every store."""

    previous: bytes
    tokens: tuple[int, ...]
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


class HostTier:
    """Pages by hash, at most ``limit`` bytes of them; the least recently used goes first."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.nbytes = 0
        self._pages: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def put(self, page: Kept) -> None:
        here = chain(page.previous, page.tokens)
        if here in self._pages:
            self._pages.move_to_end(here)
            return
        self._pages[here] = page
        self.nbytes += page.nbytes
        while self.nbytes > self.limit and self._pages:
            self.nbytes -= self._pages.popitem(last=False)[1].nbytes

    def get(self, here: bytes) -> Kept | None:
        page = self._pages.get(here)
        if page is not None:
            self._pages.move_to_end(here)
        return page


def write(file: Path, fingerprint: str, pages: Sequence[Kept]) -> None:
    """Write ``pages``, a chain from a sequence's first on, for a model, cache and adapters that ``fingerprint`` names. Raises OSError."""
    about = [{"previous": page.previous.hex(), "tokens": page.tokens} for page in pages]
    tensors = {f"{i}.{j}": part.contiguous() for i, page in enumerate(pages) for j, part in enumerate(page.parts)}
    tensors = tensors or {"empty": torch.zeros(1)}  # the format wants a tensor
    new = file.with_name(f"{file.name}.new")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, new, metadata={"fingerprint": fingerprint, "pages": json.dumps(about)})
    new.replace(file)


def read(file: Path, fingerprint: str) -> list[Kept]:
    """The pages in ``file``. Raises CheckpointError for a damaged file, ModelError if it was written for something else."""
    try:
        with safetensors.safe_open(file, "pt") as source:
            metadata = source.metadata() or {}
            stated = metadata.get("fingerprint", "")
            if stated != fingerprint:
                raise ModelError(
                    f"{file.name} was computed by {stated or 'something else'}, loaded is {fingerprint}", "the prompt is read again"
                )
            about = json.loads(metadata["pages"])
            names = source.keys()
            found = []
            for i, page in enumerate(about):
                count = sum(name.startswith(f"{i}.") for name in names)
                parts = tuple(source.get_tensor(f"{i}.{j}") for j in range(count))
                tokens = tuple(page["tokens"])
                if len(tokens) != PAGE or not parts:
                    raise CheckpointError(f"{file.name}: page {i} is incomplete", "remove the file; the prompt is read again")
                found.append(Kept(bytes.fromhex(page["previous"]), tokens, parts))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}", "remove the file; the prompt is read again") from error
    return found


def prune(folder: Path, limit: int) -> None:
    """Remove the files that were used least recently until those in ``folder`` have at most ``limit`` bytes."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= limit:
            return
        total -= file.stat().st_size
        file.unlink()
