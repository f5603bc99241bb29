"""LoRA adapters beside a loaded model: the model's weights stay as they are, and each token says which adapters it uses, and how much.

The matrices of all adapters lie one below the other, layer by layer, so that any mix of them is one product: with A [r, k] and B [n, r] of
all ranks and ``mix`` [t, r] the weight of each rank for each token, ``y += ((x A^T) * mix) B^T``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from exltui.adapter import AdapterInfo, read_adapter
from exltui.checkpoint import TensorInfo
from exltui.engine.model.spec import ArchSpec, LinearSpec, MlpSpec, MoeSpec
from exltui.engine.model.tensors import read_tensor, rename, take_rows
from exltui.engine.model.weights.dense import DenseWeight
from exltui.errors import ModelError

Mix = tuple[tuple[int, float], ...]  # (slot, scale) of the adapters that a job uses
LIMIT = 64  # adapters at once


@dataclass(frozen=True, slots=True)
class Stack:
    """The ranks of all adapters for linears with one input: ``a`` [r, k], ``b`` [n, r], ``slots`` [r] the adapter of each rank."""

    a: Tensor
    b: Tensor
    slots: Tensor


@dataclass(slots=True)
class Adapter:
    """One adapter in its slot. ``matrices``: linear's name -> (A [r, k], B [n, r]), alpha and rank already in B."""

    name: str
    slot: int
    scale: float
    info: AdapterInfo
    digest: str  # of its files: two adapters of one name are told apart by it
    matrices: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    embedding: tuple[Tensor, Tensor] | None = None  # A [r, v], B [k, r]
    embed_table: Tensor | None = None  # [v, k] in place of the model's
    head: DenseWeight | None = None  # [v, k] in place of the model's


