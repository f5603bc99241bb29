"""What becomes of a weight between the file and the kernels: nothing, the CPU's order, or fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltui.engine.model.tensors import AnyWeight, FileWeight
from exltui.engine.model.weights.blocked import UNIT, BlockedWeight, block_exl2, block_gptq, block_plain
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import OpSet
from exltui.errors import DeviceError, ModelError
from exltui.protocol import LoadOptions

BITS = {"q4": 4, "q8": 8, "f16": None}
ACTIVATIONS = {"int8": True, "fp32": False}
HEAD_BITS = 8  # the head decides between tokens, and at 4 bits costs more quality than all layers together
ON_THE_GRID = 1e-4  # |w - q|^2 / |w|^2 at 4 bits: 5e-3 for weights in general, 1e-6 for those that had been 4-bit codes before


@dataclass(frozen=True, slots=True)
class Preparation:
    """``packs``: quantised weights go into the order of the CPU's kernels. ``bits``: plain ones too, rounded. ``int8``: activations."""

    device: torch.device
    packs: bool = False
    bits: int | None = None
    int8: bool = False

    def mlp(self, gate_up: tuple[FileWeight, ...], down: FileWeight) -> tuple[tuple[AnyWeight, ...], AnyWeight, Tensor | None]:
        """The weights of an MLP, and, [n] i64, which feature lies where between them; None: each in its place.

        EXL2 sorts the in-features of ``down`` by importance. On a GPU those before it give theirs in that order, so that nothing has to be
        gathered in a step.
        """
        if self.device.type == "cpu" or not isinstance(down, Exl2Weight) or not all(isinstance(w, Exl2Weight) for w in gate_up):
            return tuple(self(weight) for weight in gate_up), self(down), None
        between = down.q_perm.to(self.device, torch.int64, non_blocking=True)
        sorted_up = tuple(weight.prepare(self.device, between) for weight in gate_up if isinstance(weight, Exl2Weight))
        return sorted_up, down.prepare(self.device, sorted_input=True), between

    def __call__(self, weight: FileWeight, *, head: bool = False) -> AnyWeight:
        """``weight`` as the kernels of the device read it."""
        if self.packs and isinstance(weight, Exl2Weight):
            return block_exl2(weight, int8=self.int8)
        if self.packs and isinstance(weight, GptqWeight):
            return block_gptq(weight, int8=self.int8)
        if self.bits is not None and isinstance(weight, DenseWeight) and weight.shape[1] % UNIT == 0:
            return block_plain(weight, HEAD_BITS if head else self.bits, int8=self.int8)
        return weight.prepare(self.device)


def plan(options: LoadOptions, ops: OpSet, sample: FileWeight) -> Preparation:
    """What ``options`` ask for. Where they say nothing, plain weights stay as they are, unless ``sample``, the first of them, shows that
    4 bits hold them; activations are rounded to 8 bits. Raises ModelError for words that mean nothing, DeviceError where it cannot be done.
    """
    if options.load_as not in (None, *BITS):
        raise ModelError(f"weights cannot be loaded as {options.load_as!r}", f"say {', '.join(BITS)}, or leave it out")
    if options.activations not in (None, *ACTIVATIONS):
        raise ModelError(f"activations cannot be {options.activations!r}", f"say {' or '.join(ACTIVATIONS)}, or leave it out")
    bits = BITS.get(options.load_as or "f16")
    packs = ops.device.type == "cpu" and "norm_linear" in ops.native
    if bits is not None and not packs:
        where = "the native extension" if ops.device.type == "cpu" else "--device cpu"
        raise DeviceError(
            f"loading at {bits} bits needs {where}", "exltui doctor tells what is missing; --load-f16 loads the weights as they are"
        )
    if packs and options.load_as is None and holds_four_bits(sample):
        bits = 4
    return Preparation(ops.device, packs, bits, packs and ACTIVATIONS[options.activations or "int8"])


def holds_four_bits(weight: FileWeight) -> bool:
    """Whether a plain weight loses nothing at 4 bits, because it had been rounded so before."""
    if not isinstance(weight, DenseWeight) or weight.shape[1] % UNIT:
        return False
    few = DenseWeight(weight.weight[:256].contiguous())
    plain = few.weight.double()
    difference = block_plain(few, 4, int8=False).dense().double() - plain
    return bool(difference.square().sum() <= ON_THE_GRID * plain.square().sum())


def blocked_bytes(weights: Sequence[AnyWeight]) -> int:
    """Bytes of the weights that do not lie in the file."""
    return sum(weight.nbytes for weight in weights if isinstance(weight, BlockedWeight))
