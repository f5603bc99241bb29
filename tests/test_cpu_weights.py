"""Weights in the order of the CPU's kernels, rounding at load, the choice of what is loaded how, and all layers in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import load, make, reference_logits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exltui.engine.evaluate.logits import logits
from exltui.engine.model.loading import load_model
from exltui.engine.model.preparation import Preparation, holds_four_bits
from exltui.engine.model.tensors import read_weight
from exltui.engine.model.weights.blocked import BlockedWeight, block_plain
from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.ops import bind
from exltui.engine.ops.table import nmse
from exltui.engine.session import open_session
from exltui.errors import DeviceError, ModelError
from exltui.protocol import JobSpec, LoadOptions, Sampling, Text

GOLDEN = Path(__file__).parent / "data" / "golden"
CPU = torch.device("cpu")
bind("cpu")  # loads the extension, which packs
NAMES = sorted(path.stem for kind in ("exl2", "gptq") for path in GOLDEN.glob(f"golden_{kind}_*"))


@pytest.mark.parametrize("name", NAMES)
def test_files_keep_every_bit_in_the_kernels_order(name: str) -> None:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    parts = {key.removeprefix("layer."): value for key, value in tensors.items() if key.startswith("layer.")}
    weight = Preparation(CPU, packs=True)(read_weight(parts))
    assert isinstance(weight, BlockedWeight) and weight.stored_bytes == read_weight(parts).nbytes
    expected = tensors["expected.weight_fp16" if "exl2" in name else "expected.weight_fp16_v1"]
    assert torch.equal(weight.dense().t(), expected)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Round to nearest, 32 in-features a group, in f64: what loading at ``bits`` bits has to give, scales in f16."""
    groups = weight.double().unflatten(1, (-1, 32))
    if bits == 8:
        scale = (groups.abs().amax(-1, keepdim=True) / 127).half().double()
        return ((groups / scale).nan_to_num().round() * scale).flatten(1)
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 15).half().double()
    zero = (-low / scale).half().double()
    return (((groups / scale + zero).round().clamp(0, 15) - zero) * scale).nan_to_num().flatten(1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 32, 45])
