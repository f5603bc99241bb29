"""The reproducible mode: a seed gives the same tokens whatever else runs, found in the cache or not, guessed or not, put off or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB, load, make
from toy import replied

from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step, portions
from exltui.engine.session import Session, open_session
from exltui.protocol import JobSpec, LoadOptions, Sampling

TOPICS = ("the sea", "a clock", "winter", "bread and butter", "the moon", "a dog that sings")


def jobs() -> list[JobSpec]:
    """Prompts of 3 to 280 tokens, some of which begin alike; greedy and not."""
    found = []
    for i, topic in enumerate(TOPICS):
        prompt = "Once upon a time there was a ship. " * (6 * i) + f"Write about {topic}:"
        sampling = Sampling(temperature=0.0 if i == 2 else 0.9, seed=i, token_repetition_penalty=1.1 if i % 2 else 1.0)
        found.append(JobSpec(f"j{i}", prompt=prompt, sampling=sampling, max_new_tokens=8 + 3 * i))
    return found


def replies(session: Session, specs: list[JobSpec], *, gap: int = 0) -> dict[str, tuple[int, ...]]:
    """All ``specs``, submitted with ``gap`` steps between them."""
    return {id: done.token_ids for id, done in replied(session.generator, specs, gap).items()}


def opened(model: Path, **options: object) -> Session:
    load = LoadOptions(device="cpu", length=512, reproducible=True, **options)  # type: ignore[arg-type]
    return open_session(model, load, lambda *_: None, lambda: False)


def test_a_seed_gives_the_same_tokens_whatever_else_runs(starter_model: Path) -> None:
    specs = jobs()
    session = opened(starter_model, cache_tokens=2048)
    alone = {}
    for spec in specs:
        session.generator.table.clear()  # nothing of an earlier one is found
        alone |= replies(session, [spec])
    assert len({tokens[:8] for tokens in alone.values()}) == len(specs), "replies that are alike show nothing"
    session.generator.table.clear()
    assert replies(session, specs) == alone
    assert replies(session, specs[::-1], gap=3) == alone  # with what the cache has, and prompts read while others decode
    session.close()
    narrow = opened(starter_model, cache_tokens=512, ngram_draft=True)  # jobs lose their pages and come back
    assert replies(narrow, specs) == alone
    narrow.close()


@pytest.mark.parametrize("family", ["Llama", "Mixtral"])
def test_every_row_is_computed_as_if_it_were_alone(tmp_path: Path, family: str) -> None:
    """Experts have no call of whole layers, so there it is one row a step."""
    make(family, tmp_path, **({"num_local_experts": 4, "num_experts_per_tok": 2} if family == "Mixtral" else {}))
    model = load(tmp_path)
    runner = Runner(model, KVCache(model.spec, 4, (16, 16), model.device), reproducible=True)
    assert model.decoder.rows_alike == (1 if family == "Mixtral" else 16)
    ids = torch.randint(0, VOCAB, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    alone = torch.cat([runner.run([Sequence([token], i, [0], "last")]) for i, token in enumerate(ids)])
    assert torch.equal(runner.run([Sequence(ids, 0, [1], "all")]), alone)
    both = runner.run([Sequence(ids[:70], 0, [2], "last"), Sequence(ids[70:73], 70, [0], "all"), Sequence(ids[:40], 0, [3], "last")])
    assert torch.equal(both, alone[[69, 70, 71, 72, 39]])


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300), st.sampled_from(["last", "all", "none"])), min_size=1, max_size=6),
    rows=st.sampled_from([1, 3, 16]),
)
def test_what_is_cut_into_packets_is_all_there(lengths: list, rows: int) -> None:
    sequences = [Sequence(range(100 * i, 100 * i + n), start, range(start // PAGE + 2), kind) for i, (n, start, kind) in enumerate(lengths)]

    def laid_out(packet: list[Sequence]) -> tuple[list, list]:
        step = Step.build(packet, torch.device("cpu"))
        rows_of = list(zip(step.tokens.tolist(), step.batch.positions.tolist(), step.batch.slots.tolist(), strict=True))
        return rows_of, [rows_of[i] for i in step.logit_rows.tolist()]

    packets = list(portions(sequences, rows))
    assert all(sum(len(each.tokens) for each in packet) <= rows for packet in packets)
    parts = [laid_out(packet) for packet in packets]
    assert ([row for part in parts for row in part[0]], [row for part in parts for row in part[1]]) == laid_out(sequences)
