"""The op table: every numeric operation is one row, and everything else reads the rows.

A row has a name, a signature with named dimensions, a slow and obvious torch reference, a tolerance, the bytes it must move, and native
implementations by device. ``bind(device)`` gives a model its functions once, when it loads; where there is no kernel, the reference
runs. ``recording`` keeps each call of a real step and ``verify`` replays it through the references, which names the row that is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from exltui.errors import BuildError

F = TypeVar("F", bound=Callable[..., Tensor])


@dataclass(slots=True)
class Op:
    """One row. ``nmse`` bounds ``|y - ref|^2 / |ref|^2`` of every native version against the reference in f32."""

    name: str
    signature: str
    reference: Callable[..., Tensor]
    nmse: float
    moves: Callable[..., int]  # bytes that a call with these arguments must read and write
    impls: dict[str, Callable[..., Tensor]] = field(default_factory=dict)  # by device type: "cpu", "cuda" (HIP is cuda too)


OPS: dict[str, Op] = {}


def row(signature: str, *, nmse: float, moves: Callable[..., int]) -> Callable[[F], F]:
    """Register the decorated reference as the row of its name."""

    def register(reference: F) -> F:
        OPS[reference.__name__] = Op(reference.__name__, signature, reference, nmse, moves)
        return reference

    return register


def register_native(device_type: str, name: str, function: Callable[..., Tensor]) -> None:
    """Make ``function`` what ``bind`` gives for row ``name`` on ``device_type``. It takes the reference's arguments."""
    OPS[name].impls[device_type] = function


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call: what went in (cloned before the call where the op writes to it) and what came out."""

    op: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Tensor


class OpSet:
    """The functions of one device: each row is an attribute. ``dtype`` is that of activations, ``native`` names the rows with kernels.

    ``compile_decoder`` makes one call of a decoder's forward pass, where a device can; it is used while ``whole`` is true.
    """

    # Annotations for the type checker; the attributes are set from the table.
    embed: Callable[..., Tensor]
    norm_linear: Callable[..., Tensor]
    linear_add: Callable[..., Tensor]
    norm_gate_up: Callable[..., Tensor]
    norm_add: Callable[..., Tensor]
    normed: Callable[..., Tensor]
    activate: Callable[..., Tensor]
    lora_add: Callable[..., Tensor]
    route: Callable[..., Tensor]
    experts: Callable[..., Tensor]
    norm_head: Callable[..., Tensor]
    rope_store: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    sample: Callable[..., Tensor]
    compile_decoder: Callable[..., Callable[..., Tensor] | None] | None = None
    rows_alike: int = 1  # in a call of compiled layers, each of up to so many rows is computed as if it were alone
    whole: bool = True

    def __init__(self, device: torch.device, functions: dict[str, Callable[..., Tensor]], native: frozenset[str]) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "cpu" else torch.float16
        self.native = native
        for name, function in functions.items():
            setattr(self, name, function)


def bind(device: torch.device | str, *, native: bool = True) -> OpSet:
    """The op set of ``device``. With ``native=False`` the references run everywhere, as they do where the extension is missing."""
    device = torch.device(device)
    available = _native_rows(device.type) if native else {}
    functions = {name: available.get(name, op.reference) for name, op in OPS.items()}
    ops = OpSet(device, functions, frozenset(available))
    if device.type == "cpu" and "attend" in available:
        from exltui.engine.ops import cpu

        ops.compile_decoder, ops.rows_alike = cpu.compile_decoder, cpu.FEW
    return ops


def _native_rows(device_type: str) -> dict[str, Callable[..., Tensor]]:
    """The kernels of ``device_type``, after loading (and if need be building) its extension; none if that fails."""
    from exltui.engine.ops import native

    with contextlib.suppress(BuildError):  # the host and the doctor report it; the references run
        native.register(device_type)
    return {name: op.impls[device_type] for name, op in OPS.items() if device_type in op.impls}


@contextlib.contextmanager
def recording(ops: OpSet, calls: list[Call]) -> Iterator[None]:
    """Within the block, every call of ``ops`` is appended to ``calls``, with its tensors copied."""
    plain = {name: getattr(ops, name) for name in OPS}

    def recorder(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(*arguments: Any, **keywords: Any) -> Tensor:
            before = tuple(_copy(argument) for argument in arguments)
            result = function(*arguments, **keywords)
            calls.append(Call(name, before, keywords, result.clone()))
            return result

        return record

    for name, function in plain.items():
        setattr(ops, name, recorder(name, function))
    ops.whole = False  # or the rows would not be seen
    try:
        yield
    finally:
        ops.whole = True
        for name, function in plain.items():
            setattr(ops, name, function)


def _copy(argument: Any) -> Any:
    """Tensors and cache layers are copied, since later ops overwrite them; weights and scalars are shared."""
    from exltui.engine.ops.types import CacheLayer

    if isinstance(argument, Tensor):
        return argument.clone()
    if isinstance(argument, CacheLayer):
        scales = [None if s is None else s.clone() for s in (argument.k_scale, argument.v_scale)]
        return CacheLayer(argument.k.clone(), argument.v.clone(), scales[0], scales[1], argument.k_bits, argument.v_bits)
    return argument


def verify(calls: list[Call]) -> dict[str, float]:
    """The worst NMSE of each row over ``calls``, each replayed through its reference."""
    worst: dict[str, float] = {}
    for call in calls:
        reference = OPS[call.op].reference(*(_copy(a) for a in call.arguments), **call.keywords)
        worst[call.op] = max(worst.get(call.op, 0.0), nmse(call.result, reference))
    return worst


def nmse(result: Tensor, reference: Tensor) -> float:
    """``|y - ref|^2 / |ref|^2`` in f64; infinite where ``result`` is not finite."""
    y, ref = result.double(), reference.double()
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    return float((y - ref).square().sum() / ref.square().sum().clamp_min(1e-30))
