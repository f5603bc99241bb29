"""From a directory to a model that runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from exltui.engine.model.config import Config
from exltui.engine.model.decoder import Decoder
from exltui.engine.model.families import read_spec
from exltui.engine.model.lora import parse_use
from exltui.engine.model.memory import room_for
from exltui.engine.model.positions import check_context, with_overrides
from exltui.engine.model.preparation import Preparation, blocked_bytes, plan
from exltui.engine.model.spec import ArchSpec, LinearSpec
from exltui.engine.model.staging import Staging
from exltui.engine.model.tensors import AnyWeight, Checkpoint
from exltui.engine.model.weights.blocked import BlockedWeight
from exltui.engine.ops import OpSet, bind
from exltui.errors import Cancelled, DeviceError, ModelError
from exltui.protocol import LoadOptions

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all
DEFAULT_CONTEXT = 8192  # where the model could do more: a cache for 128k tokens is nobody's wish by default
SMALLER = "choose a smaller --length, or a smaller model"
STAGED = ("F16", "BF16", "F32", "I32")  # dtypes that no format takes apart on the CPU first
CHUNK = 8 << 20  # bytes touched between two looks at the cancel flag


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: its spec, its decoder, and the figures that people ask for."""

    name: str
    spec: ArchSpec
    decoder: Decoder
    context: int  # tokens that positions and cache are prepared for
    format: str  # "f16", "bf16", "f32", "exl2", "gptq", "q4", "q8"
    parameters: int  # those of the published model: padding and a copied head do not count
    nbytes: int  # of all weights, embedding and head included
    bits_per_weight: float  # of the layers' linear weights
    notes: tuple[str, ...] = ()  # what the user should know, a sentence each

    @property
    def device(self) -> torch.device:
        return self.decoder.ops.device

    @property
    def ops(self) -> OpSet:
        return self.decoder.ops


def load_model(directory: Path, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool]) -> Model:
    """Load the model in ``directory``. Raises ModelError, CheckpointError, DeviceError, or Cancelled."""
    config = Config.read(directory)
    spec = with_overrides(read_spec(config), options)
    device = resolve_device(options.device)
    checkpoint = open_checkpoint(directory, config, spec)
    require_weights(spec, checkpoint)
    context = loaded_context(spec, options)
    notes = check_context(spec, context)
    ops = bind(device)
    prepare = plan(options, ops, checkpoint.weight(spec.layers[0].qkv[0]))
    reading = _Reading(progress, cancelled, sum(info.nbytes for info in checkpoint.infos.values()))
    checkpoint.on_use = reading.touch
    what, needed = f"{directory.name} with {context:,} positions", _needed(spec, checkpoint, context, prepare)
    with room_for(what, needed, device, SMALLER), _staged(spec, checkpoint, device):
        decoder = Decoder(spec, checkpoint, ops, context, prepare)
    checkpoint.on_use = None
    reading.finish()
    for use in options.lora:
        path, scale = parse_use(use)
        decoder.adapters.load(Path(path), scale=scale)
    weights = decoder.weights
    bits = 8 * sum(_stored(w) for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)
    used = sum(checkpoint.infos[name].nbytes for name in checkpoint.used)
    if packed := blocked_bytes([*weights, decoder.head]):  # beside the embedding, nothing else is read from the file in a step
        used = packed + decoder.embedding.nbytes
    return Model(directory.name, spec, decoder, context, _format(decoder), _parameters(spec, checkpoint), used, bits, notes)


def loaded_context(spec: ArchSpec, options: LoadOptions) -> int:
    """Tokens that positions and cache are prepared for. Raises ModelError."""
    if options.length is not None and options.length < 1:
        raise ModelError(f"a context of {options.length} tokens is impossible", "give --length a positive number")
    return options.length or min(spec.trained_context, DEFAULT_CONTEXT)


@contextlib.contextmanager
def _staged(spec: ArchSpec, checkpoint: Checkpoint, device: torch.device) -> Iterator[None]:
    """Within the block, a GPU's large tensors come through pinned memory, in the order in which a decoder asks for them."""
    if device.type != "cuda" or not hasattr(os, "preadv"):
        yield
        return
    linears = [LinearSpec(spec.embedding, spec.vocab, spec.hidden), *(linear for group in spec.linears() for linear in group)]
    names = [f"{linear.name}.{part}" for linear in linears for part in ("weight", "q_weight")]
    infos = [checkpoint.infos[name] for name in dict.fromkeys(names) if name in checkpoint.infos]
    with Staging([info for info in infos if info.dtype in STAGED], device).reading() as staging:
        checkpoint.staging = staging
        try:
            yield
        finally:
            checkpoint.staging = None


