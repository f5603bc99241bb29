"""Kept logits: what a sampler made of them, what another one would make of them, and how much of them is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sampling_reference import distribution, dry, penalised
from test_generator import done, run
from toy import ids_with, small_pages, toy_generator, toy_logits

from exltui.engine.generate.generator import Generator
from exltui.errors import SamplingError
from exltui.protocol import Explained, Inspected, JobSpec, Rewound, Sampling, Scores, from_json, to_json

PROMPT = (3, 4, 5, 3, 4)
OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
OTHERS = [
    Sampling(),
    Sampling(temperature=0.4, top_k=3),
    Sampling(temperature=1.7, temperature_last=True, top_k=0, top_p=0.8, min_p=0.0),
    Sampling(token_repetition_penalty=1.4, token_frequency_penalty=0.3, dry_multiplier=0.9, top_k=0),
    Sampling(xtc_probability=0.7, xtc_threshold=0.05, top_k=0, top_p=1.0),
    Sampling(typical=0.6, order="typical,temperature", temperature=0.7),
]


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, 8)
        yield


def kept_reply(sampling: Sampling = OFF, **job: object) -> tuple[Generator, list[int], list[Scores]]:
    generator = toy_generator(20)
    spec = JobSpec("a", prompt_ids=PROMPT, sampling=sampling, max_new_tokens=8, keep=True, scores=True, **job)  # type: ignore[arg-type]
    events = generator.submit(spec) + run(generator)
    return generator, list(done(events, "a").token_ids), [event for event in events if isinstance(event, Scores)]


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_other_settings_give_what_the_formulas_give(other: Sampling) -> None:
    generator, ids, _ = kept_reply()
    position = len(PROMPT) + 5
    history = [*PROMPT, *ids[:5]]
    logits = toy_logits(history).tolist()
    raw = distribution(logits, OFF)
    changed = penalised(logits, other, history)
    for token, penalty in dry(other, history, ids_with(other.dry_sequence_breakers)).items():
        changed[token] -= penalty
    wanted = distribution(changed, other, spared=ids_with(other.xtc_ignore_tokens))

    token, followed, stages = generator.kept.explain("a", position, other, 16)

    assert token == ids[5]
    assert sorted(followed) == list(range(16)), "all tokens of so small a vocabulary are among the sixteen likeliest"
    assert stages[0].name == "raw"
    assert dict(zip(followed, stages[0].probabilities, strict=True)) == pytest.approx(raw, rel=1e-6)
    last = {i: p for i, p in zip(followed, stages[-1].probabilities, strict=True) if p > 0}
    assert last == pytest.approx(wanted, rel=1e-6)
    assert stages[-1].left == len(wanted)


def test_each_stage_says_how_many_it_left_and_what_it_removed() -> None:
    generator, _, _ = kept_reply()
    _, _, stages = generator.kept.explain("a", len(PROMPT), Sampling(temperature=0.5, top_k=4, top_p=0.5, min_p=0.0), 16)
    assert [stage.name for stage in stages] == ["raw", "temperature", "top_k", "top_p"]
    assert [stage.left for stage in stages][:3] == [16, 16, 4]
    cold = sorted(stages[1].probabilities, reverse=True)
    assert stages[2].removed == pytest.approx(sum(cold[4:]), rel=1e-9)
    assert stages[1].removed == 0.0
    assert sum(stages[-1].probabilities) == pytest.approx(1.0)


@pytest.mark.parametrize("sampling", [*OTHERS, Sampling(mirostat=True, seed=1), Sampling(adaptive_target=0.3, seed=1)])
def test_the_jobs_own_settings_give_the_probability_with_which_each_token_was_drawn(sampling: Sampling) -> None:
    """Penalties, DRY, mirostat and adaptive-p depend on what came before."""
    generator, ids, scores = kept_reply(sampling, logit_bias=((6, 1.5),), banned_tokens=(7,))
    for score in scores:
        token, followed, stages = generator.kept.explain("a", score.position, None, 16)
        assert token == score.token
        assert stages[-1].probabilities[followed.index(token)] == pytest.approx(score.probability, rel=1e-6)
        assert stages[-1].probabilities[followed.index(7)] == 0.0
    assert len(scores) >= len(ids)


def test_the_inspection_says_what_the_scores_say() -> None:
    generator, _, scores = kept_reply(Sampling(seed=3))
    found = generator.kept.scores("a", 4)
    assert [(s.position, s.token) for s in found] == [(s.position, s.token) for s in scores]
    for mine, theirs in zip(found, scores, strict=True):
        assert mine.probability == theirs.probability
        assert mine.raw_probability == pytest.approx(theirs.raw_probability, rel=1e-5)
        assert len(mine.raw_top) == 4
        assert mine.raw_top[0][1] >= mine.raw_top[1][1]


def test_tokens_that_were_taken_back_are_not_shown() -> None:
    generator = toy_generator(20)
    plain = JobSpec("a", prompt_ids=PROMPT, sampling=OFF, max_new_tokens=8)
    said = done(generator.submit(plain) + run(generator), "a").token_ids
    banned = "".join("§abcdefghijklmno"[i] for i in said[2:4])
    events = generator.submit(JobSpec("b", prompt_ids=PROMPT, sampling=OFF, max_new_tokens=8, keep=True, banned_strings=(banned,))) + run(
        generator
    )
    assert any(isinstance(event, Rewound) for event in events)
    ids = list(done(events, "b").token_ids)
    assert [score.token for score in generator.kept.scores("b", 4)][: len(ids)] == ids


def test_the_oldest_logits_go_when_there_is_no_room() -> None:
    generator = toy_generator(20)
    generator.kept._limit = 10 * 16 * 4  # bytes: ten rows of the toy's vocabulary
    for name in ("a", "b"):
        generator.submit(JobSpec(name, prompt_ids=PROMPT, sampling=OFF, max_new_tokens=6, min_new_tokens=6, keep=True))
        run(generator)
    assert generator.kept.nbytes == 10 * 16 * 4
    assert len(generator.kept.scores("a", 1)) == 4
    assert len(generator.kept.scores("b", 1)) == 6
    with pytest.raises(SamplingError, match="no longer kept"):
        generator.kept.explain("a", len(PROMPT), None, 4)
    with pytest.raises(SamplingError, match="no longer kept"):
        generator.kept.scores("of another run", 4)


def test_jobs_that_do_not_ask_for_it_keep_nothing() -> None:
    generator = toy_generator(20)
    generator.submit(JobSpec("a", prompt_ids=PROMPT, sampling=OFF, max_new_tokens=6))
    run(generator)
    assert generator.kept.nbytes == 0


def test_the_answers_survive_as_json() -> None:
    generator, _, _ = kept_reply()
    inspected = Inspected("q", "a", generator.kept.scores("a", 3))
    explained = Explained("q", "a", len(PROMPT), *generator.kept.explain("a", len(PROMPT), Sampling(), 4))
    assert from_json(to_json(inspected)) == inspected
    assert from_json(to_json(explained)) == explained
