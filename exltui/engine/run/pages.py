"""Which page holds what: reference counts, chained hashes, reuse of the least recently used.

A page holds 256 tokens of keys and values. Once full it gets a hash of its tokens and of the hash of the page before it, so equal hashes
mean equal beginnings. Pages of finished jobs stay findable until their room is needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from exltui.engine.ops.types import PAGE
from exltui.meter import PAGE_SIGNS

ROOT = b""  # the hash before the first page


def chain(previous: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a page of ``tokens`` that follows a page with hash ``previous``."""
    digest = hashlib.blake2b(previous, digest_size=16)
    digest.update(b"".join(token.to_bytes(4, "little") for token in tokens))
    return digest.digest()


@dataclass(slots=True)
class Page:
    """``tokens``: what its rows were computed for, from the first row on. ``previous``: the hash of the page before it."""

    index: int
    users: int = 0
    previous: bytes = ROOT
    tokens: list[int] = field(default_factory=list)
    hash: bytes | None = None  # of a full page that can be found

    @property
    def full(self) -> bool:
        return len(self.tokens) == PAGE


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a new sequence starts with: ``pages`` it shares, and ``copy`` = (page to copy from, rows), if part of one more fits."""

    pages: tuple[int, ...]
    copy: tuple[int, int] | None

    @property
    def tokens(self) -> int:
        return len(self.pages) * PAGE + (self.copy[1] if self.copy else 0)


class PageTable:
    """All pages of a cache. A page with users is never handed out; one without is, oldest first."""

    def __init__(self, count: int) -> None:
        self.pages = [Page(i) for i in range(count)]
        self._idle: OrderedDict[int, None] = OrderedDict((i, None) for i in range(count))  # least recently used first
        self.evict: Callable[[Page], None] | None = None  # told of a full page before its room is given away
        self._full: dict[bytes, int] = {}  # hash -> page
        self._partial: dict[bytes, set[int]] = {}  # hash of the page before -> pages that follow it

    @property
    def free(self) -> int:
        """Pages that nobody uses; their contents may still be of use."""
        return len(self._idle)

    @property
    def used(self) -> int:
        return len(self.pages) - len(self._idle)

    def match(self, tokens: Sequence[int], root: bytes = ROOT) -> Reuse:
        """The longest computed beginning of ``tokens``. At least the last token is left out: its logits are wanted.

        Only pages whose chain of hashes begins with ``root`` count: those that were computed under the same adapters.
        """
        shared: list[int] = []
        previous = root
        limit = len(tokens) - 1
        while (len(shared) + 1) * PAGE <= limit:
            here = chain(previous, tokens[len(shared) * PAGE : (len(shared) + 1) * PAGE])
            if here not in self._full:
                break
            shared.append(self._full[here])
            previous = here
        return Reuse(tuple(shared), self.following(previous, tokens[len(shared) * PAGE : limit]))

    def following(self, previous: bytes, tokens: Sequence[int]) -> tuple[int, int] | None:
        """The page behind ``previous`` that begins most like ``tokens``, and how many tokens that are; None if there is none."""
        count, index = max(((common(self.pages[i].tokens, tokens), i) for i in self._partial.get(previous, ())), default=(0, 0))
        return (index, count) if count else None

    def find(self, here: bytes) -> int | None:
        """The page with this hash."""
        return self._full.get(here)

    def take(self, reuse: Reuse, count: int) -> list[int] | None:
        """Pages for a sequence: those of ``reuse`` shared, then fresh ones, ``count`` in all; None if there are too few.

        The source of a copy is not handed out as a fresh page while another is left.
        """
        shared_idle = sum(1 for i in reuse.pages if i in self._idle)
        fresh = count - len(reuse.pages)
        if fresh > len(self._idle) - shared_idle:
            return None
        for i in reuse.pages:
            self._hold(i)
        if reuse.copy and reuse.copy[0] in self._idle:
            self._idle.move_to_end(reuse.copy[0])
        return [*reuse.pages, *(self._fresh() for _ in range(fresh))]

    def extend(self) -> int | None:
        """One more page, or None if all are in use."""
        return self._fresh() if self._idle else None

    def filled(self, index: int, previous: bytes, tokens: Sequence[int]) -> bytes:
        """Say that page ``index``, which one sequence owns, now holds ``tokens`` -> its hash if it is full, else ``ROOT``."""
        page = self.pages[index]
        if page.hash is not None:
            return page.hash
        if not page.tokens or page.previous != previous:
            self._forget(page)
            page.previous = previous
            self._partial.setdefault(previous, set()).add(index)
        page.tokens = list(tokens)
        if page.full:
            here = chain(previous, page.tokens)
            if here not in self._full:  # another sequence may have computed the same page at the same time; the first stays findable
                page.hash = here
                self._full[here] = index
            return here
        return ROOT

    def release(self, indices: Sequence[int]) -> None:
        """The sequence that took ``indices`` is done with them. Its first pages are forgotten last, since more can begin with them."""
        for index in reversed(indices):
            page = self.pages[index]
            page.users -= 1
            if page.users == 0:
                self._idle[index] = None
                self._idle.move_to_end(index)

    def map(self) -> str:
        """A sign of ``PAGE_SIGNS`` for each page."""
        return "".join(PAGE_SIGNS[_state(page)] for page in self.pages)

    def problem(self, held: Sequence[int]) -> str:
        """What contradicts itself, or "". ``held`` are the pages of all sequences, one entry for each sequence that has it."""
        users = Counter(held)
        for page in self.pages:
            if page.users != users[page.index]:
                return f"page {page.index} counts {page.users} users, {users[page.index]} have it"
            if (page.users == 0) != (page.index in self._idle):
                return f"page {page.index} has {page.users} users and is {'' if page.index in self._idle else 'not '}idle"
            if page.hash is not None and (page.hash != chain(page.previous, page.tokens) or self._full.get(page.hash) != page.index):
                return f"page {page.index} is not what its hash says"
            if page.tokens and page.index not in self._partial.get(page.previous, ()):
                return f"page {page.index} cannot be found"
        if len(self._full) != sum(page.hash is not None for page in self.pages):
            return "a hash leads to a page that does not have it"
        return ""

    def clear(self) -> None:
        """Forget the contents of all idle pages."""
        for index in self._idle:
            self._forget(self.pages[index])

    def layout(self) -> list[int]:
        """The pages that hold something, in the order in which they should lie: each sequence's one behind the other."""
        filled = [page for page in self.pages if page.tokens]
        after: dict[bytes, list[Page]] = {}
        for page in filled:
            after.setdefault(page.previous, []).append(page)
        order: list[int] = []
        waiting = [page for page in reversed(filled) if page.previous not in self._full]
        while waiting:
            page = waiting.pop()
            order.append(page.index)
            if page.hash is not None:
                waiting += reversed(after.get(page.hash, []))
        return order

    def exchange(self, left: int, right: int) -> None:
        """What two idle pages held is now in each other's place."""
        one, other = self.pages[left], self.pages[right]
        for page in (one, other):
            if page.tokens:
                self._partial[page.previous].discard(page.index)
        one.previous, one.tokens, one.hash, other.previous, other.tokens, other.hash = (
            other.previous, other.tokens, other.hash, one.previous, one.tokens, one.hash,
        )  # fmt: skip
        for page in (one, other):
            if page.tokens:
                self._partial[page.previous].add(page.index)
            if page.hash is not None:
                self._full[page.hash] = page.index
        moved = {left: right, right: left}
        self._idle = OrderedDict((moved.get(index, index), None) for index in self._idle)

    def _hold(self, index: int) -> None:
        self.pages[index].users += 1
        self._idle.pop(index, None)

    def _fresh(self) -> int:
        index = next(iter(self._idle))
        if self.evict is not None and self.pages[index].hash is not None:
            self.evict(self.pages[index])
        self._forget(self.pages[index])
        self._hold(index)
        return index

    def _forget(self, page: Page) -> None:
        if page.hash is not None:
            del self._full[page.hash]
            page.hash = None
        siblings = self._partial.get(page.previous)
        if siblings is not None:
            siblings.discard(page.index)
            if not siblings:
                del self._partial[page.previous]
        page.tokens = []
        page.previous = ROOT


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences of one type begin with in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices compare in C
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _state(page: Page) -> int:
    if page.users:
        return 4 if page.users > 1 else 3
    return 2 if page.hash is not None else 1 if page.tokens else 0