def _needed(spec: ArchSpec, checkpoint: Checkpoint, context: int, prepare: Preparation) -> int:
    """Bytes that loading takes: RoPE tables with what making them takes, and the weights, unless they stay in the file."""
    ropes = {layer.attention.rope for layer in spec.layers}
    tables = sum(4 * context * rope.width * 2 for rope in ropes if rope is not None)
    stored = sum(info.nbytes for info in checkpoint.infos.values())
    if prepare.bits is not None:
        return tables + stored * prepare.bits // 16
    plain = all(name.endswith((".weight", ".bias")) for name in checkpoint.infos)
    return tables if prepare.device.type == "cpu" and (plain or not prepare.packs) else tables + stored


def _stored(weight: AnyWeight) -> int:
    return weight.stored_bytes if isinstance(weight, BlockedWeight) else weight.nbytes


def open_checkpoint(directory: Path, config: Config, spec: ArchSpec) -> Checkpoint:
    """The tensors under the spec's names. Raises ModelError for a quantisation that cannot be run, CheckpointError for damaged files."""
    method = config.get(str, "quantization_config.quant_method", default="")
    form = config.get(str, "quantization_config.checkpoint_format", "quantization_config.version", "quantization_config.format", default="")
    known = method in ("", "exl2", "fp8", "mxfp4")
    known |= (method, form) in (("gptq", ""), ("gptq", "gptq"), ("gptq", "gptq_v2"), ("awq", ""), ("awq", "gemm"), ("awq", "GEMM"))
    known |= method == "compressed-tensors" and form in ("float-quantized", "naive-quantized")
    if not known:
        shown = f"{method!r} in the form {form!r}" if form else f"{method!r}"
        hint = "exltui runs EXL2, GPTQ, AWQ (gemm), FP8, MXFP4 and plain weights"
        raise ModelError(f"{config.where}: the quantisation {shown} cannot be run", hint)
    return Checkpoint(directory, renames=spec.renames, gptq_v2=form == "gptq_v2", awq=method == "awq")


def require_weights(spec: ArchSpec, checkpoint: Checkpoint) -> None:
    """Raise ModelError if a layer has no weight: better now than after reading the ones before it."""
    linears = [LinearSpec(spec.embedding, spec.vocab, spec.hidden), *(linear for group in spec.linears() for linear in group)]
    missing = [linear.name for linear in linears if not checkpoint.has_linear(linear) and not (linear.name == spec.head and spec.tied)]
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ModelError(
            f"{checkpoint.where}: the weight of {missing[0]}{more} is missing", "download the model again; a shard may be missing"
        )


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
        raise DeviceError(f"{name}: torch sees {torch.cuda.device_count()} GPUs", "exltui doctor tells why; --device cpu runs without")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class _Reading:
    """Brings each tensor into memory when it is first used, so that the wait has numbers and the first token none of it."""

    def __init__(self, progress: Progress, cancelled: Callable[[], bool], total: int) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._total = total
        self._done = 0
        progress("weights", 0, total)

    def touch(self, tensor: Tensor) -> None:
        """Read one byte of each page of ``tensor``. Raises Cancelled."""
        if tensor.is_cuda:  # it was read already
            self._count(tensor.numel() * tensor.element_size())
            return
        data = tensor.reshape(-1).view(torch.uint8)
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            int(part[::4096].sum())
            self._count(len(part))

    def _count(self, nbytes: int) -> None:
        if self._cancelled():
            raise Cancelled("loading was cancelled")
        self._done += nbytes
        self._progress("weights", self._done, self._total)

    def finish(self) -> None:
        """Tensors that the model has no use for count as read."""
        self._progress("weights", self._total, self._total)


def _format(decoder: Decoder) -> str:
    formats = {weight.source if isinstance(weight, BlockedWeight) else weight.format for weight in decoder.weights}
    for name in ("exl2", "gptq", "q4", "q8"):
        if name in formats:
            return name
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(decoder.embedding.dtype, "f32")


def _parameters(spec: ArchSpec, checkpoint: Checkpoint) -> int:
    linears = [linear for group in spec.linears() for linear in group if not (spec.tied and linear.name == spec.head)]
    names = {name for group in spec.linears() for linear in group for name in (linear.name, linear.part.name if linear.part else "")}
    matrices = {spec.embedding, spec.head, *names}
    plain = [checkpoint.infos[name].numel for name in checkpoint.used if name not in matrices and name.rpartition(".")[0] not in matrices]
    own = {f"{linear.name}.bias": linear.n for linear in linears}
    biases = [name for name in checkpoint.used if name.rpartition(".")[0] in matrices and name.endswith(".bias")]
    plain += [min(checkpoint.infos[name].numel, own.get(name, checkpoint.infos[name].numel)) for name in biases]
    return spec.vocab * spec.hidden + sum(linear.n * linear.k for linear in linears) + sum(plain)
