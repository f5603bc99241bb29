"""Cases for the rows of the op table: arguments with sizes that straddle the edges of every tile, for any device.

A case is built on the CPU in f32 from a seed and moved to its device by ``place``. Pages that a sequence does not own, and rows past its
end, hold NaN: a kernel that reads them shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exltui.engine.model.preparation import Preparation
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.exl2 import Exl2Weight
from exltui.engine.model.weights.gptq import GptqWeight
from exltui.engine.ops import OpSet, kv_codec
from exltui.engine.ops.types import PAGE, Attention, Batch, CacheLayer, Expert, Heads, Norm, Rope, Routing

ROWS = (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 257)
POSITIONS = 600  # of the RoPE tables
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of row ``op``. ``build`` takes a seeded generator."""

    op: str
    name: str
    build: Callable[[torch.Generator], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, ops: OpSet) -> tuple[Any, ...]:
        """The same values at every call, on the op set's device and, where they are activations, in its dtype."""
        return tuple(place(value, ops) for value in self.build(torch.Generator().manual_seed(sum(self.name.encode()))))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A weight that the CPU packs when it loads it: plain ones rounded to ``bits``, with activations at 8 bits if ``int8``."""

    weight: Any
    bits: int | None
    int8: bool


@dataclass(frozen=True, slots=True)
class Wide:
    """Rows that stay f32 where activations are f16: of a residual that outgrows them."""

    rows: Tensor


def place(value: Any, ops: OpSet) -> Any:
    """``value`` on the device: bare tensors of floats are activations; weights prepare themselves; structs go field by field."""
    if isinstance(value, Tensor):
        return value.to(ops.device, ops.dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, Wide):
        return value.rows.to(ops.device)
    if isinstance(value, Loaded):
        on_cpu = Preparation(torch.device("cpu"), True, value.bits, value.int8)(value.weight)
        return on_cpu if ops.device.type == "cpu" else DenseWeight(on_cpu.dense().contiguous(), on_cpu.bias).prepare(ops.device)
    if isinstance(value, (DenseWeight, Exl2Weight, GptqWeight)):
        return Preparation(ops.device, packs=ops.device.type == "cpu")(value)
    if isinstance(value, tuple):
        return tuple(place(part, ops) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _field(getattr(value, f.name), ops) for f in dataclasses.fields(value)}
        return type(value)(**parts)
    return value


def _field(value: Any, ops: OpSet) -> Any:
    return value.to(ops.device) if isinstance(value, Tensor) else place(value, ops)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def integers(g: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=g, dtype=torch.int64).to(torch.int32)


def dense(g: torch.Generator, n: int, k: int, dtype: torch.dtype, *, bias: bool = False) -> DenseWeight:
    return DenseWeight((normal(g, n, k) * k**-0.5).to(dtype), normal(g, n) if bias else None)


def exl2(g: torch.Generator, n: int, groups: tuple[tuple[int, int], ...], *, bias: bool = False) -> Exl2Weight:
    """Random codes and scales; ``groups`` are (bits, rows)."""
    first, pairs = 0, []
    for bits, rows in groups:
        pairs += [bits, first]
        first += rows * bits // 32
    k = sum(rows for _, rows in groups)
    return Exl2Weight(
        integers(g, -(1 << 31), 1 << 31, first, n),
        torch.randperm(k, generator=g).to(torch.int32),
        integers(g, -(1 << 31), 1 << 31, len(groups), n // 8),
        (torch.rand(len(groups), generator=g) * 0.01 + 0.001).half(),
        torch.tensor(pairs, dtype=torch.int16),
        normal(g, n) if bias else None,
    )


def gptq(g: torch.Generator, n: int, k: int, size: int, *, act_order: bool = False, v2: bool = False) -> GptqWeight:
    count = k // size
    g_idx = torch.arange(k, dtype=torch.int32) // size
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=g)]
    words, zeros = integers(g, -(1 << 31), 1 << 31, k // 8, n), integers(g, -(1 << 31), 1 << 31, count, n // 8)
    return GptqWeight(words, zeros, (torch.rand(count, n, generator=g) * 0.02).half(), g_idx, v2, normal(g, n))


MIXES = {  # every width, alone and together, and a short last group
    "exl2-all": ((8, 32), (6, 32), (5, 64), (4, 96), (3, 32), (2, 32)),
    "exl2-4": ((4, 128), (4, 32)),
    "exl2-53": ((5, 32), (3, 96)),
    "exl2-82": ((8, 64), (2, 64)),
    "exl2-6": ((6, 96),),
}


def weight(g: torch.Generator, kind: str, n: int, k: int, *, bias: bool = False) -> Any:
    """A weight of ``kind``; those of files have their own k and an n that is a multiple of 32."""
    if kind.startswith("cpu-"):
        _, source, activations = kind.split("-", 2)
        bits = int(source[1:]) if source in ("q4", "q8") else None
        name = {"q4": "f16", "q8": "bf16", "exl2": "exl2-all", "order": "gptq-order"}.get(source, source)
        return Loaded(weight(g, name, n, k, bias=bias), bits, activations == "int8")
    if kind in DTYPES:
        return dense(g, n, k, DTYPES[kind], bias=bias)
    if kind in MIXES:
        return exl2(g, n, MIXES[kind], bias=bias)
    return gptq(g, n, 128, 32, act_order=kind == "gptq-order", v2=kind == "gptq-v2")


PACKED = ["cpu-q4-fp32", "cpu-q8-fp32", *(f"cpu-{source}-int8" for source in ("q4", "q8", "exl2", "gptq", "order"))]
KINDS = ("f32", "f16", "bf16", *MIXES, "gptq", "gptq-order", "gptq-v2")


def norm(g: torch.Generator, kind: str, k: int) -> Norm | None:
    if kind == "none":
        return None
    if kind == "layer":
        return Norm(1 + normal(g, k) * 0.1, 1e-5, normal(g, k), "layer")
    return Norm(normal(g, k) * 0.1 + (kind == "rms"), 1e-6, None, "rms", 0.0 if kind == "rms" else 1.0)


def rope_tables(g: torch.Generator, width: int, *, interleaved: bool) -> Rope:
    angles = torch.rand(POSITIONS, width // 2, generator=g) * 6.28
    return Rope(angles.cos(), angles.sin(), interleaved)


def batch(g: torch.Generator, sequences: tuple[tuple[int, int], ...], pages: int) -> Batch:
    """``sequences`` are (first position, tokens). Pages come in no order."""
    order = torch.randperm(pages, generator=g).tolist()
    positions, slots, starts, lengths, table = [], [], [0], [], []
    width = max(-(-(start + count) // PAGE) for start, count in sequences)
    for start, count in sequences:
        owned = [order.pop() for _ in range(-(-(start + count) // PAGE))]
        positions += range(start, start + count)
        slots += [owned[p // PAGE] * PAGE + p % PAGE for p in range(start, start + count)]
        starts.append(len(positions))
        lengths.append(start + count)
        table.append([*owned, *[0] * (width - len(owned))])
    return Batch(*(torch.tensor(part, dtype=torch.int32) for part in (positions, slots, starts, lengths, table)))


def cache(g: torch.Generator, heads: Heads, bits: tuple[int, int], owners: Batch | None, pages: int, dtype: torch.dtype) -> CacheLayer:
    """Pages full of NaN, but for the keys that the sequences of ``owners`` hold."""
    stores = []
    for width in bits:
        values = normal(g, pages, PAGE, heads.g, heads.d)
        stale = torch.ones(pages, PAGE, dtype=torch.bool)
        if owners is not None:
            for length, row in zip(owners.lengths.tolist(), owners.page_table.tolist(), strict=True):
                for position in range(length):
                    stale[row[position // PAGE], position % PAGE] = False
        if width == 16:
            values[stale] = float("nan")
            stores.append((values.to(dtype), None))
        else:
            codes, scales = kv_codec.quantise(values.half(), width)
            codes[stale] = 0xA5
            scales[stale] = float("nan")
            stores.append((codes, scales))
    (k, k_scale), (v, v_scale) = stores
    return CacheLayer(k, v, k_scale, v_scale, *bits)


LAYOUTS: dict[str, tuple[tuple[int, int], ...]] = {  # sequences: (first position, tokens)
    "one": ((0, 1),),
    "decode": ((511, 1), (3, 1), (256, 1)),
    "chunk": ((250, 9),),
    "mixed": ((255, 2), (0, 17), (300, 1)),
    "prompt": ((0, 257),),
    "continued": ((200, 130), (0, 33)),
}
SHAPES = {"9x3x64": (9, 3, 64), "4x2x32": (4, 2, 32), "8x1x128": (8, 1, 128), "4x4x80": (4, 4, 80)}
CACHES: dict[str, tuple[tuple[int, int], torch.dtype]] = {
    "fp16": ((16, 16), torch.float16),
    "f32": ((16, 16), torch.float32),
    "q8": ((8, 8), torch.float16),
    "q6": ((8, 4), torch.float16),
    "q4": ((4, 4), torch.float16),
    "k16v4": ((16, 4), torch.float16),
}
PAGES = 9


def _attend(layout: str, shape: str, store: str, attention: Attention) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def build(g: torch.Generator) -> tuple[Any, ...]:
        heads = Heads(*SHAPES[shape])
        where = batch(g, LAYOUTS[layout], PAGES)
        bits, dtype = CACHES[store]
        return normal(g, len(where.positions), heads.h, heads.d), cache(g, heads, bits, where, PAGES, dtype), where, attention

    return build


def _rope_store(layout: str, shape: str, store: str, rope: str, norms: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def build(g: torch.Generator) -> tuple[Any, ...]:
        h, kv, d = SHAPES[shape]
        heads = Heads(h, kv, d, norm(g, norms, d), norm(g, norms, d))
        where = batch(g, LAYOUTS[layout], PAGES)
        width = {"none": 0, "half": d // 2}.get(rope, d)
        tables = rope_tables(g, width, interleaved=rope == "interleaved") if width else None
        bits, dtype = CACHES[store]
        return normal(g, len(where.positions), (h + 2 * kv) * d), tables, where, cache(g, heads, bits, None, PAGES, dtype), heads

    return build


def _strange_heads(g: torch.Generator) -> tuple[Any, ...]:
    """What few families have: a norm over all heads, clipped values, positions in three planes."""
    where = batch(g, LAYOUTS["chunk"], PAGES)
    planes = integers(g, 0, POSITIONS, 3, len(where.positions))
    heads = Heads(4, 2, 32, norm(g, "rms", 128), norm(g, "rms", 64), over_all=True, clip=0.8)
    rope = dataclasses.replace(rope_tables(g, 32, interleaved=False), sections=(4, 8, 4))
    store = cache(g, heads, (16, 16), None, PAGES, torch.float32)
    return normal(g, len(where.positions), 256), rope, dataclasses.replace(where, planes=planes), store, heads


def _norms_of_each_head(g: torch.Generator) -> tuple[Any, ...]:
    where = batch(g, LAYOUTS["chunk"], PAGES)
    norms = [Norm(normal(g, heads, 32), 1e-5, None, kind) for heads, kind in ((4, "layer"), (2, "rms"))]
    heads = Heads(4, 2, 32, norms[0], norms[1])
    rope, store = rope_tables(g, 32, interleaved=True), cache(g, heads, (16, 16), None, PAGES, torch.float32)
    return normal(g, len(where.positions), 256), rope, where, store, heads


def _sinks(layout: str, shape: str, store: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def build(g: torch.Generator) -> tuple[Any, ...]:
        q, layer, where, _ = _attend(layout, shape, store, Attention(0.1))(g)
        return q, layer, where, Attention(0.1, 0.0, 100, normal(g, q.shape[1]) * 3)

    return build


def _experts(t: int, kind: str, activation: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
    """Four experts, one wider than the others; each token takes two, and nobody takes the third."""

    def build(g: torch.Generator) -> tuple[Any, ...]:
        widths = (64, 64, 64, 96)
        every = tuple(Expert((dense(g, n, 64, DTYPES[kind]), dense(g, n, 64, DTYPES[kind])), dense(g, 64, n, DTYPES[kind])) for n in widths)
        chances = torch.rand(t, 4, generator=g)
        chances[:, 2] = -1
        kept = torch.zeros(t, 4).scatter_(1, chances.topk(2, dim=-1).indices, 1.0)
        return normal(g, t, 64), norm(g, "rms", 64), kept * chances, every, activation, normal(g, t, 64), 0.7

    return build


def _packed_experts(t: int, kind: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
    """Five quantised experts with biases and a wider plain one that every token takes; each token takes two of the others."""

    def build(g: torch.Generator) -> tuple[Any, ...]:
        def mlp(kind: str, n: int) -> Expert:
            down = dense(g, 128, n, torch.float16) if kind == "f16" else weight(g, kind, 128, n, bias=True)
            return Expert((weight(g, kind, n, 128, bias=True), weight(g, kind, n, 128, bias=True)), down)

        every = (*(mlp(kind, 128) for _ in range(5)), mlp("f16", 200))
        chances = torch.rand(t, 5, generator=g)
        kept = torch.zeros(t, 5).scatter_(1, chances.topk(2, dim=-1).indices, 1.0)
        weights = torch.cat((kept * chances, torch.rand(t, 1, generator=g)), dim=1)
        return normal(g, t, 128), norm(g, "rms", 128), weights, every, "silu", normal(g, t, 128), 0.7, 3

    return build


def _mixtures() -> list[Case]:
    """The rows of mixtures of experts, and what few families have in the others."""

    def route(t: int, routing: Routing) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (normal(g, t, 64), norm(g, "rms", 64), dense(g, 12, 64, torch.float16), routing)

    def add(t: int, kind: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (normal(g, t, 66), norm(g, kind, 66), normal(g, t, 66), 0.7)

    def activate(t: int, gated: bool, kind: Any) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (normal(g, t, 66), kind, gated)

    def lora(t: int, kind: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (
            normal(g, t, 66),
            normal(g, t, 48),
            norm(g, kind, 48),
            normal(g, 12, 48),
            normal(g, 66, 12),
            normal(g, t, 12),
            0.3,
        )

    corrected = Routing(3, True, torch.linspace(-0.2, 0.2, 12))

    def wide(t: int, kind: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (Wide(normal(g, t, 66)), norm(g, kind, 66), torch.float16)

    def wide_sum(t: int, kind: str) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (normal(g, t, 128), weight(g, kind, 32, 128, bias=True), Wide(normal(g, t, 32)), 0.7)

    found = [Case("norm_add", f"t{t}-{kind}", add(t, kind)) for t in (1, 33) for kind in ("rms", "offset", "layer")]
    found += [Case("norm_add", f"t{t}-wide", lambda g, t=t: (*add(t, "offset")(g)[:2], Wide(normal(g, t, 66)), 0.7)) for t in (1, 33)]
    found += [Case("normed", f"t{t}-{kind}", wide(t, kind)) for t in (1, 33) for kind in ("none", "offset", "layer")]
    found += [Case("linear_add", f"t{t}-{kind}-wide", wide_sum(t, kind)) for t in (1, 9, 33) for kind in ("f16", "gptq")]
    found += [Case("route", f"t{t}-{i}", route(t, r)) for t in (1, 33) for i, r in enumerate((Routing(1), Routing(4, False), corrected))]
    found += [Case("experts", f"t{t}-{a}", _experts(t, "f16", a)) for t in (1, 17) for a in ("silu", "clamped_swiglu")]
    found += [Case("experts", f"t{t}-{k}", _packed_experts(t, k)) for t in (1, 8, 33) for k in ("exl2-53", "exl2-82", "gptq-order", "f16")]
    found += [Case("activate", f"t{t}-{a}", activate(t, t > 1, a)) for t in (1, 17) for a in ("silu", "gelu")]
    found += [Case("lora_add", f"t{t}-{kind}", lora(t, kind)) for t in (1, 17) for kind in ("none", "rms")]
    found += [
        Case("attend", f"{layout}-{shape}-sinks-{store}", _sinks(layout, shape, store))
        for layout in ("decode", "continued")
        for shape, store in (("4x2x32", "fp16"), ("9x3x64", "fp16"), ("9x3x64", "q4"))
    ]
    return [*found, Case("rope_store", "strange", _strange_heads), Case("rope_store", "each-head", _norms_of_each_head)]


def _linears(kind: str, t: int, sizes: tuple[int, int], norms: str = "rms") -> list[Case]:
    """The four rows that multiply, for one kind of weight and ``t`` rows; ``sizes`` are (n, k) of dense weights."""
    any_size = kind in DTYPES or "-q" in kind
    n, k = sizes if any_size else (96, 0)
    other = n + 1 if any_size else 32
    name = f"{kind}-t{t}-n{n}-k{k}-{norms}"

    def with_weights(
        g: torch.Generator, count: int, n_of: Callable[[int], int], *, bias: bool
    ) -> tuple[Tensor, Norm | None, tuple[Any, ...]]:
        weights = tuple(weight(g, kind, n_of(i), k, bias=bias) for i in range(count))
        features = weights[0].weight.shape[1] if isinstance(weights[0], Loaded) else weights[0].shape[1]
        return normal(g, t, features), norm(g, norms, features), weights

    def qkv(g: torch.Generator) -> tuple[Any, ...]:
        return with_weights(g, 3, lambda i: n if i == 0 else other, bias=True)

    def gate_up(activation: str, count: int) -> Callable[[torch.Generator], tuple[Any, ...]]:
        return lambda g: (*with_weights(g, count, lambda _: n, bias=False), activation)

    def head(g: torch.Generator) -> tuple[Any, ...]:
        x, before, weights = with_weights(g, 1, lambda _: n, bias=False)
        return x, before, weights[0], 0.5, 3.0

    def add(g: torch.Generator) -> tuple[Any, ...]:
        x, _, weights = with_weights(g, 1, lambda _: n, bias=t % 2 == 1)
        return x, weights[0], normal(g, t, n), 1.0 if t % 2 else 0.7

    activation = ("silu", "gelu_tanh", "gelu")[t % 3]
    return [
        Case("norm_linear", name, qkv),
        Case("linear_add", name, add),
        Case("norm_gate_up", f"{name}-{activation}", gate_up(activation, 2 if t % 5 else 1)),
        Case("norm_head", name, head),
    ]


def cases() -> list[Case]:
    found = [
        Case("embed", dtype, lambda g, d=dtype: (integers(g, 0, 50, 33), dense(g, 50, 24, DTYPES[d]).weight, 2.5, torch.float32))
        for dtype in DTYPES
    ]
    for t in ROWS:
        found += _linears("f16", t, (67, 97))
    for kind in KINDS:
        found += [case for t in (1, 3, 8, 33) for case in _linears(kind, t, (66, 64))]
    for kind in PACKED:  # the rows differ in what they do around the product: one of them sees every way through it
        found += [_linears(kind, t, (66, 64))[0] for t in (1, 7, 33)] + _linears(kind, 3, (66, 64))
    for norms in ("none", "layer", "offset"):
        found += [case for t in (1, 17) for case in _linears("f16", t, (33, 576), norms)]
    found += _linears("f16", 2, (1, 5)) + _linears("bf16", 1, (130, 1536)) + _linears("f16", 2048, (67, 97))
    plain = Attention(0.125)
    for layout in LAYOUTS:
        for store in CACHES:
            found.append(Case("attend", f"{layout}-9x3x64-{store}", _attend(layout, "9x3x64", store, plain)))
            found.append(Case("rope_store", f"{layout}-9x3x64-{store}", _rope_store(layout, "9x3x64", store, "full", "none")))
    for shape in ("4x2x32", "8x1x128", "4x4x80"):
        found.append(Case("attend", f"mixed-{shape}", _attend("mixed", shape, "fp16", Attention(0.1))))
        found.append(Case("rope_store", f"mixed-{shape}", _rope_store("mixed", shape, "fp16", "half", "none")))
    found.append(Case("attend", "8x1x128-q4", _attend("decode", "8x1x128", "q4", Attention(0.1))))
    found.append(Case("rope_store", "8x1x128-q6", _rope_store("decode", "8x1x128", "q6", "full", "rms")))
    for layout in ("decode", "continued"):
        for store in ("fp16", "q8"):
            found.append(Case("attend", f"{layout}-window-{store}", _attend(layout, "9x3x64", store, Attention(0.125, 0.0, 100))))
            found.append(Case("attend", f"{layout}-softcap-{store}", _attend(layout, "9x3x64", store, Attention(0.125, 5.0, 0))))
    for rope in ("interleaved", "none"):
        for norms in ("rms", "offset", "layer"):
            found.append(Case("rope_store", f"chunk-{rope}-{norms}", _rope_store("chunk", "4x2x32", "f32", rope, norms)))
    return found + _mixtures()