class AdapterBank:
    """The adapters of one model. What a job uses is fixed when it begins; an adapter that is dropped stays until no job uses it."""

    def __init__(self, spec: ArchSpec, device: torch.device, dtype: torch.dtype) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.adapters: dict[str, Adapter] = {}
        self._held: dict[int, Adapter] = {}  # by slot, dropped ones included
        self._stacks: dict[str, Stack] = {}
        self._rows: dict[str, Tensor] = {}  # by linear: the out-feature, or the in-feature, that lies where, if not each in its place
        self._columns: dict[str, Tensor] = {}

    @property
    def width(self) -> int:
        """Columns of a mix: one more than the highest slot in use."""
        return max(self._held, default=-1) + 1

    def load(self, directory: Path, name: str = "", scale: float = 1.0) -> Adapter:
        """Raises ModelError for an adapter that does not fit the model. Of a name that is there, the new one takes the place."""
        info = read_adapter(directory, name or directory.name)
        _check_scale(scale)
        if len(self._held) >= LIMIT:
            raise ModelError(f"{LIMIT} adapters are loaded already", "drop one first")
        slot = next(i for i in range(LIMIT) if i not in self._held)
        adapter = _Reader(self.spec, self.device, self.dtype, info).read(slot, scale)
        self.adapters[adapter.name] = adapter
        self._held[slot] = adapter
        return adapter

    def rescale(self, name: str, scale: float) -> Adapter:
        """The scale for jobs to come that name none of their own."""
        _check_scale(scale)
        adapter = self._named(name)
        adapter.scale = scale
        return adapter

    def drop(self, name: str) -> None:
        """Jobs to come do not have it any more. Raises ModelError for an unknown name."""
        del self.adapters[self._named(name).name]

    def settle(self, in_use: Iterable[int]) -> None:
        """Let go of dropped adapters whose slots are not ``in_use``, and lay the others side by side."""
        keep = {*in_use, *(adapter.slot for adapter in self.adapters.values())}
        self._held = {slot: adapter for slot, adapter in self._held.items() if slot in keep}
        self._stacks.clear()

    def mix(self, uses: Sequence[tuple[str, float]] | None) -> Mix:
        """What a job uses: the adapters it names, with scales; None: all that are loaded, with theirs. Raises ModelError."""
        if uses is None:
            pairs = [(adapter, adapter.scale) for adapter in self.adapters.values()]
        else:
            for _, scale in uses:
                _check_scale(scale)
            pairs = [(self._named(name), scale) for name, scale in uses]
        return tuple(sorted((adapter.slot, scale) for adapter, scale in pairs if scale != 0.0))

    def root(self, mix: Mix) -> bytes:
        """What the hashes of a job's pages begin with, so that keys and values are shared only under the same adapters."""
        if not mix:
            return b""
        text = repr(sorted((self._held[slot].digest, scale) for slot, scale in mix))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def described(self, mix: Mix) -> str:
        """The adapters of ``mix`` by name, scale and contents."""
        used = [(self._held[slot], scale) for slot, scale in mix]
        return ", ".join(sorted(f"{adapter.name}:{scale:g} {adapter.digest[:8]}" for adapter, scale in used))

    def _named(self, name: str) -> Adapter:
        if name not in self.adapters:
            there = f"loaded are {', '.join(self.adapters)}" if self.adapters else "no adapter is loaded"
            raise ModelError(f"there is no adapter {name[:80]!r}; {there}", "load it first")
        return self.adapters[name]

    # ── what the decoder asks for ───────────────────────────────────────────────────────────────────────────────────────────────

    def sort(self, mlp: MlpSpec, between: Tensor) -> None:
        """What lies between the linears of ``mlp`` has feature ``between[i]`` in place i."""
        self._rows.update((linear.name, between) for linear in mlp.gate_up)
        self._columns[mlp.down.name] = between

    def stack(self, linears: tuple[LinearSpec, ...]) -> Stack | None:
        """The matrices for ``linears``, whose results lie side by side; None if no adapter changes any of them."""
        key = linears[0].name
        if key not in self._stacks:
            self._stacks[key] = self._build(linears)
        found = self._stacks[key]
        return found if len(found.slots) else None

    def changes(self, mlp: MlpSpec | MoeSpec) -> bool:
        """Whether an adapter changes any linear of an MLP or of experts."""
        return any(self.stack(group) is not None for each in _mlps(mlp) for group in each.linears())

    def _build(self, linears: tuple[LinearSpec, ...]) -> Stack:
        n, rows, columns, slots, begin = sum(linear.n for linear in linears), [], [], [], 0
        for linear in linears:
            for slot, adapter in self._held.items():
                pair = adapter.matrices.get(linear.name)
                if pair is not None:
                    a, b = pair
                    if linear.name in self._rows:
                        b = b[self._rows[linear.name]]
                    if linear.name in self._columns:
                        a = a[:, self._columns[linear.name]]
                    wide = torch.zeros(n, a.shape[0], dtype=b.dtype, device=b.device)
                    wide[begin : begin + linear.n] = b
                    rows.append(a)
                    columns.append(wide)
                    slots += [slot] * a.shape[0]
            begin += linear.n
        index = torch.tensor(slots, dtype=torch.int64, device=self.device)
        empty = torch.empty(0, device=self.device)
        return Stack(torch.cat(rows) if rows else empty, torch.cat(columns, dim=1) if columns else empty, index)

    def embed(self, x: Tensor, tokens: Tensor, mix: Tensor, scale: float) -> Tensor:
        """``x`` [t, k] with the embeddings of the adapters in ``mix`` [t, slots]."""
        ids = tokens.long()
        for slot, adapter in self._held.items():
            if adapter.embed_table is not None:
                rows = (mix[:, slot] != 0).unsqueeze(1)
                x = torch.where(rows, (adapter.embed_table[ids].float() * scale).to(x.dtype), x)
        for slot, adapter in self._held.items():
            if adapter.embedding is not None:
                a, b = adapter.embedding
                x = x + ((a[:, ids].float().t() @ b.float().t()) * (mix[:, slot : slot + 1] * scale)).to(x.dtype)
        return x

    def heads(self) -> list[tuple[int, DenseWeight]]:
        """(slot, head [v, k]) of the adapters that bring one of their own."""
        return [(slot, adapter.head) for slot, adapter in self._held.items() if adapter.head is not None]


