"""A checkpoint's tensors, mapped into memory, and the reading of one module's weight in whatever format it has."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from exltui.checkpoint import TensorInfo, read_checkpoint
from exltui.engine.model.spec import LinearSpec, Part
from exltui.engine.model.staging import Staging
from exltui.engine.model.weights import exl2
from exltui.engine.model.weights.blocked import BlockedWeight
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.foreign import dense_gptq, from_awq, from_fp8, from_mxfp4
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops.cuda_layout import Packed
from exltui.errors import CheckpointError, ModelError

DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I16": torch.int16, "I32": torch.int32,
    "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
FORMATS: dict[str, tuple[str, ...]] = {  # the tensor by which a format is known, and all that it must have
    "q_weight": tuple(exl2.PARTS),
    "qweight": ("qweight", "qzeros", "scales"),
    "weight": ("weight",),
}

FileWeight = DenseWeight | Exl2Weight | GptqWeight
AnyWeight = FileWeight | BlockedWeight | Packed  # as it lies in the file, or in the order of the CPU's or the GPU's kernels


class Checkpoint:
    """All tensors of a model directory. Nothing is read before it is used, and then by the page."""

    def __init__(self, directory: Path, *, renames: tuple[tuple[str, str], ...] = (), gptq_v2: bool = False, awq: bool = False) -> None:
        """``renames``: patterns and replacements, from the files' names to those of the spec; ``gptq_v2``: how GPTQ's zero points are
        stored; ``awq``: tensors with GPTQ's names are AWQ's.

        Raises CheckpointError for a file that cannot be believed.
        """
        self.infos: dict[str, TensorInfo] = {}
        for name, info in read_checkpoint(directory).items():
            known = rename(name, renames)
            if known in self.infos:
                raise CheckpointError(
                    f"{directory.name}: {name} and {self.infos[known].name} are the same tensor", "remove one of the files"
                )
            self.infos[known] = info
        self.where = directory.name
        self.gptq_v2 = gptq_v2
        self.awq = awq
        self.used: set[str] = set()
        self.on_use: Callable[[Tensor], None] | None = None  # sees every tensor before it is used; may raise to stop
        self.staging: Staging | None = None  # what brings large ones to a GPU
        self._maps: dict[Path, mmap.mmap] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``, a view of the file. Raises ModelError if it is missing or has a dtype that cannot be run."""
        info = self.infos.get(name)
        if info is None:
            raise ModelError(f"{self.where}: the tensor {name} is missing", "download the model again; a shard may be missing")
        if info.dtype not in DTYPES:
            raise ModelError(f"{self.where}: {name} has the dtype {info.dtype}, which exltui cannot run", f"it runs {', '.join(DTYPES)}")
        if self.staging is not None and (staged := self.staging.take(info, DTYPES[info.dtype])) is not None:
            tensor = staged
        else:
            tensor = self._view(info)
        if self.on_use is not None and name not in self.used:
            self.on_use(tensor)
        self.used.add(name)
        return tensor

    def _view(self, info: TensorInfo) -> Tensor:
        dtype = DTYPES[info.dtype]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        buffer = self._map(info)
        if info.offset % dtype.itemsize:
            raw = bytearray(buffer[info.offset : info.offset + info.nbytes])
            return torch.frombuffer(raw, dtype=dtype).view(info.shape)
        return torch.frombuffer(buffer, dtype=dtype, count=info.numel, offset=info.offset).view(info.shape)

    def _map(self, info: TensorInfo) -> mmap.mmap:
        if info.file not in self._maps:
            with info.file.open("rb") as stream:  # copy-on-write: torch wants a writable buffer, the file stays as it is
                self._maps[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[info.file]

    def release(self) -> None:
        """Give the pages that were read back; what is still used is read again from the file's cache."""
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight or a bias of ``size`` values, in f32: small, and read by every kernel."""
        values = self.tensor(name)
        if values.numel() != size:
            raise ModelError(
                f"{self.where}: {name} has {values.numel()} values, expected {size}",
                "config.json and the weights do not belong together",
            )
        return values.reshape(-1).float()

    def head_vector(self, name: str, heads: int, size: int, *, each: bool) -> Tensor:
        """The norm over each head: [size] f32, or [heads, size] if ``each`` head has its own.

        EXL2 files repeat one norm for each of ``heads`` heads; other rows than equal are then refused.
        """
        repeated = name in self and self.infos[name].shape == (heads, size)
        if not repeated and not each:
            return self.vector(name, size)
        rows = self.vector(name, heads * size).view(heads, size)
        if each:
            return rows
        if not bool((rows == rows[0]).all()):
            raise ModelError(f"{self.where}: {name} differs from head to head", "config.json and the weights do not belong together")
        return rows[0].clone()

    def has_weight(self, name: str) -> bool:
        """Whether the linear layer ``name`` is there, in any format."""
        return any(f"{name}.{part}" in self for part in FORMATS)

    def has_linear(self, linear: LinearSpec) -> bool:
        """Whether ``linear`` is there, under its own name or as a part of another tensor."""
        return self.has_weight(linear.name) or (linear.part is not None and self._holds(linear.part))

    def _holds(self, part: Part) -> bool:
        return self.has_weight(part.name) or part.name in self or f"{part.name}_blocks" in self

    def weight(self, linear: LinearSpec, *, padded: bool = False) -> FileWeight:
        """The linear layer: EXL2, GPTQ or plain, decided by which tensors are there.

        With ``padded`` it may have more rows than ``n``, up to a multiple of 32, as EXL2 stores a head; elsewhere such rows are dropped,
        and the rest is plain. Raises ModelError.
        """
        name, n, k, part = linear.name, linear.n, linear.k, linear.part
        quantised = any(f"{name}.{first}" in self for first in ("q_weight", "qweight"))
        try:
            if part is not None and not quantised and self._holds(part):
                weight = self._part(part, k)
            else:
                weight = self._whole(name, k)
        except ModelError as error:
            raise ModelError(f"{self.where}: {name}: {error}", error.hint) from error
        whole = -(-n // 32) * 32
        if isinstance(weight, Exl2Weight) and n < whole == weight.shape[0] and not padded:  # rows that were added before quantising
            weight = DenseWeight(weight.dense()[:n].contiguous(), None if weight.bias is None else weight.bias[:n])
        fits = weight.shape == (n, k) or (padded and weight.shape == (whole, k))
        if not fits or (weight.bias is not None and weight.bias.shape[0] != weight.shape[0]):
            bias = "" if weight.bias is None else f" with {weight.bias.shape[0]} biases"
            raise ModelError(
                f"{self.where}: {name} is {weight.shape}{bias}, config.json says {(n, k)}",
                "config.json and the weights do not belong together",
            )
        return weight

    def _whole(self, name: str, k: int) -> FileWeight:
        """The weight under its own name. GPTQ's bits follow from ``k``."""
        parts = self._parts(name)
        if "qweight" in parts and self.awq:
            return from_awq(parts)
        if "qweight" in parts and parts["qweight"].dim() == 2 and (bits := parts["qweight"].shape[0] * 32 // k) in (2, 3, 8):
            return dense_gptq(parts, bits, v2=self.gptq_v2)
        return read_weight(parts, gptq_v2=self.gptq_v2)

    def _part(self, part: Part, k: int) -> FileWeight:
        """The rows of another tensor that ``part`` names."""
        bias = next((self.tensor(b) for b in (f"{part.name}.bias", f"{part.name}_bias") if b in self), None)
        if bias is not None:
            bias = take_rows(_of_expert(bias, part, 1), part).float()
        if f"{part.name}.qweight" in self:
            whole = self._whole(part.name, k)
            if isinstance(whole, GptqWeight):
                return whole.take(take_rows(torch.arange(whole.shape[0]), part))
            return DenseWeight(take_rows(whole.dense(), part), bias)
        if f"{part.name}_blocks" in self:
            blocks, scales = (self.tensor(f"{part.name}_{suffix}")[part.expert] for suffix in ("blocks", "scales"))
            return DenseWeight(take_rows(from_mxfp4(blocks, scales), part), bias)
        name = f"{part.name}.weight" if f"{part.name}.weight" in self else part.name
        tensor = self._parts(part.name)["weight"] if name.endswith(".weight") else self.tensor(name)
        parts = {"weight": take_rows(_of_expert(tensor, part, 2), part)}
        return read_weight(parts if bias is None else {**parts, "bias": bias})

    def _parts(self, name: str) -> dict[str, Tensor]:
        """The tensors of the layer ``name`` by their suffix: those that its format needs, and those that it may have."""
        needed = next((parts for first, parts in FORMATS.items() if f"{name}.{first}" in self), FORMATS["weight"])
        parts = {part: self.tensor(f"{name}.{part}") for part in needed}
        if "weight" in parts and parts["weight"].dtype == torch.float8_e4m3fn:
            scale = next((self.tensor(s) for s in (f"{name}.weight_scale_inv", f"{name}.weight_scale") if s in self), torch.ones(1))
            parts["weight"] = from_fp8(parts["weight"], scale)
        if "qweight" in parts and f"{name}.g_idx" in self:
            parts["g_idx"] = self.tensor(f"{name}.g_idx")
        if f"{name}.bias" in self:
            parts["bias"] = self.vector(f"{name}.bias", self.infos[f"{name}.bias"].numel)
        return parts


def read_weight(parts: dict[str, Tensor], *, gptq_v2: bool = False) -> FileWeight:
    """The weight that the tensors ``parts`` (by suffix) are. Raises ModelError if they are not what their format says."""
    if "q_weight" in parts:
        return Exl2Weight.read(parts)
    if "qweight" in parts:
        return GptqWeight.read(parts, v2=gptq_v2)
    plain = parts["weight"]
    if plain.dim() != 2 or not plain.dtype.is_floating_point:
        sentence = f"the weight has {str(plain.dtype).removeprefix('torch.')} numbers in shape {tuple(plain.shape)}, not a matrix of floats"
        raise ModelError(sentence, "look for a version of the model in F16, BF16, EXL2 or GPTQ")
    return DenseWeight(plain, parts.get("bias"))


def read_tensor(info: TensorInfo) -> Tensor:
    """One tensor of a file, read into memory of its own. Raises ModelError for a dtype that cannot be run."""
    if info.dtype not in DTYPES:
        raise ModelError(
            f"{info.file.name}: {info.name} has the dtype {info.dtype}, which exltui cannot run", f"it runs {', '.join(DTYPES)}"
        )
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        raw = bytearray(stream.read(info.nbytes))
    return torch.frombuffer(raw, dtype=DTYPES[info.dtype]).view(info.shape)


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """``name`` after all of ``renames``, one after the other."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _of_expert(tensor: Tensor, part: Part, dimensions: int) -> Tensor:
    """The matrix (or bias, 1 dimension) of one expert in a stack of them, as [n, ..]. Raises ModelError if there is no such stack."""
    if part.experts > 1:
        if tensor.numel() % part.experts or tensor.dim() not in (dimensions, dimensions + 1):
            raise ModelError(
                f"{part.name} of shape {tuple(tensor.shape)} is no stack of {part.experts} experts", "download the model again"
            )
        rows = (part.experts, -1) if dimensions == 1 else (part.experts, -1, tensor.shape[-1])
        tensor = tensor.reshape(rows)[part.expert]
    if tensor.dim() != dimensions:
        raise ModelError(f"{part.name} has the shape {tuple(tensor.shape)}", "download the model again")
    return tensor.t() if part.transposed and dimensions == 2 else tensor


def take_rows(tensor: Tensor, part: Part) -> Tensor:
    """Rows ``begin`` .. ``begin + count`` of every run of ``of`` rows of ``tensor`` [n, ..]. A view where they lie together."""
    if tensor.shape[0] % part.of or part.begin + part.count > part.of:
        raise ModelError(
            f"{part.name} has {tensor.shape[0]} rows, not runs of {part.of}", "config.json and the weights do not belong together"
        )
    runs = tensor.unflatten(0, (-1, part.of))[:, part.begin : part.begin + part.count]
    return runs.flatten(0, 1).contiguous()
