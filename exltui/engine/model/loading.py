"""From a directory to a model that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from exltui.engine.model.config import Config
from exltui.engine.model.decoder import Decoder
from exltui.engine.model.families import read_spec
from exltui.engine.model.spec import ArchSpec
from exltui.engine.model.tensors import Checkpoint
from exltui.engine.ops import OpSet, bind
from exltui.engine.ops.rope import RopeScaling
from exltui.errors import Cancelled, DeviceError, ModelError
from exltui.protocol import LoadOptions

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all
DEFAULT_CONTEXT = 8192  # where the model could do more: a cache for 128k tokens is nobody's wish by default
CHUNK = 8 << 20  # bytes touched between two looks at the cancel flag


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: its spec, its decoder, and the figures that people ask for."""

    name: str
    spec: ArchSpec
    decoder: Decoder
    context: int  # tokens that positions and cache are prepared for
    format: str  # "f16", "bf16", "f32", "exl2", "gptq"
    parameters: int
    nbytes: int  # of all weights, embedding and head included
    bits_per_weight: float  # of the layers' linear weights

    @property
    def device(self) -> torch.device:
        return self.decoder.ops.device

    @property
    def ops(self) -> OpSet:
        return self.decoder.ops


def load_model(directory: Path, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool]) -> Model:
    """Load the model in ``directory``. Raises ModelError, CheckpointError, DeviceError, or Cancelled."""
    config = Config.read(directory)
    spec = _with_overrides(read_spec(config), options)
    device = resolve_device(options.device)
    method = config.get(str, "quantization_config.quant_method", default="")
    if method not in ("", "exl2", "gptq"):
        raise ModelError(
            f"{directory.name}: the quantisation {method!r} cannot be run", "exltui runs EXL2, 4-bit GPTQ, and plain weights"
        )
    v2 = config.get(str, "quantization_config.checkpoint_format", default="") == "gptq_v2"
    checkpoint = Checkpoint(directory, gptq_v2=v2)
    context = options.length or min(spec.trained_context, DEFAULT_CONTEXT)
    ops = bind(device)
    _touch(checkpoint, progress, cancelled)
    decoder = Decoder(spec, checkpoint, ops, context)
    weights = decoder.weights
    bits = 8 * sum(w.nbytes for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)
    total = sum(info.nbytes for name, info in checkpoint.infos.items() if name in checkpoint.used)
    return Model(directory.name, spec, decoder, context, _format(decoder), _parameters(decoder), total, bits)


def resolve_device(name: str | None) -> torch.device:
    """``None`` is the first GPU if there is one. Raises DeviceError for a device that is not there."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is not a device", "say cpu, or cuda:0 for the first GPU") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"{name}: exltui runs on cpu and cuda devices", "say cpu, or cuda:0 for the first GPU")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(
            f"{name}: torch sees {torch.cuda.device_count()} GPUs", "exltui doctor tells why; --device cpu runs without"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _with_overrides(spec: ArchSpec, options: LoadOptions) -> ArchSpec:
    """The user's RoPE scale and alpha in place of the model's scaling."""
    if options.rope_scale is None and options.rope_alpha is None:
        return spec

    layers = []
    for layer in spec.layers:
        rope = layer.attention.rope
        if rope is not None:
            if options.rope_scale is not None:
                rope = replace(rope, scaling=RopeScaling("linear", options.rope_scale))
            rope = replace(rope, alpha=options.rope_alpha or 1.0)
        layers.append(replace(layer, attention=replace(layer.attention, rope=rope)))
    return replace(spec, layers=tuple(layers))


def _touch(checkpoint: Checkpoint, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Bring the mapped files into memory in order, so that the wait has numbers and the first token none of it."""
    total, done = sum(info.nbytes for info in checkpoint.infos.values()), 0
    progress("weights", 0, total)
    for info in sorted(checkpoint.infos.values(), key=lambda info: (str(info.file), info.offset)):
        if info.dtype not in ("F16", "BF16", "F32", "I16", "I32") or not info.nbytes:
            continue
        pages: Tensor = checkpoint.tensor(info.name).reshape(-1).view(torch.uint8)
        for start in range(0, info.nbytes, CHUNK):
            if cancelled():
                raise Cancelled("loading was cancelled")
            int(pages[start : start + CHUNK : 4096].sum())
            done += min(CHUNK, info.nbytes - start)
            progress("weights", done, total)
    checkpoint.used.clear()


def _format(decoder: Decoder) -> str:
    formats = {weight.format for weight in decoder.weights}
    for name in ("exl2", "gptq"):
        if name in formats:
            return name
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(decoder.embedding.dtype, "f32")


def _parameters(decoder: Decoder) -> int:
    head = 0 if decoder.spec.tied else decoder.head.shape[0] * decoder.head.shape[1]
    return decoder.embedding.numel() + head + sum(weight.shape[0] * weight.shape[1] for weight in decoder.weights)
