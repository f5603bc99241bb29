"""The paged KV cache: for each layer keys and values in pages of 256 tokens, at 16, 8 or 4 bits each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exltui.engine.model.memory import room_for
from exltui.engine.model.spec import ArchSpec
from exltui.engine.ops.types import PAGE, CacheLayer
from exltui.errors import ModelError

MODES = {"fp16": (16, 16), "q8": (8, 8), "q6": (8, 4), "q4": (4, 4)}


def parse_cache_mode(mode: str) -> tuple[int, int]:
    """``"fp16"``, ``"q8"``, ``"q6"``, ``"q4"`` or ``"K,V"`` bits -> (k_bits, v_bits). Raises ModelError."""
    if mode in MODES:
        return MODES[mode]
    parts = mode.split(",")
    if len(parts) == 2 and all(part.strip() in ("16", "8", "4") for part in parts):
        return int(parts[0]), int(parts[1])
    raise ModelError(f"{mode!r} is not a cache mode", "say fp16, q8, q6, q4, or key and value bits such as 8,4")


class KVCache:
    """``pages`` pages for every layer of ``spec``. ``dtype`` is that of 16-bit pages; f32 is for parity tests on the CPU."""

    def __init__(self, spec: ArchSpec, pages: int, bits: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        self.pages = pages
        self.bits = bits
        heads = [(layer.attention.g, layer.attention.d) for layer in spec.layers]
        for _, d in heads:
            if min(bits) < 16 and d % 64:
                raise ModelError(f"a head dimension of {d} cannot be cached at {min(bits)} bits", "use --cache fp16")
        per_value = sum(dtype.itemsize if width == 16 else width / 8 + 2 / 32 for width in bits)
        nbytes = int(pages * PAGE * per_value * sum(g * d for g, d in heads))
        with room_for(f"a cache of {pages * PAGE:,} tokens", nbytes, device, "give a smaller --length, or fewer bits with --cache"):
            extra = device.type == "cuda"  # the scratch page, for sequences that fill up a batch
            self.layers = [_allocate(pages + extra, g, d, bits, device, dtype) for g, d in heads]
        self.scratch = pages if extra else None

    @property
    def nbytes(self) -> int:
        return sum(store.numel() * store.element_size() for store in self._stores())

    def copy_page(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` rows of page ``source`` to ``target`` in every layer."""
        for store in self._stores():
            store[target, :tokens] = store[source, :tokens]

    @property
    def parts(self) -> int:
        """Tensors that ``read_page`` gives."""
        return len(self._stores())

    def read_page(self, index: int) -> tuple[torch.Tensor, ...]:
        """A copy of page ``index`` in host memory, pinned where that makes its way back faster: one tensor for each store of each layer."""
        stores = self._stores()
        if not stores[0].is_cuda:
            return tuple(store[index].clone() for store in stores)
        copies = tuple(torch.empty(store.shape[1:], dtype=store.dtype, pin_memory=True) for store in stores)
        for store, copy in zip(stores, copies, strict=True):
            copy.copy_(store[index], non_blocking=True)
        torch.cuda.current_stream(stores[0].device).synchronize()  # once for all of them
        return copies

    def write_page(self, index: int, parts: Sequence[torch.Tensor]) -> None:
        """Put back what ``read_page`` gave, or the first rows of it."""
        for store, part in zip(self._stores(), parts, strict=True):
            store[index, : len(part)].copy_(part, non_blocking=True)

    def _stores(self) -> list[torch.Tensor]:
        return [store for layer in self.layers for store in (layer.k, layer.v, layer.k_scale, layer.v_scale) if store is not None]


def _allocate(pages: int, g: int, d: int, bits: tuple[int, int], device: torch.device, dtype: torch.dtype) -> CacheLayer:
    stores: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for width in bits:
        if width == 16:
            stores.append((torch.zeros(pages, PAGE, g, d, dtype=dtype, device=device), None))
        else:
            codes = torch.zeros(pages, PAGE, g, d * width // 8, dtype=torch.uint8, device=device)
            stores.append((codes, torch.zeros(pages, PAGE, g, d // 32, dtype=torch.float16, device=device)))
    (k, k_scale), (v, v_scale) = stores
    return CacheLayer(k, v, k_scale, v_scale, *bits)
