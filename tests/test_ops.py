"""Every row of the op table, every native version, against its torch reference.

The references compute in f32. On the CPU the kernels do too, so they must agree far within the row's bound, which allows for f16
activations: ``F32_NMSE`` is some hundred roundings of f32, squared. Where something packed is read, the row's own bound holds: the
reference rounds each value that it unpacks to f16, a quantised cache six times, as the formats define, and the kernels do not.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import LAYOUTS, Case, batch, cache, cases, dense, normal, rope_tables

from exltui.engine.ops import OPS, OpSet, bind, cpu
from exltui.engine.ops.table import Call, nmse, recording, verify
from exltui.engine.ops.types import Attention, Batch, CacheLayer, Heads, Norm
from exltui.errors import BuildError, ShapeError

F32_NMSE = 1e-10
CASES = cases()
ARM = platform.machine() in ("aarch64", "arm64")
SETS = ["portable", "neon"] if ARM else ["portable", "avx2", "avx512", "vnni"]
TARGETS = [*SETS, *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=TARGETS)
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpSet]:
    """The native op set of a GPU, or of the CPU with one instruction set."""
    if request.param == "cuda":
        yield bind("cuda")
        return
    monkeypatch.setenv("EXLTUI_ISA", request.param)
    found = bind("cpu")
    if cpu.configure() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield found
    monkeypatch.undo()
    cpu.configure()


def stores(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """What a call may have written: the tensors of its cache layer."""
    layers = [argument for argument in arguments if isinstance(argument, CacheLayer)]
    return [part for layer in layers for part in (layer.k, layer.v, layer.k_scale, layer.v_scale) if part is not None]


def bound(case: Case, ops: OpSet, arguments: tuple[Any, ...]) -> float:
    if ops.dtype != torch.float32:
        return OPS[case.op].nmse
    packed = any(kind in case.name for kind in ("exl2", "gptq", "cpu-"))
    packed |= case.op == "attend" and any(part.dtype == torch.uint8 for part in stores(arguments))
    return OPS[case.op].nmse if packed else F32_NMSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_computes_what_the_reference_says(case: Case, ops: OpSet) -> None:
    ours, again, theirs = (case.arguments(ops) for _ in range(3))
    result, second = getattr(ops, case.op)(*ours), getattr(ops, case.op)(*again)
    expected = OPS[case.op].reference(*theirs)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    error = nmse(result, expected)
    assert error <= bound(case, ops, theirs), f"NMSE {error:.2e}"
    assert torch.equal(result, second)
    for mine, twice, reference in zip(stores(ours), stores(again), stores(theirs), strict=True):
        assert torch.equal(mine.nan_to_num(7.0), twice.nan_to_num(7.0))
        mine, reference = mine.nan_to_num(7.0), reference.nan_to_num(7.0)
        if mine.dtype == torch.float32:
            assert nmse(mine, reference) <= F32_NMSE
        elif mine.dtype == torch.uint8 or ops.dtype == torch.float32:
            # f32 arithmetic in another order may move a value over a rounding edge of f16; more than a few is a defect.
            differing = int((mine != reference).sum())
            assert differing <= mine.numel() / 1000, f"{differing} of {mine.numel()} stored values differ"


def test_every_kernel_has_cases() -> None:
    covered = {case.op for case in CASES}
    assert covered == set(OPS) - {"sample"}  # drawing has tests of its own
    assert bind("cpu").native - {"sample"} <= covered


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    ops = bind("cpu")
    chosen = [case for case in CASES if "t33" in case.name or "t8" in case.name or case.op in ("attend", "rope_store")]
    try:
        results = []
        for threads in (1, 2, 5):
            cpu.configure(threads)
            results.append([getattr(ops, case.op)(*case.arguments(ops)) for case in chosen])
        for case, one, two, five in zip(chosen, *results, strict=True):
            assert torch.equal(one, two) and torch.equal(one, five), str(case)
    finally:
        cpu.configure()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A reply is the same whatever else is in the batch, while the batch is small."""
    ops = bind("cpu")
    g = torch.Generator().manual_seed(5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, weight = normal(g, 13, 97), dense(g, 67, 97, dtype)
        before = Norm(normal(g, 97), 1e-6)
        together = ops.norm_linear(x, before, (weight,))
        alone = torch.cat([ops.norm_linear(row.unsqueeze(0), before, (weight,)) for row in x])
        assert torch.equal(together, alone)


def _wrong_calls() -> list[tuple[str, str, tuple[Any, ...]]]:
    g = torch.Generator().manual_seed(0)
    x, narrow, weight = normal(g, 2, 64), normal(g, 2, 48), dense(g, 32, 64, torch.float16)
    other, heads = dense(g, 40, 64, torch.float16), Heads(4, 2, 32)
    where: Batch = batch(g, LAYOUTS["one"], 2)
    layer = cache(g, heads, (16, 16), where, 2, torch.float16)
    rope = rope_tables(g, 32, interleaved=False)
    return [
        ("norm_linear", "k of x is 48, expected 64", (narrow, None, (weight,))),
        ("linear_add", "k of x is 48, expected 64", (narrow, weight, normal(g, 2, 32))),
        ("linear_add", "n of residual is 31, expected 32", (x, weight, normal(g, 2, 31))),
        ("linear_add", "t of residual is 3, expected 2", (x, weight, normal(g, 3, 32))),
        ("norm_gate_up", "k of x is 48, expected 64", (narrow, None, (weight, weight), "silu")),
        ("norm_gate_up", "n of gate is 32, expected 40", (x, None, (weight, other), "silu")),
        ("norm_head", "k of x is 48, expected 64", (narrow, None, weight)),
        ("rope_store", "(h+2g)*d of qkv is 255, expected 256", (normal(g, 1, 255), rope, where, layer, heads)),
        ("rope_store", "t of slots is 1, expected 2", (normal(g, 2, 256), rope, where, layer, heads)),
        ("attend", "d of q is 64, expected 32", (normal(g, 1, 4, 64), layer, where, Attention(1.0))),
        ("attend", "t of positions is 1, expected 2", (normal(g, 2, 4, 32), layer, where, Attention(1.0))),
    ]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("op", "sentence", "arguments"), _wrong_calls(), ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_shapes_are_named(op: str, sentence: str, arguments: tuple[Any, ...], native: bool) -> None:
    with pytest.raises(ShapeError) as caught:
        getattr(bind("cpu", native=native), op)(*arguments)
    assert sentence in str(caught.value) and op in str(caught.value)


def test_addresses_outside_the_cache_are_refused() -> None:
    """A wrong page table must end in an error, not in another sequence's memory."""
    ops, g = bind("cpu"), torch.Generator().manual_seed(0)
    heads, where = Heads(4, 2, 32), batch(torch.Generator().manual_seed(0), LAYOUTS["one"], 2)
    layer = cache(g, heads, (16, 16), where, 2, torch.float16)
    far = Batch(where.positions, where.slots + 2 * 256, where.query_start, where.lengths, where.page_table + 2)
    with pytest.raises(RuntimeError, match="slot"):
        ops.rope_store(normal(g, 1, 256), None, far, layer, heads)
    with pytest.raises(RuntimeError, match="page"):
        ops.attend(normal(g, 1, 4, 32), layer, far, Attention(1.0))
    late = Batch(where.positions + 600, where.slots, where.query_start, where.lengths, where.page_table)
    with pytest.raises(RuntimeError, match="position"):
        ops.rope_store(normal(g, 1, 256), rope_tables(g, 32, interleaved=False), late, layer, heads)


def test_another_thread_runs_while_a_kernel_does() -> None:
    ops, g = bind("cpu"), torch.Generator().manual_seed(0)
    x, weight = normal(g, 16, 2048), dense(g, 8192, 2048, torch.float16)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    ops.norm_linear(x, None, (weight,) * 16)  # tens of milliseconds; holding the GIL would silence the other thread
    end = time.perf_counter()
    stop.set()
    thread.join()
    edge = (end - begin) / 10  # on either side the call is still, or again, Python
    assert any(begin + edge < at < end - edge for at in ticks)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLTUI_ISA", "sse9")
    with pytest.raises(BuildError, match="sse9"):
        cpu.configure()


def test_verify_names_the_wrong_row() -> None:
    ops = bind("cpu")
    calls: list[Call] = []
    by_op = {case.op: case for case in CASES if "2048" not in case.name}
    with recording(ops, calls):
        for op, case in by_op.items():
            getattr(ops, op)(*case.arguments(ops))
    assert [call.op for call in calls] == list(by_op)
    assert all(error <= OPS[op].nmse for op, error in verify(calls).items())
    damaged = [Call(c.op, c.arguments, c.keywords, c.result * 1.01 if c.op == "attend" else c.result) for c in calls]
    assert [op for op, error in verify(damaged).items() if error > OPS[op].nmse] == ["attend"]
    assert ops.embed is OPS["embed"].reference or "embed" in ops.native  # recording has let go of the functions


def test_moved_bytes_are_counted() -> None:
    ops = bind("cpu")
    for case in CASES:
        assert OPS[case.op].moves(*case.arguments(ops)) > 0, str(case)
