"""EXL2 without calibration: every weight rounded to the nearest code. Quick, and worse than a measured conversion at few bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from exltui.engine.convert.pack import QuantisedGroup, Width, pack, split_rows
from exltui.engine.convert.scale_search import search
from exltui.engine.model.config import Config
from exltui.engine.model.families import read_spec
from exltui.engine.model.spec import ArchSpec, LinearSpec, MoeSpec
from exltui.engine.model.tensors import AnyWeight, Checkpoint
from exltui.engine.model.weights.exl2 import WIDTHS
from exltui.errors import ModelError

Progress = Callable[[int, int], None]  # layers done, layers in all
GROUP = 128  # rows
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")  # weights in any form, and the list of their shards


def write_exl2(source: Path, target: Path, bits: float, head_bits: int, progress: Progress | None = None) -> None:
    """Write the plain model in ``source`` as EXL2 to the new directory ``target``. The same input gives the same bytes.

    ``bits`` from 2 to 8 is the mean over a layer's codes; between two widths the rows of greater norm get the wider. Raises ModelError.
    """
    config = Config.read(source)
    spec = read_spec(config)
    checkpoint = Checkpoint(source, renames=spec.renames)
    widths, head_widths = widths_for(bits), widths_for(head_bits)
    if target.exists():
        raise ModelError(f"{target}: exists already", "name a new directory")
    tensors: dict[str, Tensor] = {}
    _copy_plain(spec, checkpoint, tensors)
    groups = [linears for group in spec.linears() if (linears := tuple(linear for linear in group if not linear.plain))]
    for done, linears in enumerate(groups):
        if progress is not None:
            progress(done, len(groups))
        weights = [_plain(checkpoint, spec, linear) for linear in linears]
        order = row_order([weight.dense() for weight in weights])
        for linear, weight in zip(linears, weights, strict=True):
            parts = quantise(weight.dense().float(), head_widths if linear.name == spec.head else widths, order, weight.bias)
            tensors.update({f"{linear.name}.{suffix}": part for suffix, part in parts.items()})
    settings = {"quant_method": "exl2", "bits": float(bits), "head_bits": head_bits}
    _write(source, target, {**config.values, "quantization_config": settings}, tensors)


def widths_for(bits: float) -> tuple[Width, ...]:
    """One width for a whole number of bits, a mixture of its two neighbours in between."""
    if not WIDTHS[0] <= bits <= WIDTHS[-1]:
        raise ModelError(f"{bits:g} bits cannot be written", f"EXL2 has from {WIDTHS[0]} to {WIDTHS[-1]}")
    low = max(width for width in WIDTHS if width <= bits)
    if low == bits:
        return (Width(low, 1.0, GROUP),)
    high = min(width for width in WIDTHS if width > bits)
    share = (bits - low) / (high - low)
    return Width(high, share, 32), Width(low, 1.0 - share, GROUP)


def row_order(weights: list[Tensor]) -> Tensor:
    """In-features by falling norm over all ``weights`` [n_i, k], which read the same input and so share one order -> [k] i64."""
    squares = sum((weight.double().square().sum(0) for weight in weights), torch.zeros(weights[0].shape[1], dtype=torch.float64))
    return torch.argsort(squares, descending=True, stable=True)


def quantise(weight: Tensor, widths: tuple[Width, ...], order: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """``weight`` [n, k] f32 -> the tensors of an EXL2 layer, n padded with zeros to a multiple of 32."""
    n, k = weight.shape
    padded = -(-n // 32) * 32
    rows = torch.zeros(k, padded)
    rows[:, :n] = weight.t()[order]
    groups, first = [], 0
    for bits, count in split_rows(k, widths):
        part = rows[first : first + count]
        found = search(part, bits)
        groups.append(QuantisedGroup(bits, nearest_codes(part, found.scale, bits), found.steps, found.scale_max))
        first += count
    wide_bias = None if bias is None else torch.nn.functional.pad(bias, (0, padded - n))
    return pack(groups, order, wide_bias)


def nearest_codes(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``rows`` [r, n] f32 over ``scale`` [n] f16, rounded half to even -> codes [r, n] i32. Where the scale is 0, any code means 0."""
    half = 1 << (bits - 1)
    codes = (rows / scale.float()).nan_to_num(half - 1, half - 1, -half).round() + half
    return codes.clamp(0, 2 * half - 1).to(torch.int32)


def _plain(checkpoint: Checkpoint, spec: ArchSpec, linear: LinearSpec) -> AnyWeight:
    if linear.name == spec.head and spec.tied and not checkpoint.has_weight(linear.name):
        linear = replace(linear, name=spec.embedding)  # a quantised file has a head of its own
    weight = checkpoint.weight(linear)
    if weight.format != "dense":
        raise ModelError(f"{checkpoint.where}: {linear.name} is {weight.format} already", "convert the model from its plain weights")
    return weight


def _copy_plain(spec: ArchSpec, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    """What stays f16: embeddings, norms, routers, and other small things."""
    names = [spec.embedding, spec.positions, spec.final_norm, *(name for layer in spec.layers for name in layer.norms())]
    vectors = [layer.attention.sinks for layer in spec.layers]
    vectors += [layer.mlp.correction for layer in spec.layers if isinstance(layer.mlp, MoeSpec)]
    for name in [*vectors, *(f"{name}.{part}" for name in names for part in ("weight", "bias"))]:
        if name in checkpoint:
            tensors[name] = checkpoint.tensor(name).half().clone()
    for linear in (linear for group in spec.linears() for linear in group if linear.plain):
        weight = checkpoint.weight(linear)
        tensors[f"{linear.name}.weight"] = weight.dense().half().clone()
        if weight.bias is not None:
            tensors[f"{linear.name}.bias"] = weight.bias.half()


def _write(source: Path, target: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write aside, then rename: a directory of this name is whole or not there."""
    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(NOT_COPIED):
            shutil.copyfile(path, aside / path.name)
    (aside / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / "output.safetensors", metadata={"format": "pt"})
    aside.replace(target)
