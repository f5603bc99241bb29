"""Speculation with two real models, and a prompt's last token drawn again: the starter model, and one made of its first layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_reproducible import replies

from exltui import Engine
from exltui.engine.generate.drafts import ModelDrafter, stretch
from exltui.engine.session import Session, open_session
from exltui.errors import ModelError
from exltui.protocol import JobSpec, LoadOptions, Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def shallow(starter_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model without its last two layers: right about many tokens, but not about all."""
    return copied(starter_model, tmp_path_factory.mktemp("shallow"), num_hidden_layers=28)


def copied(model: Path, directory: Path, **changes: object) -> Path:
    for source in (path for path in model.iterdir() if path.is_file() and path.name != "config.json"):
        (directory / source.name).symlink_to(source)
    config = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def opened(model: Path, **options: object) -> Session:
    load = LoadOptions(**{"device": "cpu", "length": 512, **options})  # type: ignore[arg-type]
    return open_session(model, load, lambda *_: None, lambda: False)


def test_a_reply_is_the_same_with_and_without_a_draft_model(starter_model: Path, shallow: Path) -> None:
    """Greedy and sampled, token for token: the model's own draw decides at every place, and the point of a draw is a function of its place.

    So the distribution is that of the model, whatever the draft model thinks.
    """
    prompts = ("The capital of France is", "1, 2, 3, 4, 5, 6,", "def add(a, b):")
    specs = [JobSpec(f"g{i}", prompt=prompt, sampling=GREEDY, max_new_tokens=20) for i, prompt in enumerate(prompts)]
    specs += [JobSpec(f"s{i}", prompt=prompts[i % 3], sampling=Sampling(temperature=1.0, seed=i), max_new_tokens=5) for i in range(12)]
    plain, drafting = opened(starter_model, reproducible=True), opened(starter_model, reproducible=True, draft_model=str(shallow))
    assert replies(plain, specs) == replies(drafting, specs)
    plain.close()
    drafting.close()


def test_acceptance_is_reported(starter_model: Path, shallow: Path) -> None:
    shares = {}
    for draft in (shallow, starter_model):
        with Engine.open(starter_model, LoadOptions(device="cpu", length=512, draft_model=str(draft))) as engine:
            stats = engine.generate("Once upon a time", GREEDY, max_new_tokens=32).stats
            shares[draft] = stats.accepted_drafts / (stats.accepted_drafts + stats.rejected_drafts)
            assert stats.new_tokens == 32 and stats.accepted_drafts > 0
    assert shares[starter_model] == 1.0 > shares[shallow]


def test_a_shorter_draft_model_is_loaded_with_its_rope_scaled(starter_model: Path, tmp_path: Path) -> None:
    short = copied(starter_model, tmp_path, max_position_embeddings=512, num_hidden_layers=2)
    for length, scaled in ((1024, True), (512, False)):
        session = opened(starter_model, length=length, draft_model=str(short))
        drafter = session.generator.drafter
        assert isinstance(drafter, ModelDrafter)
        ours, theirs = (model.decoder.layers[0].rope for model in (session.runner.model, drafter.runner.model))
        assert drafter.runner.model.context == length
        if scaled:  # NTK: theta times alpha to the power of d / (d - 2), so the slowest pair turns slower by that
            alpha = stretch(512, 1024)
            assert alpha == pytest.approx(-0.13436 + 0.80541 * 2 + 0.28833 * 4)
            fast, slow = (theirs.sin[1].double().asin() / ours.sin[1].double().asin())[[0, -1]].tolist()
            assert fast == pytest.approx(1.0, rel=1e-4) and slow == pytest.approx(1 / alpha, rel=1e-2)
        else:
            assert theirs.cos.equal(ours.cos)
        session.close()


def test_a_draft_model_of_another_vocabulary_is_refused(starter_model: Path, tmp_path: Path) -> None:
    other = copied(starter_model, tmp_path)
    (other / "tokenizer.json").unlink()
    words = json.loads((starter_model / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="has another vocabulary"):
        opened(starter_model, draft_model=str(other))


def test_the_last_token_of_a_prompt_is_healed(starter_model: Path) -> None:
    """A prompt that ends within a word: without healing the model must go on behind a token that no text had there."""
    with Engine.open(starter_model, LoadOptions(device="cpu", length=512)) as engine:
        tokenizer = engine.session.tokenizer
        prompt = "The capital of France is Par"
        cut = tokenizer.encode(prompt)
        assert tokenizer.texts[cut[-1]] == " Par"
        done = engine.generate(prompt, GREEDY, max_new_tokens=6, token_healing=True, scores=True)
        first = tokenizer.texts[done.token_ids[0]]
        assert first.startswith(" Par") and len(first) > len(" Par"), "the drawn token holds what was cut off"
        assert (prompt + done.text).startswith("The capital of France is Paris"), "and what it repeats is not written twice"
        assert done.stats.prompt_tokens == len(cut) - 1
        whole = engine.generate("The capital of France is", GREEDY, max_new_tokens=6)
        if whole.token_ids[0] == done.token_ids[0]:
            assert prompt.removesuffix(" Par") + whole.text == prompt + done.text
        for text in ("<|im_end|>", "x"):  # a special token, and a prompt of one token: there is nothing to heal
            plain = engine.generate(text, replace(GREEDY, seed=1), max_new_tokens=3)
            healed = engine.generate(text, replace(GREEDY, seed=1), max_new_tokens=3, token_healing=True)
            assert plain.token_ids == healed.token_ids
        both = engine.generate(prompt, GREEDY, max_new_tokens=6, token_healing=True, banned_strings=("is a",))
        assert "Paris a" not in prompt + both.text
