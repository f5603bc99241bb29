"""Model directories of a known shape filled with random valid EXL2 content, so that speed can be measured without a download."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from exltui.engine.convert.pack import split_rows
from exltui.engine.convert.rtn import widths_for
from exltui.engine.model.config import Config
from exltui.engine.model.families import read_spec
from exltui.engine.model.spec import ArchSpec, LinearSpec
from exltui.errors import ModelError

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all

_LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}


def _shape(hidden: int, width: int, layers: int, heads: tuple[int, int], vocab: int, **more: Any) -> dict[str, Any]:
    return {
        **_LLAMA,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        **more,
    }


SHAPES = {
    "llama-3.1-8b": _shape(4096, 14336, 32, (32, 8), 128256),
    "llama-3.1-70b": _shape(8192, 28672, 80, (64, 8), 128256),
    "llama-3.2-1b": _shape(2048, 8192, 16, (32, 8), 128256),
    "tinyllama-1.1b": _shape(2048, 5632, 22, (32, 4), 32000),
    "smollm2-135m": _shape(576, 1536, 30, (9, 3), 49152),
}
BLOCK = 1 << 23  # random words; tensors are cut out of them


def write_synthetic(shape: str, bits: float, head_bits: int, target: Path, progress: Progress | None = None) -> None:
    """Write the new directory ``target``: a model of ``shape``, its layers at ``bits`` a weight. Raises ModelError."""
    if shape not in SHAPES:
        raise ModelError(f"there is no shape {shape!r}", f"say one of {', '.join(SHAPES)}")
    if target.exists():
        raise ModelError(f"{target}: exists already", "name a new directory")
    widths_for(bits)  # an impossible width is said before anything is written
    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config = {**SHAPES[shape], "quantization_config": {"quant_method": "exl2", "bits": bits, "head_bits": head_bits}}
    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    source = _Source(read_spec(Config.read(aside)), bits, head_bits)
    with (aside / "output.safetensors").open("wb") as stream:
        _write(stream, source, progress or (lambda stage, done, total: None))
    aside.replace(target)


def _write(stream: BinaryIO, source: _Source, progress: Progress) -> None:
    """A safetensors file: the header's length, the header, the tensors in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in source.tensors():
        nbytes = int(np.prod(shape)) * (4 if dtype == "I32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    done = 0
    for name, dtype, shape in source.tensors():
        for part in source.values(name, dtype, shape):
            stream.write(part)
            done += len(part)
        progress("writing", done, at)


class _Source:
    """The tensors of a synthetic model, and their values."""

    def __init__(self, spec: ArchSpec, bits: float, head_bits: int) -> None:
        self._spec = spec
        self._widths = {False: widths_for(bits), True: widths_for(head_bits)}
        self._random = np.random.default_rng(0)
        self._words = self._random.integers(0, 1 << 32, BLOCK, dtype=np.uint32)
        self._normals = (self._random.standard_normal(BLOCK, dtype=np.float32) * 0.02).astype(np.float16)
        self._groups: dict[str, tuple[int, list[tuple[int, int]]]] = {}  # of a layer's name: k, and (bits, rows) of each group
        self._orders: dict[int, np.ndarray[Any, Any]] = {}  # one for each number of in-features: layers with one input share theirs

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of each."""
        spec = self._spec
        yield f"{spec.embedding}.weight", "F16", (spec.vocab, spec.hidden)
        for name in (*(name for layer in spec.layers for name in layer.norms()), spec.final_norm):
            yield f"{name}.weight", "F16", (spec.hidden,)
        for group in spec.linears():
            for linear in group:
                yield from self._linear(linear)

    def _linear(self, linear: LinearSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        n = -(-linear.n // 32) * 32
        groups = split_rows(linear.k, self._widths[linear.name == self._spec.head])
        self._groups[linear.name] = linear.k, groups
        yield f"{linear.name}.q_weight", "I32", (sum(bits * rows // 32 for bits, rows in groups), n)
        yield f"{linear.name}.q_invperm", "I32", (linear.k,)
        yield f"{linear.name}.q_scale", "I32", (len(groups), n // 8)
        yield f"{linear.name}.q_scale_max", "F16", (len(groups),)
        yield f"{linear.name}.q_groups", "I16", (2 * len(groups),)

    def values(self, name: str, dtype: str, shape: tuple[int, ...]) -> Iterator[bytes | memoryview]:
        """The tensor's bytes, in pieces."""
        layer, _, part = name.rpartition(".")
        if part in ("q_weight", "q_scale"):
            yield from self._pieces(self._words, int(np.prod(shape)))
        elif part == "weight" and len(shape) == 2:
            yield from self._pieces(self._normals, int(np.prod(shape)))
        elif part == "weight":
            yield np.ones(shape, dtype=np.float16).tobytes()
        else:
            yield self._small(layer, part)

    def _small(self, layer: str, part: str) -> bytes:
        k, groups = self._groups[layer]
        if part == "q_invperm":
            if k not in self._orders:
                self._orders[k] = self._random.permutation(k).astype(np.int32)
            return self._orders[k].tobytes()
        if (
            part == "q_scale_max"
        ):  # weights of about k^-1/2: codes spread over 0.58 of half their range, squared nibbles are 93.5 on average
            scales = [256 / 93.5 / (0.58 * (1 << (bits - 1))) * k**-0.5 for bits, _ in groups]
            return np.array(scales, dtype=np.float16).tobytes()
        first, pairs = 0, []
        for bits, rows in groups:
            pairs += [bits, first]
            first += bits * rows // 32
        return np.array(pairs, dtype=np.int16).tobytes()

    def _pieces(self, block: np.ndarray[Any, Any], count: int) -> Iterator[memoryview]:
        """``count`` values from a random place in ``block`` on, round and round."""
        at = int(self._random.integers(0, BLOCK // 8)) * 8
        while count:
            piece = block[at : at + count]
            yield piece.data.cast("B")
            count -= len(piece)
            at = 0
