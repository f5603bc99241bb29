"""What a job can ask for beyond tokens: scores, rewinds, healing, loops, guidance, priorities; and 10,000 steps of everything at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_generator import check_job, done, run, text
from toy import decode, expected, small_pages, toy_generator, toy_logits

from exltui.engine.generate import generator as generator_module
from exltui.engine.generate.guard import Guard
from exltui.engine.generate.job import period
from exltui.engine.run.pages import common
from exltui.errors import ContextError, ExltuiError, SamplingError
from exltui.protocol import Done, Event, JobSpec, Prefill, Rewound, Sampling, Scores, Text

SIZE = 8
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, SIZE)
        yield


def test_scores_say_how_likely_a_token_was_to_the_model_and_after_the_sampler() -> None:
    generator = toy_generator(20)
    spec = JobSpec(
        "a",
        prompt_ids=(3, 4),
        sampling=Sampling(seed=3, top_k=4, top_p=1.0, min_p=0.0, temperature=1.0),
        max_new_tokens=6,
        top_tokens=3,
        logits=True,
    )
    events = generator.submit(spec) + run(generator)
    found = [event for event in events if isinstance(event, Scores)]
    ids = list(done(events, "a").token_ids)
    assert [event.token for event in found] == ids and [event.position for event in found] == list(range(2, 8))
    for i, event in enumerate(found):
        logits = torch.from_numpy(toy_logits([3, 4, *ids[:i]])).double()
        assert event.logits == pytest.approx(logits.tolist())
        raw, best = logits.softmax(0), logits.topk(4)
        final = dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))
        assert event.raw_probability == pytest.approx(float(raw[event.token]), rel=1e-5)
        assert event.probability == pytest.approx(final[event.token], rel=1e-5)
        assert dict(event.top) == pytest.approx({i: final[i] for i in best.indices[:3].tolist()}, rel=1e-5)
        assert dict(event.raw_top) == pytest.approx({i: float(raw[i]) for i in best.indices[:3].tolist()}, rel=1e-5)
    check_job(events, spec, 20 * SIZE)


def test_a_rewind_is_reported_and_its_text_never_shown() -> None:
    """Every letter of a reply is banned in turn; the ids in the result hold none twice and none that was taken back."""
    plain, _ = expected(JobSpec("", prompt_ids=(5,), sampling=GREEDY, max_new_tokens=12), 1000)
    word = decode(plain[3:6])
    spec = JobSpec("a", prompt_ids=(5,), sampling=GREEDY, max_new_tokens=12, banned_strings=(word.upper(),), scores=True)
    generator = toy_generator(20)
    events = generator.submit(spec) + run(generator)
    rewound = [event for event in events if isinstance(event, Rewound)]
    assert (rewound[0].text, rewound[0].token_ids, rewound[0].cause) == (word, tuple(plain[3:6]), word)
    assert word not in text(events, "a") and len(done(events, "a").token_ids) == done(events, "a").stats.new_tokens
    check_job(events, spec, 20 * SIZE)


def test_a_rewind_into_a_full_page_that_another_job_may_share_leaves_that_page_alone() -> None:
    generator = toy_generator(40, chunk=64)
    head = (2, 3, 4, 5, 6, 7, 8)  # the rewind crosses from the second page back into the first
    plain, _ = expected(JobSpec("", prompt_ids=head, sampling=GREEDY, max_new_tokens=12), 1000)
    banned = replace(JobSpec("a", prompt_ids=head, sampling=GREEDY, max_new_tokens=12), banned_strings=(decode(plain[:8]),))
    specs = [banned, JobSpec("b", prompt_ids=(*head, *plain[:4], 9), sampling=GREEDY, max_new_tokens=12)]
    events = [event for spec in specs for event in generator.submit(spec)] + run(generator)
    assert any(isinstance(event, Rewound) for event in events)
    for spec in specs:
        check_job(events, spec, 40 * SIZE)
    generator.check()


def test_text_that_may_be_banned_is_kept_back_by_whole_tokens() -> None:
    guard = Guard(["Bad Word", "xx"])
    assert guard.push(1, "the b", "s0") == ("", 0, None)  # one token: it goes or stays as a whole
    assert guard.push(2, "ad", "s1") == ("", 0, None)
    assert guard.push(3, " day ", "s2") == ("the bad day ", 3, None)
    assert guard.push(4, "BA", "s3") == ("", 0, None)
    text_, count, match = guard.push(5, "D WORDS", "s4")
    assert (text_, count) == ("", 0) and match is not None
    assert (match.tokens, match.first, match.text, match.string, match.state) == (2, 4, "BAD WORDS", "bad word", "s3")
    assert guard.push(6, "x", "s5") == ("", 0, None) and guard.finish() == ("x", 1)


def test_what_is_taken_back_may_leave_the_beginning_of_a_banned_string() -> None:
    """m, then m again, then n: the second m goes; an n in its place would make a banned string with the first."""
    guard = Guard(["mn"])
    assert guard.push(1, "k", 0) == ("k", 1, None)
    assert guard.push(2, "m", 1) == ("", 0, None) and guard.push(2, "m", 2) == ("", 0, None)
    assert guard.push(3, "n", 3)[2].tokens == 2
    text_, count, match = guard.push(3, "n", 2)
    assert (text_, count, match.tokens, match.state) == ("", 0, 2, 1)
    assert guard.push(4, "x", 1) == ("x", 1, None)


def test_the_end_is_not_drawn_before_min_new_tokens() -> None:
    free = JobSpec("a", prompt_ids=(1,), sampling=Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=2), logit_bias=((0, 9.0),))
    for least in (0, 9):
        generator = toy_generator(20)
        spec = replace(free, min_new_tokens=least, max_new_tokens=30)
        events = generator.submit(spec) + run(generator)
        assert (done(events, "a").stats.new_tokens >= 9) == (least == 9)
        check_job(events, spec, 20 * SIZE)


def test_a_reply_in_a_loop_ends() -> None:
    generator = toy_generator(30)
    always = tuple(i for i in range(16) if i not in (7, 8))
    events = generator.submit(JobSpec("a", prompt_ids=(7, 8), sampling=GREEDY, banned_tokens=(*always, 8), loop_window=20)) + run(generator)
    assert done(events, "a").stats.stop_reason == "loop_detected"
    assert 20 <= done(events, "a").stats.new_tokens <= 20 + 16
    spec = JobSpec("b", prompt_ids=(7, 8), sampling=Sampling(seed=1), max_new_tokens=60, loop_window=20)
    check_job(generator.submit(spec) + run(generator), spec, 30 * SIZE)


@pytest.mark.parametrize(("tokens", "want"), [([1, 2, 1, 2, 1], 2), ([1, 1, 1], 1), ([1, 2, 3], 3), ([1, 2, 1, 3], 4), ([], 0)])
def test_the_period_of_what_repeats(tokens: list[int], want: int) -> None:
    assert period(tokens) == want


def test_guidance_needs_a_negative_prompt_and_both_must_fit() -> None:
    generator = toy_generator(4)
    with pytest.raises(SamplingError, match="without a negative prompt"):
        generator.submit(JobSpec("a", prompt_ids=(1,), sampling=Sampling(cfg_scale=2.0)))
    with pytest.raises(ContextError, match="the negative prompt has 16 tokens, the context holds 16"):
        generator.submit(JobSpec("a", prompt_ids=(1,), sampling=Sampling(cfg_scale=2.0), negative_prompt_ids=(1,) * 16))


@pytest.mark.parametrize(
    ("change", "words"), [({"min_new_tokens": -1}, "min_new_tokens is -1"), ({"loop_repeats": 1, "loop_window": 9}, "a loop of 1 repeats")]
)
def test_numbers_that_make_no_sense_are_refused(change: dict, words: str) -> None:
    with pytest.raises(SamplingError, match=words):
        toy_generator(4).submit(replace(JobSpec("a", prompt_ids=(1,)), **change))


def test_candidates_of_one_prompt_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are submitted at once; the others wait until the first has read what they share, then take its pages."""
    monkeypatch.setattr(generator_module, "WORTH", 1)
    generator = toy_generator(40, chunk=8)
    prompt = tuple(1 + i % 13 for i in range(4 * SIZE + 5))
    specs = [JobSpec(f"c{i}", prompt_ids=prompt, sampling=Sampling(seed=i), max_new_tokens=8) for i in range(4)]
    events: list[Event] = [event for spec in specs for event in generator.submit(spec)]
    pages = 0
    while generator.busy:
        events += generator.advance()
        pages = max(pages, generator.table.used)
    for spec in specs:
        check_job(events, spec, 40 * SIZE)
    assert generator.tokens_read == len(prompt) + 3, "of the others only the last token of the prompt is read"
    assert pages <= 4 + 4 * 2
    assert [done(events, spec.id).stats.cached_pages for spec in specs] == [0, 4, 4, 4]
    assert len({done(events, spec.id).token_ids for spec in specs}) > 1


