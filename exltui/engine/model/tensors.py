"""A checkpoint's tensors, mapped into memory, and the reading of one module's weight in whatever format it has."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from exltui.checkpoint import TensorInfo, read_checkpoint
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.errors import ModelError

DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I16": torch.int16, "I32": torch.int32,
}  # fmt: skip
EXL2_PARTS = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")
GPTQ_PARTS = ("qweight", "qzeros", "scales")

AnyWeight = DenseWeight | Exl2Weight | GptqWeight


class Checkpoint:
    """All tensors of a model directory. Nothing is read before it is used, and then by the page."""

    def __init__(self, directory: Path, *, gptq_v2: bool = False) -> None:
        self.infos = read_checkpoint(directory)
        self.where = directory.name
        self.gptq_v2 = gptq_v2
        self.used: set[str] = set()
        self._maps: dict[Path, mmap.mmap] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``, a view of the file. Raises ModelError if it is missing or has a dtype that cannot be run."""
        info = self.infos.get(name)
        if info is None:
            raise ModelError(f"{self.where}: the tensor {name} is missing", "download the model again; a shard may be missing")
        if info.dtype not in DTYPES:
            raise ModelError(
                f"{self.where}: {name} has the dtype {info.dtype}, which exltui cannot run", f"it runs {', '.join(DTYPES)}"
            )
        self.used.add(name)
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

    def weight(self, name: str, n: int, k: int) -> AnyWeight:
        """The linear layer ``name``: EXL2, GPTQ or plain, decided by which tensors are there. n may be padded to a multiple of 32."""
        bias = self.vector(f"{name}.bias", self.infos[f"{name}.bias"].numel) if f"{name}.bias" in self else None
        weight: AnyWeight
        if f"{name}.q_weight" in self:
            weight = Exl2Weight(*(self.tensor(f"{name}.{part}") for part in EXL2_PARTS), bias=bias)
        elif f"{name}.qweight" in self:
            parts = {
                part: self.tensor(f"{name}.{part}")
                for part in (*GPTQ_PARTS, "g_idx")
                if part in GPTQ_PARTS or f"{name}.g_idx" in self
            }
            weight = GptqWeight.read(parts if bias is None else {**parts, "bias": bias}, v2=self.gptq_v2)
        else:
            plain = self.tensor(f"{name}.weight")
            if plain.dim() != 2 or not plain.dtype.is_floating_point:
                raise ModelError(
                    f"{self.where}: {name}.weight is {plain.dtype} of shape {tuple(plain.shape)}, not a matrix", "it cannot be run"
                )
            weight = DenseWeight(plain, bias)
        padded = -(-n // 32) * 32
        if weight.shape not in ((n, k), (padded, k)):
            raise ModelError(
                f"{self.where}: {name} is {weight.shape}, config.json says {(n, k)}",
                "config.json and the weights do not belong together",
            )
        return weight
