"""What a job can ask for, from the command line: the flags of generate and bulk, against the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import one_object, run

from exltui.cli.options import job_options
from exltui.cli.parser import build_parser
from exltui.errors import ExltuiError
from exltui.protocol import JobSpec

QUICK = ("--device", "cpu", "--length", "256")


def test_every_flag_is_a_field_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "list.lark").write_text('start: "a"+\n')
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    flags = "--max-new-tokens 9 --min-new-tokens 2 --loop-window 40 --loop-repeats 4 --stop x --stop y --ban z --banned-tokens 5,6"
    flags += " --allowed-tokens 7 --logit-bias 5:-2.5 --logit-bias 6:1 --negative-prompt n --token-healing --regex r --choice a --choice b"
    files = ["--grammar", str(tmp_path / "list.lark"), "--json-schema", str(tmp_path / "schema.json")]
    for command in (["generate", "-p", "x"], ["bulk", "in", "out"]):
        options = build_parser().parse_args([*command, *flags.split(), *files])
        spec = JobSpec("x", **job_options(options))
        assert spec == JobSpec(
            "x",
            max_new_tokens=9,
            min_new_tokens=2,
            loop_window=40,
            loop_repeats=4,
            stop_strings=("x", "y"),
            banned_strings=("z",),
            banned_tokens=(5, 6),
            allowed_tokens=(7,),
            logit_bias=((5, -2.5), (6, 1.0)),
            negative_prompt="n",
            token_healing=True,
            regex="r",
            choices=("a", "b"),
            grammar='start: "a"+\n',
            json_schema='{"type": "object"}',
        )
        assert JobSpec("x", **job_options(build_parser().parse_args(command))) == JobSpec("x")
    inline = build_parser().parse_args(["generate", "-p", "x", "--json-schema", ' {"type": "null"}'])
    assert job_options(inline)["json_schema"] == ' {"type": "null"}'


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--banned-tokens", "5,x"), "--banned-tokens: '5,x' is no list of token ids"),
        (("--logit-bias", "5"), "--logit-bias: '5' is no token and number"),
        (("--grammar", "nowhere.lark"), "nowhere.lark cannot be read"),
    ],
)
def test_a_flag_that_says_nothing_is_refused(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(ExltuiError, match=words):
        job_options(build_parser().parse_args(["generate", "-p", "x", *flags]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--candidates", "0"), "--candidates is a number from 1 to 32"), (("--top-tokens", "3"), "--top-tokens goes with --json")],
)
def test_what_does_not_go_together_is_wrong_usage(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str) -> None:
    status, _, err = run(capsys, "generate", "-m", "any", "-p", "x", *flags)
    assert status == 2 and words in err


def test_candidates_and_their_scores(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    flags = ("--candidates", 3, "--seed", 4, "--max-new-tokens", 6, "--top-tokens", 2, "--top-k", 5, "--json")
    status, out, _ = run(capsys, "generate", "-m", starter_model, *QUICK, "-p", "A good name for a cat is", *flags)
    replies = one_object(out)["candidates"]
    assert status == 0 and [reply["seed"] for reply in replies] == [4, 5, 6]
    assert len({reply["text"] for reply in replies}) > 1
    for reply in replies:
        assert [score["token"] for score in reply["scores"]][: reply["new_tokens"]] == reply["token_ids"]
        assert all(len(score["top"]) <= 2 == len(score["raw_top"]) and 0 < score["probability"] <= 1 for score in reply["scores"])
        assert "".join(score["text"] for score in reply["scores"][: reply["new_tokens"]]) == reply["text"]


def test_replies_are_shaped_by_flags(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    def said(*flags: object) -> str:
        status, out, err = run(capsys, "generate", "-m", starter_model, *QUICK, "--greedy", *flags)
        assert status == 0, err
        return out.removesuffix("\n")

    france = ("-p", "The capital of France is", "--max-new-tokens", 8)
    assert "Paris" in said(*france) and "Paris" not in said(*france, "--ban", "paris")
    assert said("-p", "Is water wet? ", "--choice", "yes", "--choice", "no") in ("yes", "no")
    assert json.loads(said("-p", "JSON: ", "--json-schema", '{"enum": [{"a": 1}]}', "--max-new-tokens", 20)) == {"a": 1}
    two = said(*france, "--candidates", 2)
    assert two.split("\n", 1)[0] in two.split("\n", 1)[1], "greedy ones are alike"


def test_guidance_and_guesses_from_the_command_line(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    flags = ("-p", "Write about the sea.", "--cfg-scale", 1.5, "--max-new-tokens", 12, "--seed", 1)
    assert "the cache has one page" in run(capsys, "generate", "-m", starter_model, *QUICK, *flags, "--negative-prompt", "x")[2]
    flags += ("--cache-tokens", 512)
    assert "without a negative prompt" in run(capsys, "generate", "-m", starter_model, *QUICK, *flags)[2]
    texts = {
        run(capsys, "generate", "-m", starter_model, *QUICK, *flags, "--chat", "--negative-prompt", negative)[1]
        for negative in ("Be short.", "Be a pirate.")
    }
    assert len(texts) == 2
    flags = ("-p", "1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1,", "--greedy", "--max-new-tokens", 16, "--ngram-draft")
    status, _, err = run(capsys, "generate", "-m", starter_model, *QUICK, *flags)
    assert status == 0 and "guesses held" in err
    report = one_object(run(capsys, "generate", "-m", starter_model, *QUICK, *flags, "--json")[1])
    assert report["accepted_drafts"] > 0


def test_bulk_takes_the_same_flags(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "Is water wet? "}, {"prompt": "Is fire cold? ", "choices": ["maybe"]}, {"prompt": "x", "logit_bias": [[5]]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ("--choice", "yes", "--choice", "no", "--greedy")
    status, _, err = run(capsys, "bulk", "-m", starter_model, *QUICK, *flags, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    first, second, third = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert status == 1 and "malformed: 3" in err
    assert first["text"] in ("yes", "no") and second["text"] == "maybe" and "line 3 is malformed" in third["error"]
