"""Sequences in the cache: which pages each has, what is computed of it, and what a new one finds there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from exltui.engine.ops.types import PAGE
from exltui.engine.run.pages import ROOT, Page, PageTable, chain
from exltui.engine.run.tier import MEND, HostTier, Kept
from exltui.errors import CheckpointError

FRAGMENTED = 10  # one page in so many may lie out of order before it is worth moving any


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
        """Bring back from host memory what follows the pages that were found: whole ones, then the beginning of one more."""
        while (len(track.hashes) + 1) * PAGE < len(track.tokens):
            page = len(track.hashes)
            tokens = track.tokens[page * PAGE : (page + 1) * PAGE]
            kept = self.tier.get(chain(track.previous_hash, tokens))
            if kept is None:
                break
            self._write(track.pages[page], kept)
            track.hashes.append(self.table.filled(track.pages[page], track.previous_hash, tokens))
            track.computed = len(track.hashes) * PAGE
        done = len(track.hashes) * PAGE
        found = self.tier.following(track.previous_hash, track.tokens[done : min(done + PAGE, len(track.tokens) - 1)])
        if found is not None and done + found[1] > track.computed:
            self._write(track.pages[len(track.hashes)], found[0])
            track.computed = done + found[1]

    def _write(self, page: int, kept: Kept) -> None:
        at = 0
        for store in self.stores:
            store.write_page(page, kept.parts[at : at + store.parts])
            at += store.parts

    def _evict(self, page: Page) -> None:
        if self.tier.limit:
            self.tier.put(self._kept(page.index, page.previous, page.tokens))

    def _kept(self, index: int, previous: bytes, tokens: Sequence[int]) -> Kept:
        parts = tuple(part for store in self.stores for part in store.read_page(index))
        return Kept(previous, tuple(tokens), parts if len(tokens) == PAGE else tuple(part[: len(tokens)].clone() for part in parts))

    def export(self, tokens: Sequence[int], root: bytes = ROOT, limit: int | None = None) -> list[Kept]:
        """What of ``tokens`` is in the cache or in host memory, from the first page on, at most ``limit`` bytes. The last may be short."""
        tokens, found = list(tokens), []
        previous, total = root, 0
        for at in range(0, len(tokens), PAGE):
            kept = self._known(previous, tokens[at : at + PAGE])
            total += kept.nbytes if kept is not None else 0
            if kept is None or (limit is not None and total > limit):
                break
            found.append(kept)
            if len(kept.tokens) < PAGE:
                break
            previous = chain(previous, kept.tokens)
        return found

    def _known(self, previous: bytes, tokens: Sequence[int]) -> Kept | None:
        """The longest beginning of a page of ``tokens`` behind ``previous``."""
        here, there = self.table.following(previous, tokens), self.tier.following(previous, tokens)
        if here is not None and (there is None or here[1] >= there[1]):
            return self._kept(here[0], previous, tokens[: here[1]])
        if there is None:
            return None
        kept, count = there
        return kept if count == len(kept.tokens) else Kept(previous, kept.tokens[:count], tuple(part[:count] for part in kept.parts))

    def known(self, tokens: Sequence[int], root: bytes = ROOT) -> int:
        """How many of the first ``tokens`` are in the cache or in host memory; the last one is computed in any case."""
        tokens, at, previous = list(tokens), 0, root
        while at < len(tokens) - 1:
            page = tokens[at : at + PAGE]
            found = (self.table.following(previous, page), self.tier.following(previous, page))
            count = max((each[1] for each in found if each is not None), default=0)
            at += count
            if count < PAGE:
                break
            previous = chain(previous, page)
        return min(at, len(tokens) - 1)

    def recall(self, pages: Sequence[Kept]) -> None:
        """Put pages that were exported where the next prompt finds them, in place of those that were put there so before.

        Raises CheckpointError if they do not have the form of the stores' own.
        """
        like = [part for store in self.stores for part in store.read_page(0)]
        for page in pages:
            if [(part.dtype, part.shape[1:]) for part in page.parts] != [(part.dtype, part.shape[1:]) for part in like]:
                raise CheckpointError("the pages have another form than the cache's", MEND)
        self.tier.guests = sum(page.nbytes for page in pages)
        for page in pages:
            self.tier.put(page)
        self.tier.trim()

    def tidy(self, most: int) -> int:
        """Bring at most ``most`` pages to where their sequences lie in order, if more than a tenth do not -> how many. For idle moments."""
        order = self.table.layout()
        if self.table.used or sum(index != place for place, index in enumerate(order)) * FRAGMENTED <= len(order):
            return 0
        moved = 0
        for place in range(len(order)):
            if moved == most:
                break
            if order[place] != place:
                self._exchange(place, order[place])
                order = [order[place] if index == place else index for index in order]
                moved += 1
        return moved

    def _exchange(self, left: int, right: int) -> None:
        for store in self.stores:
            parts = store.read_page(left)
            store.copy_page(right, left, PAGE)
            store.write_page(right, parts)
        self.table.exchange(left, right)

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
