"""exltui bulk: order, resumption after a kill at any moment, malformed lines, overrides; against the toy and as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import expected, small_pages, toy_generator

from exltui.cli import bulk
from exltui.cli.bulk import Journal, Tally, answer, parse
from exltui.errors import ExltuiError
from exltui.protocol import JobSpec, Sampling

ROOT = Path(__file__).resolve().parent.parent
BASE = JobSpec("", sampling=Sampling(seed=5), max_new_tokens=6, priority=-1)


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, 8)
        yield


def answered(lines: list[str], target: Path, *, most_steps: int = 100_000) -> Tally:
    """One run of bulk over ``lines``, killed after ``most_steps`` steps: what is in memory then is lost."""
    journal = Journal(target)
    generator, tally = toy_generator(40, 200, 16), Tally(lines=len(lines), before=len(journal.known))
    plain, steps = generator.advance, 0

    def advance() -> list:
        nonlocal steps
        steps += 1
        if steps > most_steps:
            raise KeyboardInterrupt
        return plain()

    generator.advance = advance  # type: ignore[method-assign]
    try:
        answer(generator, lines, [n for n in range(1, len(lines) + 1) if n not in journal.known], BASE, journal, tally)
        journal.finish(len(lines))
    except KeyboardInterrupt:
        os.dup2(os.open(os.devnull, os.O_WRONLY), journal._out.fileno())  # nothing that is buffered gets out any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), journal._beside.fileno())
    journal.close()
    return tally


def read(target: Path) -> list[dict]:
    return [json.loads(line) for line in target.read_text().splitlines()]


LINES = [
    *(json.dumps({"prompt": "abc"[: 1 + i % 3] + "defg"[i % 4], "max_new_tokens": 2 + 5 * (i % 4), "id": f"n{i}"}) for i in range(60)),
    "{broken",
    json.dumps({"prompt": "abc", "temperature": 0.0}),
    json.dumps({"ids": [3, 4], "sampling": {"seed": 77}}),
    json.dumps({"prompt": "abc", "colour": 1}),
    json.dumps({"prompt": "abc", "top_p": 7}),
    json.dumps(["a"]),
]


def check(results: list[dict]) -> None:
    assert [result["line"] for result in results] == list(range(1, len(LINES) + 1))
    for number in (1, 17, 60):
        spec = parse(LINES[number - 1], number, BASE)
        ids, reason = expected(spec, 200)
        assert (results[number - 1]["token_ids"], results[number - 1]["stop_reason"]) == (ids, reason)
        assert results[number - 1]["id"] == f"n{number - 1}" and results[number - 1]["seed"] == 5 + number
    assert results[61]["token_ids"] == expected(JobSpec("", prompt="abc", sampling=Sampling(temperature=0.0), max_new_tokens=6), 200)[0]
    assert results[62]["seed"] == 77
    errors = {result["line"]: result["error"] for result in results if "error" in result}
    assert sorted(errors) == [61, 64, 65, 66]
    assert "line 61 is malformed" in errors[61] and '"colour" is not known' in errors[64]
    assert "top_p is 7" in errors[65] and "not an object" in errors[66]


def test_every_line_is_answered_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.jsonl"
    tally = answered(LINES, target)
    check(read(target))
    assert (tally.done, tally.failed, tally.malformed) == (62, 1, [61, 64, 66])
    assert "line 61 is malformed" in capsys.readouterr().err
    assert not target.with_name("out.jsonl.part").exists()


@pytest.mark.parametrize("steps", [21, 24, 31])  # the longest line takes 20
def test_a_run_that_is_killed_again_and_again_repeats_and_loses_nothing(tmp_path: Path, steps: int) -> None:
    target = tmp_path / "out.jsonl"
    done, runs = 0, 0
    while True:
        tally = answered(LINES, target, most_steps=steps)
        runs += 1
        assert tally.before >= done, "what was written is still there"
        done = tally.before
        if tally.before + tally.done + tally.failed + len(tally.malformed) == len(LINES):
            break
        with target.open("ab") as file:  # the kill came in the middle of a line
            file.write(b'{"line": 9')
        assert runs < 50
    assert runs > 1
    check(read(target))


def test_an_output_that_is_not_from_bulk_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    for text in ("dear diary\n", '{"line": 5}\n', "[1]\n"):
        target.write_text(text)
        with pytest.raises(ExltuiError, match="was not written by exltui bulk"):
            Journal(target)
        assert target.read_text() == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7", "not an object"),
        ("{}", 'one of "prompt" and "ids"'),
        ('{"prompt": "a", "ids": [1]}', 'one of "prompt" and "ids"'),
        ('{"prompt": 3}', "not a text"),
        ('{"ids": [1, "x"]}', "not token ids"),
        ('{"prompt": "a", "sampling": {"tempo": 1}}', "not an object of sampler settings"),
        ('{"prompt": "a", "stop_strings": "x"}', '"stop_strings" is not a list'),
        ('{"prompt": "a", "id', "Unterminated"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(line, 1, BASE)


def test_the_progress_line_has_speed_and_time_to_go() -> None:
    progress = bulk.Progress(Tally(lines=100, before=20, done=10, read=5000, written=300))
    assert progress.line(10.0) == "30 of 100 lines, read 500 tok/s, wrote 30 tok/s, 1:10 to go"


def test_the_benchmark_answers_the_same_lines_in_every_batch(starter_model: Path) -> None:
    flags = ["--lines", "3", "--prompt", "9", "--reply", "3", "--batch", "1,3", "--greedy", "--reproducible", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "benchmarks" / "bulk.py"), "-m", str(starter_model), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[-3:]) for row in rows] == [("1", ["3", "of", "3"]), ("3", ["3", "of", "3"])], done.stderr


def test_a_process_that_is_killed_goes_on_where_it_was(starter_models_dir: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the real command; the second run answers only what is left."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Count from {i}:", "max_new_tokens": 3 if i < 3 else 40}) + "\n" for i in range(8)))
    command = [sys.executable, "-m", "exltui", "bulk", "-m", "smollm2-135m", "--models-dir", str(starter_models_dir), "--length", "512"]
    command += ["--device", "cpu", "--seed", "1", str(source), str(target)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while (not target.exists() or target.read_bytes().count(b"\n") < 2) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = target.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert before.count(b"\n") >= 2
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "were there" in done.stderr, done.stderr
    assert target.read_bytes().startswith(before)
    assert [result["line"] for result in read(target)] == list(range(1, 9)) and not list(tmp_path.glob("*.part"))
