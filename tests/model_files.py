"""Model directories of a few bytes, made by hand: for tests of what reads them without running them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTHS = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I16": 2}


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], fill: int = 0) -> bytes:
    """A whole safetensors file of the named (dtype, shape) pairs."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = WIDTHS[dtype]
        for extent in shape:
            nbytes *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    return raw_file(header, bytes([fill]) * offset)


def raw_file(header: Any, data: bytes) -> bytes:
    """A file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "tie_word_embeddings": True}
PLAIN = {
    "model.embed_tokens.weight": ("F16", (10, 4)),
    "model.layers.0.self_attn.q_proj.weight": ("F16", (4, 4)),
    "model.layers.0.input_layernorm.weight": ("F16", (4,)),
}


def model_files(tensors: Mapping[str, tuple[str, tuple[int, ...]]] = PLAIN, **config: Any) -> dict[str, bytes]:
    """The files of a small model directory."""
    return {
        "config.json": json.dumps({**CONFIG, **config}).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"chat_template": "x"}',
        "model.safetensors": safetensors_bytes(tensors),
    }


def write_model(directory: Path, files: Mapping[str, bytes] | None = None) -> Path:
    directory.mkdir(parents=True)
    for name, data in (model_files() if files is None else files).items():
        (directory / name).write_bytes(data)
    return directory