class _Reader:
    """Reads one adapter's tensors for one model."""

    def __init__(self, spec: ArchSpec, device: torch.device, dtype: torch.dtype, info: AdapterInfo) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.info = info
        self.linears = {linear.name: linear for group in _groups(spec) for linear in group}

    def read(self, slot: int, scale: float) -> Adapter:
        spec, info = self.spec, self.info
        adapter = Adapter(info.name, slot, scale, info, info.digest())
        for module, pair in info.pairs.items():
            self._linear(adapter, module, *pair)
        for module, pair in info.embeddings.items():
            if self._known(module) != spec.embedding:
                raise ModelError(f"{info.name}: {module} is not the model's embedding", self._hint)
            a, b = self._pair(module, *pair, spec.hidden, spec.vocab)
            adapter.embedding = (a, b)
        for module, tensor in info.whole.items():
            name = self._known(module)
            if tensor.shape != (spec.vocab, spec.hidden):
                raise ModelError(f"{info.name}: its {module} is {tensor.shape}, the model's {(spec.vocab, spec.hidden)}", self._hint)
            table = read_tensor(tensor).to(self.device, self.dtype)
            if name == spec.embedding:
                adapter.embed_table = table
            if name == spec.head or (spec.tied and name == spec.embedding and spec.head not in map(self._known, info.whole)):
                adapter.head = DenseWeight(table).prepare(self.device)
        return adapter

    _hint = "the adapter was made for another model"

    def _known(self, module: str) -> str:
        return rename(f"{module}.weight", self.spec.renames).removesuffix(".weight")

    def _linear(self, adapter: Adapter, module: str, a: TensorInfo, b: TensorInfo) -> None:
        """The matrices of one module: a linear of the model, or one that holds several of them."""
        name = self._known(module)
        if name in self.linears:
            linear = self.linears[name]
            adapter.matrices[name] = self._pair(module, a, b, linear.n, linear.k)
            return
        parts = [(linear, linear.part) for linear in self.linears.values() if linear.part is not None and linear.part.name == name]
        if not parts:
            routers = [linear.name for layer in self.spec.layers if isinstance(layer.mlp, MoeSpec) for linear in layer.mlp.routers]
            if name in routers:
                hint = "train it without the router; experts and attention can be adapted"
                raise ModelError(f"{adapter.name}: the adapter changes {module}, a router of experts, which exltui cannot run", hint)
            raise ModelError(f"{adapter.name}: the adapter changes {module}, which the model has not", self._hint)
        whole = self._pair(module, a, b, b.shape[0], parts[0][0].k)
        for linear, part in parts:
            rows = take_rows(whole[1], part)
            if rows.shape[0] != linear.n:
                raise ModelError(f"{adapter.name}: {module} has {b.shape[0]} out-features, which do not fit {linear.name}", self._hint)
            adapter.matrices[linear.name] = (whole[0], rows)

    def _pair(self, module: str, a: TensorInfo, b: TensorInfo, n: int, k: int) -> tuple[Tensor, Tensor]:
        if a.shape[1] != k or b.shape[0] != n:
            raise ModelError(f"{self.info.name}: {module} is for {(b.shape[0], a.shape[1])} weights, the model has {(n, k)}", self._hint)
        scaled = read_tensor(b).float() * self.info.scaling(module, a.shape[0])
        return read_tensor(a).to(self.device, self.dtype), scaled.to(self.device, self.dtype)


def _groups(spec: ArchSpec) -> list[tuple[LinearSpec, ...]]:
    """Linears that adapters can change, those with one input together: attention, MLPs and experts, the head."""
    groups: list[tuple[LinearSpec, ...]] = []
    for layer in spec.layers:
        groups += [layer.qkv, (layer.o,)]
        groups += [group for mlp in _mlps(layer.mlp) for group in mlp.linears()]
    return [*groups, (spec.head_linear,)]


def _mlps(mlp: MlpSpec | MoeSpec) -> tuple[MlpSpec, ...]:
    return mlp.mlps if isinstance(mlp, MoeSpec) else (mlp,)


def _check_scale(scale: float) -> None:
    if not -1000 <= scale <= 1000:
        raise ModelError(f"an adapter cannot be scaled by {scale:g}", "1 is what it was trained with, 0 turns it off")


def parse_use(text: str) -> tuple[str, float]:
    """``"DIR"`` or ``"DIR:SCALE"`` -> (directory, scale)."""
    head, colon, tail = text.rpartition(":")
    if colon:
        try:
            return head, float(tail)
        except ValueError:
            pass
    return text, 1.0
