"""One step ahead of the host: the same replies, whatever ends meanwhile, with the toy model that knows every token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_generator import check_job, done, run
from toy import small_pages, toy_generator

from exltui.errors import ModelError
from exltui.protocol import Done, JobSpec, Sampling

SIZE = 8
PENALISED = Sampling(temperature=0.9, token_repetition_penalty=1.2, token_frequency_penalty=0.1, token_repetition_range=12, seed=3)


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, SIZE)
        yield


class Log:
    """Notes launches and landings of a toy generator, in order."""

    def __init__(self, generator) -> None:
        self.events: list[str] = []
        runner, launch = generator.runner, generator.runner.launch

        def noted(places):
            flight = launch(places)
            self.events.append("launch" if places[0].token is None else "feed")
            read = flight.read
            flight.read = lambda: (self.events.append("read"), read())[1]
            return flight

        runner.launch = noted


def job(index: int, **changes) -> JobSpec:
    return replace(
        JobSpec(f"j{index}", prompt_ids=(1, 2, 3 + index), sampling=replace(PENALISED, seed=index), max_new_tokens=20), **changes
    )


def test_the_next_step_is_launched_before_the_last_is_read() -> None:
    generator = toy_generator(20, ahead=True)
    log = Log(generator)
    spec = job(1)
    events = generator.submit(spec) + run(generator)
    check_job(events, spec, 20 * SIZE)
    new = len(done(events, "j1").token_ids)
    assert log.events[:5] == ["feed", "launch", "read", "launch", "read"] and log.events.count("feed") == 1
    assert log.events.count("read") >= new - 1
    if done(events, "j1").stats.stop_reason == "max_new_tokens":  # an end that is known costs no step
        assert log.events.count("launch") + 1 == new - 1


def test_what_needs_the_host_does_not_run_ahead() -> None:
    for changes in (
        {"banned_strings": ("zz",)},
        {"scores": True},
        {"negative_prompt_ids": (1, 2), "sampling": replace(PENALISED, cfg_scale=1.5)},
        {"sampling": Sampling(mirostat=True, seed=1)},
        {"sampling": Sampling(dry_multiplier=0.8, seed=1)},
        {"min_new_tokens": 30, "max_new_tokens": 25},
    ):
        generator = toy_generator(20, ahead=True)
        log = Log(generator)
        events = generator.submit(job(1, **changes)) + run(generator)
        assert any(isinstance(event, Done) for event in events)
        assert not log.events, changes


def test_stops_cancels_and_newcomers_change_no_reply() -> None:
    generator = toy_generator(40, ahead=True, chunk=4)
    specs = [job(0, max_new_tokens=40), job(1, max_new_tokens=3), job(2, stop_strings=("c",)), job(3), job(4, sampling=PENALISED)]
    events = []
    for i, spec in enumerate(specs):
        events += generator.submit(spec)
        for _ in range(2 + i):
            events += generator.advance()
        if i == 3:
            events += generator.cancel("j3")
    events += run(generator)
    for spec in specs:
        check_job(events, spec, 40 * SIZE)
    assert generator.table.used == 0
    generator.check()


def test_a_job_that_is_cancelled_while_its_step_runs_leaves_the_cache_as_it_was() -> None:
    generator = toy_generator(12, ahead=True)
    first = job(0, max_new_tokens=None)
    events = generator.submit(first)
    for _ in range(9):
        events += generator.advance()
    events += generator.cancel("j0")
    said = done(events, "j0").token_ids
    again = JobSpec("again", prompt_ids=(*first.prompt_ids, *said), sampling=PENALISED, max_new_tokens=10)
    other = job(5, max_new_tokens=30)
    events += generator.submit(again) + generator.submit(other) + run(generator)
    check_job(events, again, 12 * SIZE)
    check_job(events, other, 12 * SIZE)
    assert done(events, "again").stats.cached_tokens >= len(first.prompt_ids) + len(said) - 2


def test_a_distribution_that_is_too_flat_is_left_to_the_cpu() -> None:
    generator = toy_generator(20, ahead=True)
    generator.runner.too_many = True
    log = Log(generator)
    spec = job(1)
    events = generator.submit(spec) + run(generator)
    check_job(events, spec, 20 * SIZE)
    assert log.events == ["feed", "launch", "read", "read"]


def test_a_logit_that_is_no_number_ends_the_jobs_and_nothing_else() -> None:
    generator = toy_generator(20, ahead=True)
    generator.submit(job(1))
    for _ in range(4):
        generator.advance()
    plain = generator.runner.launch

    def broken(places):
        flight = plain(places)
        flight.result[0][0] = -2.0
        return flight

    generator.runner.launch = broken
    generator.advance()  # what is on its way is sound
    with pytest.raises(ModelError, match="finite"):
        generator.advance()
    assert generator.abandon() == ["j1"]
    generator.runner.launch = plain
    spec = job(2)
    events = generator.submit(spec) + run(generator)
    check_job(events, spec, 20 * SIZE)