def test_the_chat_outranks_bulk_jobs() -> None:
    """Bulk jobs fill the cache; a chat message takes the place of one, which later ends as if nothing had been."""
    generator = toy_generator(10, 10 * SIZE, chunk=8)
    bulk = [
        JobSpec(
            f"bulk-{i}",
            prompt_ids=tuple(1 + (i + j) % 15 for j in range(3 * SIZE)),
            sampling=Sampling(seed=i),
            max_new_tokens=20,
            priority=-1,
        )
        for i in range(3)
    ]
    events = [event for spec in bulk for event in generator.submit(spec)]
    for _ in range(12):
        events += generator.advance()
    chat = JobSpec("chat", prompt_ids=tuple(1 + j % 7 for j in range(4 * SIZE)), sampling=Sampling(seed=9), max_new_tokens=6)
    events += generator.submit(chat)
    events += generator.advance()
    assert any(isinstance(event, Prefill) and event.id == "chat" for event in events), "it starts in the very next step"
    events += run(generator)
    order = [event.id for event in events if isinstance(event, Done)]
    assert order.index("chat") < 2
    for spec in (*bulk, chat):
        check_job(events, spec, 10 * SIZE)


def test_one_that_does_not_fit_is_passed_at_most_four_times() -> None:
    generator = toy_generator(10, 10 * SIZE, chunk=64)
    generator.submit(JobSpec("holds", prompt_ids=(1,) * (5 * SIZE), sampling=GREEDY, max_new_tokens=25, min_new_tokens=25))
    generator.advance()
    generator.submit(JobSpec("large", prompt_ids=(2,) * (7 * SIZE), sampling=GREEDY, max_new_tokens=1))
    for i in range(8):
        generator.submit(JobSpec(f"small-{i}", prompt_ids=(3 + i,), sampling=GREEDY, max_new_tokens=1))
    order = [event.id for event in run(generator) if isinstance(event, Done)]
    assert order.index("large") == generator_module.MAX_SKIPS + 1
    assert order[: generator_module.MAX_SKIPS] == [f"small-{i}" for i in range(4)]