def test_plain_weights_are_rounded_to_the_nearest_step(bits: int, dtype: torch.dtype, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    weight = torch.randn(n, 96, generator=g).to(dtype)
    weight[0, :32], weight[-1, 32:64] = 0.0, weight[-1, 32:64].abs()
    got = block_plain(DenseWeight(weight), bits, int8=False)
    assert got.shape == (n, 96) and got.source == f"q{bits}"
    assert got.data.shape == (-(-n // 32), 3 * (64 + (64 if bits == 4 else 0) + 128 * bits))
    # A value half-way between two steps may fall to either side where f32 and f64 differ; the result is rounded to f16.
    difference = (got.dense().double() - rounded(weight, bits)).abs()
    assert float((difference > 2e-3).double().mean()) < 0.002
    assert torch.equal(got.dense()[0, :32], torch.zeros(32, dtype=torch.float16))


def test_activations_are_rounded_in_units_of_32() -> None:
    g = torch.Generator().manual_seed(0)
    weight = block_plain(DenseWeight(torch.randn(32, 96, generator=g)), 8, int8=True)
    x = torch.randn(3, 96, generator=g)
    x[1, 32:64] = 0.0
    seen = weight.seen(x)
    steps = x.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    assert torch.all((seen - x).unflatten(1, (-1, 32)).abs() <= steps * 0.5001)
    assert torch.equal(seen[1, 32:64], torch.zeros(32))
    assert nmse(seen, x) > 1e-7
    assert block_plain(DenseWeight(torch.randn(32, 96, generator=g)), 8, int8=False).seen(x) is x


def test_a_weight_that_lay_on_a_grid_of_four_bits_is_recognised() -> None:
    g = torch.Generator().manual_seed(1)
    plain = DenseWeight(torch.randn(64, 128, generator=g).half())
    assert not holds_four_bits(plain)
    assert holds_four_bits(DenseWeight(block_plain(plain, 4, int8=False).dense().contiguous()))
    assert not holds_four_bits(DenseWeight(torch.randn(64, 100, generator=g).half()))


# Measured on this model, whose weights are many times a trained one's: 9e-2, 5e-4 and, with the activations, under 2e-3. A damaged scale
# or a swapped row gives 1 and more.
@pytest.mark.parametrize(("load_as", "activations", "allowed"), [("q4", "fp32", 0.3), ("q8", "fp32", 2e-3), ("q8", "int8", 6e-3)])
def test_a_model_rounded_at_load_stays_close(load_as: str, activations: str, allowed: float, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, dtype=torch.float16)
    model = load(tmp_path, load_as=load_as, activations=activations)
    assert model.format == load_as and model.bits_per_weight == {"q4": 5.0, "q8": 8.5}[load_as]
    assert all(weight.format == "blocked" for weight in (*model.decoder.weights, model.decoder.head))
    ids = [(7 * i) % 67 for i in range(80)]
    error = nmse(logits(model, ids), reference_logits(reference, ids))
    assert 1e-8 < error < allowed


def test_without_a_word_plain_weights_stay_as_they_are_unless_four_bits_hold_them(tmp_path: Path) -> None:
    make("Llama", tmp_path / "plain", dtype=torch.float16)
    assert load_model(tmp_path / "plain", LoadOptions(device="cpu"), lambda *_: None, lambda: False).format == "f16"


def test_the_starter_loads_at_four_bits(starter_model: Path) -> None:
    model = load_model(starter_model, LoadOptions(device="cpu", length=512), lambda *_: None, lambda: False)
    assert model.format == "q4" and all(weight.int8 for weight in model.decoder.weights)
    assert model.decoder.head.source == "q8"


@pytest.mark.parametrize("activations", ["int8", "fp32"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_all_layers_in_one_call_compute_what_the_rows_compute(family: str, activations: str, tmp_path: Path) -> None:
    make(family, tmp_path, dtype=torch.float16, head_dim=64)
    model = load(tmp_path, load_as="q8", activations=activations)
    ids = [(5 * i) % 67 for i in range(290)]
    assert model.decoder._run is not None
    for bits in ((16, 16), (8, 4)):
        together = logits(model, ids, bits=bits)
        model.ops.whole = False
        apart = logits(model, ids, bits=bits)
        model.ops.whole = True
        assert torch.equal(together, apart)


@pytest.mark.parametrize("changes", [{"load_as": "q5"}, {"activations": "int4"}])
def test_unknown_words_are_refused(changes: dict[str, str], tmp_path: Path) -> None:
    make("Llama", tmp_path)
    with pytest.raises(ModelError) as caught:
        load(tmp_path, **changes)
    assert next(iter(changes.values())) in str(caught.value) and caught.value.hint


def test_rounding_needs_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exltui.engine.model import loading

    make("Llama", tmp_path)
    monkeypatch.setattr(loading, "bind", lambda device: bind(device, native=False))
    with pytest.raises(DeviceError) as caught:
        load(tmp_path, load_as="q4")
    assert "--load-f16" in caught.value.hint
    assert load(tmp_path, load_as="f16").format == "f32"


class Dispatched(TorchDispatchMode):
    """Notes what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(seed=3)])
def test_a_step_that_decodes_asks_torch_only_for_room_for_the_logits_and_the_draw(starter_model: Path, sampling: Sampling) -> None:
    """Each torch function more costs 10 to 20 microseconds where the weights have just been read (docs/cpu.md)."""
    session = open_session(starter_model, LoadOptions(device="cpu", length=512), lambda *_: None, lambda: False)
    session.generator.submit(JobSpec("a", prompt="Once upon a time", sampling=sampling, max_new_tokens=8, stop_token_ids=()))
    for _ in range(3):
        session.generator.advance()
    with Dispatched() as seen:
        assert any(isinstance(event, Text) for event in session.generator.advance())
    assert seen.names == ["aten.empty.memory_format"] * 2  # in the two native calls
