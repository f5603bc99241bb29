"""The page table against a naive model that remembers, for each row of each page, everything that led to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltui.engine.run import pages as pages_module
from exltui.engine.run.pages import ROOT, PageTable, Reuse, chain

SIZE = 4


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages_module, "PAGE", SIZE)
        yield


class Reader:
    """Sequences as the generator keeps them, and what every row was computed from: a row's meaning is all tokens up to it."""

    def __init__(self, count: int) -> None:
        self.table = PageTable(count)
        self.meaning: list[list[tuple[int, ...] | None]] = [[None] * SIZE for _ in range(count)]
        self.open: list[tuple[list[int], list[int]]] = []  # tokens and pages of each sequence

    def start(self, tokens: list[int]) -> Reuse | None:
        reuse = self.table.match(tokens)
        assert reuse.tokens < len(tokens), "the last token must be computed, its logits are wanted"
        held = {page for _, pages in self.open for page in pages}
        taken = self.table.take(reuse, -(-len(tokens) // SIZE))
        if taken is None:
            return None
        fresh = taken[len(reuse.pages) :]
        assert taken[: len(reuse.pages)] == list(reuse.pages)
        assert len(set(taken)) == len(taken)
        assert not held & set(fresh), "a page in use was given out"
        if reuse.copy:
            source, rows = reuse.copy
            self.meaning[fresh[0]][:rows] = self.meaning[source][:rows]
        for at in range(reuse.tokens):
            assert self.meaning[taken[at // SIZE]][at % SIZE] == tuple(tokens[: at + 1]), "what is reused was computed for something else"
        previous = ROOT
        for i in range(len(reuse.pages)):
            previous = chain(previous, tokens[i * SIZE : (i + 1) * SIZE])
        for at in range(reuse.tokens, len(tokens)):
            self.meaning[taken[at // SIZE]][at % SIZE] = tuple(tokens[: at + 1])
        for i in range(len(reuse.pages), len(tokens) // SIZE):
            previous = self.table.filled(taken[i], previous, tokens[i * SIZE : (i + 1) * SIZE])
        if rest := tokens[len(tokens) // SIZE * SIZE :]:
            self.table.filled(taken[-1], previous, rest)
        self.open.append((tokens, taken))
        return reuse

    def stop(self, index: int) -> None:
        _, taken = self.open.pop(index % len(self.open))
        self.table.release(taken)

    def check(self) -> None:
        held = {page for _, pages in self.open for page in pages}
        assert self.table.used == len(held)
        assert self.table.free + self.table.used == len(self.table.pages)
        for page in self.table.pages:
            assert page.users == sum(page.index in pages for _, pages in self.open)


sequences = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from([[], [1, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]]),
    st.lists(st.integers(1, 3), min_size=1, max_size=9),
)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 12), orders=st.lists(st.one_of(sequences, st.integers(0, 9)), max_size=25))
def test_what_is_reused_is_what_was_computed(count: int, orders: list) -> None:
    reader = Reader(count)
    for order in orders:
        if isinstance(order, list):
            reader.start(order)
        elif reader.open:
            reader.stop(order)
        reader.check()


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(1, 3), min_size=2, max_size=30), cut=st.integers(1, 29))
def test_a_beginning_that_was_just_computed_is_found_whole(tokens: list[int], cut: int) -> None:
    """As long as nothing was evicted, the longest common beginning is reused to the last token but one."""
    reader = Reader(20)
    reader.start(tokens)
    reader.stop(0)
    other = [*tokens[:cut], 9, 9]
    reuse = reader.start(other)
    assert reuse is not None
    assert reuse.tokens == min(cut, len(tokens))


def test_the_least_recently_used_page_goes_first() -> None:
    reader = Reader(4)
    for token in (1, 2, 3):
        reader.start([token] * 5)
        reader.stop(0)  # two pages each: the third sequence takes those of the first
    assert reader.table.match([1] * 5).tokens == 0
    assert reader.table.match([2] * 5).tokens == 4
    assert reader.table.match([3] * 5).tokens == 4


def test_the_end_of_a_sequence_is_forgotten_before_its_beginning() -> None:
    reader = Reader(4)
    reader.start([1] * 16)
    reader.stop(0)
    reader.start([2] * 4)
    assert reader.table.match([1] * 20).tokens == 12


def test_pages_in_use_are_shared_and_not_evicted() -> None:
    reader = Reader(3)
    reader.start([1] * 8)
    assert reader.start([1] * 4 + [2]) is not None  # one page shared, one fresh
    assert reader.table.used == 3
    assert reader.start([5]) is None
    assert reader.table.extend() is None
    reader.stop(1)
    assert reader.table.extend() is not None


def test_clear_forgets_idle_pages_only() -> None:
    reader = Reader(6)
    reader.start([1] * 8)
    reader.start([2] * 8)
    reader.stop(0)
    reader.table.clear()
    assert reader.table.match([1] * 9).tokens == 0
    assert reader.table.match([2] * 9).tokens == 8


def test_equal_tokens_after_different_beginnings_are_different_pages() -> None:
    reader = Reader(8)
    reader.start([1] * 4 + [7] * 5)
    assert reader.table.match([2] * 4 + [7] * 5).tokens == 0
    assert chain(ROOT, [1, 2]) != chain(ROOT, [2, 1])
    assert chain(chain(ROOT, [1]), [2]) != chain(chain(ROOT, [2]), [2])
