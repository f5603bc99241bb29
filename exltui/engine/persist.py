"""Keys and values that outlive the process: what they depend on, and how a session's go to a file and come back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from exltui.engine.generate.drafts import ModelDrafter
from exltui.engine.generate.room import Kept
from exltui.engine.run.tier import read, write

if TYPE_CHECKING:
    from exltui.engine.model.lora import Mix
    from exltui.engine.session import Session

SLICES, SLICE = 16, 4096  # of each file of weights, so many parts of so many bytes, spread evenly: what tells two models apart
ROWS = 64  # of the tables of positions


def keep(session: Session, file: Path, tokens: Sequence[int], mix: Mix, limit: int | None = None) -> list[Kept]:
    """Write the keys and values of ``tokens``, computed under the adapters of ``mix``, as far as they are known -> what was written.

    At most ``limit`` bytes of them. Raises OSError.
    """
    pages = session.generator.room.export(tokens, session.runner.adapters.root(mix), limit)
    if pages:
        write(file, about(session, mix), pages)
    return pages


def recall(session: Session, file: Path) -> list[Kept]:
    """Take what ``keep`` wrote into host memory, where prompts find it. Raises ModelError, with the reason, and CheckpointError."""
    pages = read(file, about(session, session.runner.adapters.mix(None)))
    session.generator.room.recall(pages)
    file.touch()  # for the removal of what was used least recently
    return pages


def about(session: Session, mix: Mix) -> dict[str, str]:
    """What keys and values depend on, by name, in the words of a refusal."""
    model, options, drafter = session.runner.model, session.options, session.generator.drafter
    rounding = f" with {options.activations or 'int8'} activations" if model.device.type == "cpu" and model.format != "f16" else ""
    draft = f"{drafter.runner.model.name} {_files(Path(options.draft_model or ''))}" if isinstance(drafter, ModelDrafter) else "none"
    return {
        "model": f"{session.directory.name} {_files(session.directory)}",
        "form of weights": f"{model.format} on {model.device.type}{rounding}",
        "cache": options.cache,
        "RoPE": _positions(session),
        "draft model": draft,
        "set of adapters": session.runner.adapters.described(mix) or "none",
    }


def _files(directory: Path) -> str:
    """Of a model's files what tells them from others, by their contents: the configuration, and of the weights the sizes and some parts."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(SLICES):
                stream.seek(max(size - SLICE, 0) * i // (SLICES - 1))
                digest.update(stream.read(SLICE))
    return digest.hexdigest()[:12]


def _positions(session: Session) -> str:
    """The tables of positions as they are: scalings change them in many ways, some with the length that was asked for."""
    digest, seen = hashlib.sha256(), set()
    for layer in session.runner.model.decoder.layers:
        if layer.rope is not None and id(layer.rope) not in seen:
            seen.add(id(layer.rope))
            for table in (layer.rope.cos, layer.rope.sin):
                digest.update(_raw(table[:ROWS]))
    stated = {name: value for name in ("rope_scale", "rope_alpha", "rope_yarn") if (value := getattr(session.options, name)) is not None}
    return " ".join([*(f"{name}={value:g}" for name, value in stated.items()), digest.hexdigest()[:8]])


def _raw(table: Tensor) -> bytes:
    return bytes(table.detach().float().cpu().contiguous().numpy().tobytes())
