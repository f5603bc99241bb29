"""Safetensors headers, read and checked without torch. A file from the internet is believed only after every number in it fits.

Format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui.errors import CheckpointError

if TYPE_CHECKING:
    from typing import TypeGuard

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. ``offset`` counts from the start of ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return self.nbytes // ITEM_BYTES[self.dtype]


def read_checkpoint(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of all ``*.safetensors`` files in ``directory``, by name. Raises CheckpointError."""
    tensors: dict[str, TensorInfo] = {}
    files = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    if not files:
        raise CheckpointError(
            f"{directory.name}: there is no .safetensors file in it",
            "exltui reads safetensors only; models in .bin, .pt or .gguf files have to be converted first",
        )
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{file.name}: tensor {name} is in {tensors[name].file.name} too", "remove the file that does not belong here"
                )
            tensors[name] = info
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, each within the file and none over another. Raises CheckpointError with one sentence."""
    again = "download the file again; it is damaged or not a safetensors file"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{file.name}: the header claims {length:,} bytes in a file of {size:,}", again)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file.name}: cannot be read: {error.strerror or error}", "check the file and its permissions") from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name}: the header is not valid JSON ({error})", again) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.name}: the header is not a table of tensors", again)
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _tensor(file, name, entry, start, size - start, again) for name, entry in header.items()}
    _refuse_overlap(file, list(tensors.values()), again)
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _tensor(file: Path, name: str, entry: Any, start: int, room: int, hint: str) -> TensorInfo:
    """One checked entry; ``room`` is the number of bytes after the header."""
    where = f"{file.name}: tensor {name[:100]!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is not described by a table", hint)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the unknown dtype {str(dtype)[:40]!r}", f"known are {', '.join(ITEM_BYTES)}")
    if not _naturals(shape) or len(shape) > 8:
        raise CheckpointError(f"{where} has the impossible shape {str(shape)[:60]}", hint)
    if not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has the impossible offsets {str(offsets)[:60]}", hint)
    begin, end = offsets
    if not begin <= end <= room:
        raise CheckpointError(f"{where} ends at byte {start + end:,} of a file of {start + room:,}", hint)
    wanted = ITEM_BYTES[dtype]
    for extent in shape:
        wanted *= extent
    if wanted != end - begin:
        raise CheckpointError(f"{where}: {dtype} of shape {shape} needs {wanted:,} bytes, the file has {end - begin:,}", hint)
    return TensorInfo(name, dtype, tuple(shape), file, start + begin, end - begin)


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _refuse_overlap(file: Path, tensors: list[TensorInfo], hint: str) -> None:
    tensors = sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset)
    for before, after in itertools.pairwise(tensors):
        if before.offset + before.nbytes > after.offset:
            raise CheckpointError(f"{file.name}: tensors {before.name!r} and {after.name!r} overlap", hint)
