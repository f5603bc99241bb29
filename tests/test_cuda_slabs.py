"""Weights written out as fp16 for cuBLAS, without a GPU: the kernel is played by the layout's own reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import MIXES, exl2
from torch import Tensor

from exltui.engine.model.weights.dense import DenseWeight
from exltui.engine.model.weights.packed import pack_exl2
from exltui.engine.ops import cuda_slabs
from exltui.engine.ops.cuda_layout import TILE, Packed, shared_order

CPU = torch.device("cpu")


class Kernels:
    """Knows the stored rows of a weight by the address of its first panel's words."""

    def __init__(self) -> None:
        self.stored: dict[int, Tensor] = {}
        self.calls = 0

    def add(self, weight: Packed) -> None:
        assert weight.order is not None
        self.stored[weight.panels[0].words.data_ptr()] = weight.dense()[:, weight.order.long() & 0xFFFF]

    def dequantise(self, y: Tensor, words: list[Tensor], scales: list[Tensor], fields: list[int], first: int) -> None:
        rows = torch.cat([self.stored[w.data_ptr()] for w in words if w.data_ptr() in self.stored])
        y.copy_(rows[first * TILE : first * TILE + len(y)])
        self.calls += 1


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    found = Kernels()
    monkeypatch.setattr(cuda_slabs, "_native", found)
    return found


def packed(kernels: Kernels, seed: int, n: int, like: Packed | None = None) -> Packed:
    weight = exl2(torch.Generator().manual_seed(seed), n, MIXES["exl2-82"])
    made = pack_exl2(weight, shared_order(weight.q_perm, CPU) if like is None else like.order)
    kernels.add(made)
    return made


def read(weights: tuple[Any, ...]) -> None:
    """Every out-feature is there, in order, whoever wrote it."""
    at, parts = 0, list(cuda_slabs.slabs(weights))
    dense = torch.cat([weight.dense() for weight in weights])
    for order, slab in parts:
        natural = torch.empty_like(slab)
        natural[:, slice(None) if order is None else order.long() & 0xFFFF] = slab
        assert torch.equal(natural, dense[at : at + len(slab)])
        at += len(slab)
    assert at == len(dense)


def test_weights_with_one_order_are_written_out_at_once(kernels: Kernels) -> None:
    q, other = packed(kernels, 1, 96), packed(kernels, 2, 32)
    read((q, packed(kernels, 3, 32, q)))
    assert kernels.calls == 1
    read((q, other, DenseWeight(torch.randn(40, q.k).half())))
    assert kernels.calls == 3


def test_slabs_are_bounded(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    a = packed(kernels, 1, 96)
    b = packed(kernels, 2, 64, a)
    monkeypatch.setattr(cuda_slabs, "SLAB", 64 * a.k)
    read((a, b))
    assert [len(slab) for _, slab in cuda_slabs.slabs((a, b))] == [64, 64, 32]
    monkeypatch.setattr(cuda_slabs, "SLAB", 1)
    read((a,))
