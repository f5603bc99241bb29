"""Speculation: guesses change how many steps a reply takes and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generator import check_job, done, run
from toy import VOCABULARY, ToyRunner, expected, small_pages, toy_logits, toy_tokenizer

from exltui.engine.generate.drafts import LONGEST, PROBE, Automaton, ModelDrafter, NgramDrafter, Pace, stretch
from exltui.engine.generate.generator import Generator
from exltui.protocol import Event, JobSpec, Sampling

SIZE = 8


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, SIZE)
        yield


class Oracle:
    """Knows each reply, and lies now and then."""

    def __init__(self, specs: dict[str, JobSpec], context: int, honesty: float) -> None:
        self._replies = {name: expected(spec, context)[0] for name, spec in specs.items()}
        self._honesty, self._picks = honesty, random.Random(3)

    def read(self, sequences: list) -> None:
        pass

    def propose(self, jobs: list, counts: list[int]) -> list[list[int]]:
        found = []
        for job, count in zip(jobs, counts, strict=True):
            ahead = self._replies[job.id][len(job.new_ids) : len(job.new_ids) + count]
            found.append([token if self._picks.random() < self._honesty else self._picks.randrange(VOCABULARY) for token in ahead])
        return found


def generator_with(drafter: object, pages: int = 40, context: int = 8 * SIZE, chunk: int = 7) -> Generator:
    return Generator(ToyRunner(pages), toy_tokenizer(), context, chunk, drafter)  # type: ignore[arg-type]


def some_specs(seed: int) -> dict[str, JobSpec]:
    picks = random.Random(seed)
    return {
        f"j{i}": JobSpec(
            f"j{i}",
            prompt_ids=tuple(picks.randint(1, 15) for _ in range(picks.randint(1, 12))),
            sampling=Sampling(
                temperature=picks.choice([0.0, 1.0]),
                token_repetition_penalty=picks.choice([1.0, 1.3]),
                seed=picks.randint(0, 99),
                mirostat=i == 5,
            ),
            max_new_tokens=picks.choice([None, 1, 2, 30]),
            stop_strings=picks.choice([(), ("ab", "k")]),
            banned_strings=picks.choice([(), ("gh", "c")]),
        )
        for i in range(6)
    }


@pytest.mark.parametrize("honesty", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("pages", [11, 60])
def test_replies_are_the_same_token_for_token(honesty: float, pages: int) -> None:
    for seed in range(4):
        specs = some_specs(seed)
        generator = generator_with(Oracle(specs, 8 * SIZE, honesty), pages)
        events: list[Event] = [event for spec in specs.values() for event in generator.submit(spec)] + run(generator)
        for spec in specs.values():
            check_job(events, spec, 8 * SIZE)
        generator.check()
        assert generator.table.used == 0


def test_good_guesses_save_steps_and_are_reported() -> None:
    spec = JobSpec("a", prompt_ids=(3, 4), sampling=Sampling(seed=1), max_new_tokens=50, min_new_tokens=50)
    steps = {}
    for honesty in (0.0, 1.0):
        generator = generator_with(Oracle({"a": spec}, 1000, honesty), 40, 1000)
        stats = done(generator.submit(spec) + run(generator), "a").stats
        steps[honesty] = generator.runner.steps
        assert stats.new_tokens == 50
        assert (stats.accepted_drafts > 35, stats.rejected_drafts > 3) == ((True, False) if honesty else (False, True))
    assert steps[1.0] < 20 and steps[0.0] <= 51


def test_the_distribution_is_that_of_the_model() -> None:
    """Chi-square over the second token of 1,500 seeds, with a guess that is always the same."""

    class Stubborn:
        def read(self, sequences: list) -> None:
            pass

        def propose(self, jobs: list, counts: list[int]) -> list[list[int]]:
            return [[5, 7][:count] for count in counts]

    plain = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    first = torch.from_numpy(toy_logits([3, 4])).double()
    first[0] = -torch.inf
    first = first.softmax(0)
    want = np.zeros(VOCABULARY)
    for i in range(1, VOCABULARY):
        second = torch.from_numpy(toy_logits([3, 4, i])).double()
        second[0] = -torch.inf
        want += float(first[i]) * second.softmax(0).numpy()
    counts: Counter = Counter()
    generator, total = generator_with(Stubborn(), 60, chunk=200), 1500
    events: list[Event] = []
    for i in range(total):
        events += generator.submit(JobSpec(f"j{i}", prompt_ids=(3, 4), sampling=replace(plain, seed=i), max_new_tokens=2, min_new_tokens=2))
    events += run(generator)
    counts.update(event.token_ids[1] for event in events if hasattr(event, "token_ids"))
    common = [i for i in range(VOCABULARY) if want[i] * total >= 5]
    chi = sum((counts[i] - want[i] * total) ** 2 / (want[i] * total) for i in common)
    assert sum(counts.values()) == total and chi < 45  # the 0.01 % quantile of 15 degrees of freedom is 44


class Smaller(ToyRunner):
    """A draft model that agrees with the toy most of the time, and does not mind rows that nobody wrote."""

    def step(self, packet):
        batch, size = packet.batch, SIZE
        starts, logits = batch.query_start.tolist(), []
        for i in range(len(batch.lengths)):
            table = batch.page_table[i].tolist()
            for row in range(starts[i], starts[i + 1]):
                slot = int(batch.slots[row])
                self.cache.rows[slot // size, slot % size] = int(packet.tokens[row])
            last = int(batch.positions[starts[i + 1] - 1])
            seen = self.cache.rows[table].reshape(-1)[: last + 1].tolist()
            values = toy_logits(seen)
            logits.append(values if seen[-1] % 4 else -values)
        self.steps += 1
        return torch.from_numpy(np.array(logits, dtype=np.float32))


@pytest.mark.parametrize("pages", [11, 60])
def test_a_draft_model_shares_the_page_table(pages: int) -> None:
    accepted = 0
    for seed in range(4):
        specs = some_specs(seed)
        specs = {name: replace(spec, sampling=replace(spec.sampling, temperature=0.0)) for name, spec in specs.items()}
        draft = Smaller(pages)
        generator = generator_with(ModelDrafter(draft), pages)
        events: list[Event] = [event for spec in specs.values() for event in generator.submit(spec)] + run(generator)
        for spec in specs.values():
            check_job(events, spec, 8 * SIZE)
        accepted += sum(done(events, name).stats.accepted_drafts for name in specs)
    assert accepted > 20, "a draft model whose cache is wrong would not be believed"


def test_ngrams_foresee_what_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(tokens: list[int]) -> np.ndarray:
        values = np.zeros(VOCABULARY, dtype=np.float32)
        values[1 + tokens[-1] * 7 % 11] = 9.0
        return values

    monkeypatch.setattr(toy, "toy_logits", chain)
    spec = JobSpec("a", prompt_ids=(3,), sampling=Sampling(temperature=0.0), max_new_tokens=80)
    generator = generator_with(NgramDrafter(), 40, 1000)
    events = generator.submit(spec) + run(generator)
    check_job(events, spec, 1000)
    assert done(events, "a").stats.accepted_drafts > 50 and generator.runner.steps < 40


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 2), max_size=40))
def test_the_automaton_finds_the_longest_end_that_was_there_before(tokens: list[int]) -> None:
    automaton = Automaton()
    for count in range(1, len(tokens) + 1):
        automaton.follow(tokens[:count])
        length, end = automaton.match
        here = tokens[:count]
        longest = next((n for n in range(count - 1, 0, -1) if any(here[i : i + n] == here[count - n :] for i in range(count - n))), 0)
        assert length == longest
        if length:
            assert end < count - 1 and here[end - length + 1 : end + 1] == here[count - length :]


def test_the_automaton_begins_again_after_a_rewind() -> None:
    automaton = Automaton()
    automaton.follow([1, 2, 3, 1, 2])
    automaton.follow([1, 2, 9])
    assert automaton.tokens == [1, 2, 9] and automaton.match[0] == 0


def test_the_pace_follows_acceptance_and_pauses_where_guesses_lose() -> None:
    pace = Pace()
    for _ in range(12):
        pace.verified(pace.count(), pace.count())
    assert pace.count() == LONGEST
    for _ in range(12):
        count = pace.count()
        if count == 0:
            break
        pace.verified(count, 0)
    assert [pace.count() for _ in range(PROBE)].count(0) >= PROBE - 1
    assert pace.count() > 0, "after the pause it tries again"


def test_a_shorter_draft_model_is_stretched() -> None:
    assert stretch(8192, 8192) is None and stretch(8192, 2048) is None
    assert stretch(2048, 4096) == pytest.approx(-0.13436 + 0.80541 * 2 + 0.28833 * 4)
