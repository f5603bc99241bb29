"""The Python API: a directory to text in a few lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import decode, expected, toy_generator

from exltui import Engine
from exltui.errors import ContextError, ExltuiError, ModelError, SamplingError
from exltui.protocol import JobSpec, LoadOptions, Sampling


@pytest.fixture
def toy() -> Engine:
    generator = toy_generator(20, context=500)
    return Engine(SimpleNamespace(generator=generator, runner=generator.runner, close=lambda: None))  # type: ignore[arg-type]


def reply(prompt: str, seed: int, new: int) -> str:
    return decode(expected(JobSpec("", prompt=prompt, sampling=Sampling(seed=seed), max_new_tokens=new), 500)[0])


def test_generate_gives_the_text_the_ids_and_the_figures(toy: Engine) -> None:
    done = toy.generate("abc", Sampling(seed=3), max_new_tokens=20)
    assert done.text == reply("abc", 3, 20) == decode(list(done.token_ids))
    assert done.stats.prompt_tokens == 3
    assert done.stats.new_tokens == len(done.token_ids)
    assert done.stats.seed == 3


def test_ids_instead_of_text(toy: Engine) -> None:
    assert toy.generate([1, 2, 3], Sampling(seed=3), max_new_tokens=20).text == reply("abc", 3, 20)


def test_the_pieces_of_a_stream_join_to_the_completion(toy: Engine) -> None:
    pieces = list(toy.stream("abc", Sampling(seed=3), max_new_tokens=20))
    assert len(pieces) > 1
    assert "".join(pieces) == reply("abc", 3, 20)


def test_streams_that_are_read_in_turn_do_not_mix(toy: Engine) -> None:
    streams = [toy.stream("abc"[: i + 1], Sampling(seed=i), max_new_tokens=10 + 5 * i) for i in range(3)]
    rows = list(zip_longest(*streams, fillvalue=""))
    for i in range(3):
        assert "".join(row[i] for row in rows) == reply("abc"[: i + 1], i, 10 + 5 * i)


def test_a_completion_in_the_middle_of_a_stream_loses_nothing(toy: Engine) -> None:
    stream = toy.stream("ab", Sampling(seed=1), max_new_tokens=30)
    first = next(stream)
    assert toy.generate("c", Sampling(seed=2), max_new_tokens=40).text == reply("c", 2, 40)
    assert first + "".join(stream) == reply("ab", 1, 30)


def test_a_stream_that_is_closed_ends_its_job(toy: Engine) -> None:
    stream = toy.stream("ab", Sampling(seed=1))
    next(stream)
    assert toy.session.generator.busy
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert not toy.session.generator.busy


def test_errors_are_raised_where_they_belong(toy: Engine) -> None:
    with pytest.raises(ContextError, match="600 tokens"):
        toy.generate("a" * 600)
    with pytest.raises(SamplingError, match="min_p"):
        next(toy.stream("a", Sampling(min_p=2)))
    with pytest.raises(TypeError, match="no_such_field"):
        toy.generate("a", no_such_field=1)
    assert toy.generate("a", Sampling(seed=1), max_new_tokens=2).text == reply("a", 1, 2)


def test_a_failed_step_raises_in_every_stream(toy: Engine) -> None:
    one, two = (toy.stream("ab", Sampling(seed=seed), max_new_tokens=40) for seed in (1, 2))
    next(one), next(two)
    toy.session.runner.fail = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        list(one)
    with pytest.raises(ExltuiError, match="ended by a step that failed"):
        list(two)
    assert toy.generate("a", Sampling(seed=1), max_new_tokens=2).text == reply("a", 1, 2)


@pytest.fixture(scope="module")
def engine(starter_model: Path) -> Iterator[Engine]:
    with Engine.open(starter_model, LoadOptions(device="cpu", length=512)) as engine:
        yield engine


def test_the_starter_completes_a_sentence(engine: Engine) -> None:
    done = engine.generate("The capital of France is", Sampling(temperature=0.0), max_new_tokens=4)
    assert done.text.startswith(" Paris")
    again = "".join(engine.stream("The capital of France is", Sampling(temperature=0.0), max_new_tokens=4))
    assert again == done.text


def test_a_full_context_ends_the_reply(engine: Engine) -> None:
    prompt = list(range(1000, 1000 + 505))
    done = engine.generate(prompt, Sampling(seed=1), stop_token_ids=())
    assert done.stats.stop_reason in ("context_full", "stop_token")
    assert done.stats.new_tokens <= 512 - 505
    with pytest.raises(ContextError, match="512 tokens, the context holds 512"):
        engine.generate(list(range(1000, 1512)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoadOptions(cache="q5"), "q5"),
        (LoadOptions(device="tpu:0"), "tpu"),
        (LoadOptions(length=0), "context of 0"),
        (LoadOptions(device="cuda:99"), "cuda:99"),
    ],
)
def test_options_that_cannot_be_are_refused(starter_model: Path, options: LoadOptions, words: str) -> None:
    with pytest.raises(ExltuiError, match=words) as error:
        Engine.open(starter_model, options)
    assert error.value.hint


def test_directories_that_are_no_models_are_refused(tmp_path: Path, starter_model: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        Engine.open(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not a model directory"):
        Engine.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer"):
        Engine.open(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((starter_model / "tokenizer.json").read_bytes())
    with pytest.raises(ExltuiError, match="config"):
        Engine.open(tmp_path)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, exltui, exltui.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
