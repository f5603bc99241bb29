"""A checkpoint's tensors, mapped into memory, and the reading of one module's weight in whatever format it has."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from exltui.checkpoint import TensorInfo, read_checkpoint
from exltui.engine.model.weights import exl2
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops.cuda_layout import Packed
from exltui.errors import ModelError

DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I16": torch.int16, "I32": torch.int32,
}  # fmt: skip
FORMATS: dict[str, tuple[str, ...]] = {  # the tensor by which a format is known, and all that it must have
    "q_weight": tuple(exl2.PARTS),
    "qweight": ("qweight", "qzeros", "scales"),
    "weight": ("weight",),
}

FileWeight = DenseWeight | Exl2Weight | GptqWeight
AnyWeight = FileWeight | Packed  # as it lies in the file, or in the order of the GPU kernels


class Checkpoint:
    """All tensors of a model directory. Nothing is read before it is used, and then by the page."""

    def __init__(self, directory: Path, *, gptq_v2: bool = False) -> None:
        """``gptq_v2``: how GPTQ files in it store zero points. Raises CheckpointError for a file that cannot be believed."""
        self.infos = read_checkpoint(directory)
        self.where = directory.name
        self.gptq_v2 = gptq_v2
        self.used: set[str] = set()
        self.on_use: Callable[[Tensor], None] | None = None  # sees every tensor before it is used; may raise to stop
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
        tensor = self._view(info)
        if self.on_use is not None:
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

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight or a bias of ``size`` values, in f32: small, and read by every kernel."""
        values = self.tensor(name)
        if values.numel() != size:
            raise ModelError(
                f"{self.where}: {name} has {values.numel()} values, expected {size}",
                "config.json and the weights do not belong together",
            )
        return values.reshape(-1).float()

    def head_vector(self, name: str, heads: int, size: int) -> Tensor:
        """The norm of each head -> [size] f32. EXL2 files repeat it for each of ``heads`` heads; other rows than equal are refused."""
        if name in self and self.infos[name].shape != (heads, size):
            return self.vector(name, size)
        rows = self.vector(name, heads * size).view(heads, size)
        if not bool((rows == rows[0]).all()):
            raise ModelError(f"{self.where}: {name} differs from head to head", "config.json and the weights do not belong together")
        return rows[0].clone()

    def has_weight(self, name: str) -> bool:
        """Whether the linear layer ``name`` is there, in any format."""
        return any(f"{name}.{part}" in self for part in FORMATS)

    def weight(self, name: str, n: int, k: int, *, padded: bool = False) -> FileWeight:
        """The linear layer ``name``: EXL2, GPTQ or plain, decided by which tensors are there.

        With ``padded`` it may have more rows than ``n``, up to a multiple of 32, as EXL2 stores a head. Raises ModelError.
        """
        parts = self._parts(name)
        try:
            weight = read_weight(parts, gptq_v2=self.gptq_v2)
        except ModelError as error:
            raise ModelError(f"{self.where}: {name}: {error}", error.hint) from error
        fits = weight.shape == (n, k) or (padded and weight.shape == (-(-n // 32) * 32, k))
        if not fits or (weight.bias is not None and weight.bias.shape[0] != weight.shape[0]):
            bias = "" if weight.bias is None else f" with {weight.bias.shape[0]} biases"
            raise ModelError(
                f"{self.where}: {name} is {weight.shape}{bias}, config.json says {(n, k)}",
                "config.json and the weights do not belong together",
            )
        return weight

    def _parts(self, name: str) -> dict[str, Tensor]:
        """The tensors of the layer ``name`` by their suffix: those that its format needs, and those that it may have."""
        needed = next((parts for first, parts in FORMATS.items() if f"{name}.{first}" in self), FORMATS["weight"])
        parts = {part: self.tensor(f"{name}.{part}") for part in needed}
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
        raise ModelError(f"the weight is {plain.dtype} of shape {tuple(plain.shape)}, not a matrix", "it cannot be run")
    return DenseWeight(plain, parts.get("bias"))
