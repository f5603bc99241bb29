"""Sequences in the cache: which pages each has, what is computed of it, and what a new one finds there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import ROOT, Page, PageTable, chain
from exltui.engine.run.tier import HostTier, Kept


class PageStore(Protocol):
    """A cache of keys and values, or what stands for one in a test."""

    pages: int

    @property
    def parts(self) -> int:
        """Tensors that ``read_page`` gives."""
        ...

    def copy_page(self, source: int, target: int, tokens: int) -> None: ...
    def read_page(self, index: int) -> tuple[Tensor, ...]: ...
    def write_page(self, index: int, parts: Sequence[Tensor]) -> None: ...


@dataclass(slots=True, eq=False)
class Track:
    """One sequence: the keys and values of the first ``computed`` of ``tokens`` are in ``pages``.

    A job has one, or two that advance together where a negative prompt guides it. When it gives its pages up for a while, only ``pages``,
    ``hashes`` and ``computed`` start again.
    """

    tokens: list[int]
    root: bytes = ROOT  # what its hashes begin with: other adapters, other pages
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full pages
    computed: int = 0
    goal: int = 0  # tokens to read before the next draw: what there was when the track entered

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def reading(self) -> bool:
        """Whether it still takes in what was there when it entered; otherwise it decodes."""
        return self.computed < self.goal

    @property
    def previous_hash(self) -> bytes:
        return self.hashes[-1] if self.hashes else self.root


class Room:
    """Gives tracks their pages. ``stores`` are the caches that one page table rules: the model's, and a draft model's beside it."""

    def __init__(self, table: PageTable, stores: Sequence[PageStore], tier: HostTier) -> None:
        self.table = table
        self.stores = stores
        self.tier = tier
        table.evict = self._evict

    def enter(self, tracks: Sequence[Track]) -> bool:
        """Pages for all ``tracks``, or for none. What was computed before of their beginnings is theirs at once."""
        entered: list[Track] = []
        for track in tracks:
            if not self._enter(track):
                for other in entered:
                    self.leave(other)
                return False
            entered.append(track)
        return True

    def _enter(self, track: Track) -> bool:
        reuse = self.table.match(track.tokens, track.root)
        pages = self.table.take(reuse, pages_for(len(track.tokens)))
        if pages is None:
            return False
        track.pages = pages
        track.hashes = [h for i in reuse.pages if (h := self.table.pages[i].hash) is not None]
        track.computed, track.goal = reuse.tokens, len(track.tokens)
        if reuse.copy:
            for store in self.stores:
                store.copy_page(reuse.copy[0], pages[len(reuse.pages)], reuse.copy[1])
        self._restore(track)
        return True

    def _restore(self, track: Track) -> None:
        """Bring back from host memory what follows the pages that were found."""
        while (len(track.hashes) + 1) * PAGE < len(track.tokens):
            page = len(track.hashes)
            tokens = track.tokens[page * PAGE : (page + 1) * PAGE]
            kept = self.tier.get(chain(track.previous_hash, tokens))
            if kept is None:
                return
            at = 0
            for store in self.stores:
                store.write_page(track.pages[page], kept.parts[at : at + store.parts])
                at += store.parts
            track.hashes.append(self.table.filled(track.pages[page], track.previous_hash, tokens))
            track.computed = len(track.hashes) * PAGE

    def _evict(self, page: Page) -> None:
        if self.tier.limit:
            self.tier.put(self._kept(page))

    def _kept(self, page: Page) -> Kept:
        return Kept(page.previous, tuple(page.tokens), tuple(part for store in self.stores for part in store.read_page(page.index)))

    def export(self, tokens: Sequence[int], root: bytes = ROOT) -> list[Kept]:
        """All full pages of ``tokens`` that are in the cache or in host memory, from the first on."""
        found: list[Kept] = []
        previous = root
        while (len(found) + 1) * PAGE <= len(tokens):
            here = chain(previous, tokens[len(found) * PAGE : (len(found) + 1) * PAGE])
            index = self.table.find(here)
            kept = self.tier.get(here) if index is None else self._kept(self.table.pages[index])
            if kept is None:
                break
            found.append(kept)
            previous = here
        return found

    def recall(self, pages: Sequence[Kept]) -> None:
        """Put pages that were exported where the next prompt finds them."""
        self.tier.limit = max(self.tier.limit, self.tier.nbytes + sum(page.nbytes for page in pages))
        for page in pages:
            self.tier.put(page)

    def grow(self, track: Track, count: int) -> bool:
        """Pages for ``count`` tokens more than are computed -> whether there are enough. Those that were found stay with the track."""
        while len(track.pages) * PAGE < track.computed + count:
            page = self.table.extend()
            if page is None:
                return False
            track.pages.append(page)
        return True

    def computed(self, track: Track, count: int) -> None:
        """The keys and values of ``count`` more tokens are in the cache."""
        reading = track.reading
        track.computed += count
        while (len(track.hashes) + 1) * PAGE <= track.computed:
            page = len(track.hashes)
            tokens = track.tokens[page * PAGE : (page + 1) * PAGE]
            track.hashes.append(self.table.filled(track.pages[page], track.previous_hash, tokens))
        if reading and not track.reading:
            self._publish(track)  # others that begin like this prompt need not wait until its reply ends

    def leave(self, track: Track) -> None:
        """Release the track's pages; the table remembers what is in them, the last one's part included."""
        self._publish(track)
        self.abandon(track)

    def abandon(self, track: Track) -> None:
        """Release the track's pages, whose newest contents are not to be trusted."""
        self.table.release(track.pages)
        track.pages, track.hashes, track.computed = [], [], 0

    def _publish(self, track: Track) -> None:
        page, rows = divmod(track.computed, PAGE)
        if rows and page < len(track.pages):
            self.table.filled(track.pages[page], track.previous_hash, track.tokens[page * PAGE : track.computed])


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices compare in C
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