def test_cancel_keeps_what_was_computed() -> None:
    generator = toy_generator(20, chunk=8)
    prompt = tuple(1 + i % 11 for i in range(40))
    generator.submit(JobSpec("a", prompt_ids=prompt, sampling=GREEDY))
    generator.advance()
    generator.advance()
    generator.cancel("a")
    events = generator.submit(JobSpec("b", prompt_ids=prompt, sampling=GREEDY, max_new_tokens=3)) + run(generator)
    assert done(events, "b").stats.cached_tokens == 16


def test_what_ends_a_job_is_named() -> None:
    generator = toy_generator(20)
    plain, _ = expected(JobSpec("", prompt_ids=(5,), sampling=GREEDY, max_new_tokens=12), 1000)
    events = generator.submit(JobSpec("a", prompt_ids=(5,), sampling=GREEDY, stop_strings=(decode(plain[4:6]),))) + run(generator)
    assert (done(events, "a").stats.stop_string, done(events, "a").stats.stop_token) == (decode(plain[4:6]), None)
    events = generator.submit(JobSpec("b", prompt_ids=(5,), sampling=GREEDY, stop_token_ids=(plain[4],))) + run(generator)
    assert done(events, "b").stats.stop_token in (plain[4], *plain[:4])
    assert done(events, "b").stats.queued_seconds >= 0


def test_a_damaged_page_table_is_noticed() -> None:
    generator = toy_generator(6)
    run_once = generator.submit(JobSpec("a", prompt_ids=(1,) * 20, sampling=GREEDY, max_new_tokens=3)) + run(generator)
    assert done(run_once, "a")
    generator.check()
    page = next(page for page in generator.table.pages if page.hash is not None)
    page.tokens[0] = 9
    with pytest.raises(ExltuiError, match="not what its hash says"):
        generator.check()
    page.tokens[0] = 1
    page.users = 1
    with pytest.raises(ExltuiError, match="counts 1 users, 0 have it"):
        generator.check()


def test_pages_come_into_the_order_of_their_sequences_while_nothing_runs() -> None:
    """Jobs that advance together get pages by turns. What is moved is found again, and is what it was."""
    generator = toy_generator(40, chunk=64)
    specs = [
        JobSpec(f"j{i}", prompt_ids=(*[3, 1, 4] * 4, 1 + i), sampling=Sampling(seed=i), max_new_tokens=50, min_new_tokens=50)
        for i in range(4)
    ]
    events = [event for spec in specs for event in generator.submit(spec)]
    events += generator.advance()
    assert generator.tidy() == 0, "not while a job runs"
    events += run(generator)
    order = generator.table.layout()
    assert order != sorted(order) and generator.tidy() == generator_module.TIDY, "so many at once"
    while generator.tidy():
        generator.check()
    order = generator.table.layout()
    assert sum(index != place for place, index in enumerate(order)) * 10 <= len(order) > 20
    for spec in specs:
        whole = (*(spec.prompt_ids or ()), *done(events, spec.id).token_ids)
        again = replace(spec, id=f"{spec.id} again", prompt_ids=(*whole, 5), max_new_tokens=4, min_new_tokens=0)
        more = generator.submit(again) + run(generator)
        check_job(more, again, 40 * SIZE)
        assert done(more, again.id).stats.cached_tokens == len(whole) - 1


def test_common_beginnings() -> None:
    picks = np.random.default_rng(0)
    for _ in range(200):
        left, right = picks.integers(0, 2, picks.integers(0, 9)).tolist(), picks.integers(0, 2, picks.integers(0, 9)).tolist()
        want = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
        assert common(left, right) == want


def _any_spec(picks: random.Random, name: str) -> JobSpec:
    heads = [(), (1, 2, 3, 4, 5, 6, 7, 8, 9), tuple([3, 1, 4, 1, 5, 9, 2, 6] * 3), tuple([3, 1, 4, 1, 5, 9, 2, 6] * 2 + [7, 7])]

    def prompt() -> tuple[int, ...]:
        return picks.choice(heads) + tuple(picks.randint(1, 15) for _ in range(picks.randint(1, 8)))

    negative = prompt() if picks.random() < 0.15 else None
    sampling = Sampling(
        temperature=picks.choice([0.0, 0.7, 1.5]),
        token_repetition_penalty=picks.choice([1.0, 1.3]),
        mirostat=picks.random() < 0.1,
        cfg_scale=1.5 if negative else 1.0,
        seed=picks.randint(0, 999),
    )
    return JobSpec(
        name,
        prompt_ids=prompt(),
        sampling=sampling,
        max_new_tokens=picks.choice([3, 12, 40]),
        banned_strings=picks.choice([(), (), ("C",), ("gh", "f", "mn")]),
        negative_prompt_ids=negative,
        priority=picks.choice([0, 0, 0, 1]),
    )


def test_ten_thousand_steps_of_everything_leak_nothing() -> None:
    """Jobs of all kinds come, are cancelled and end, in a cache that is too small for them; each gets what it gets alone."""
    picks, pages = random.Random(5), 14
    generator = toy_generator(pages, 8 * SIZE, 6)
    specs: dict[str, JobSpec] = {}
    events: list[Event] = []
    tidied = 0
    for step in range(10_000):
        if step < 9_900 and len(generator.job_ids) < 4 and picks.random() < 0.2:
            spec = _any_spec(picks, f"job-{len(specs)}")
            specs[spec.id] = spec
            events += generator.submit(spec)
        if generator.job_ids and picks.random() < 0.01:
            events += generator.cancel(picks.choice(generator.job_ids))
        events += generator.advance()
        tidied += generator.tidy() if picks.random() < 0.5 else 0
        if step % 50 == 0:
            generator.check()
    events += run(generator)
    generator.check()
    assert generator.table.used == 0 and len(specs) > 300 and tidied > 100
    by_job: dict[str, list[Event]] = {}
    for event in events:
        by_job.setdefault(getattr(event, "id", ""), []).append(event)
    for name in list(specs)[::5]:
        check_job(by_job[name], specs[name], 8 * SIZE if specs[name].negative_prompt_ids is None else pages // 2 * SIZE)
    assert any(isinstance(event, Rewound) for event in events) and any(isinstance(event, Text) for event in events)
