"""The command line, as scripts use it: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import model_files, write_model

from exltui import paths
from exltui.cli import main
from exltui.cli.options import app_options
from exltui.cli.parser import build_parser
from exltui.protocol import LoadOptions, Sampling

QUESTION = "Name the capital of France."
KEYS = ["text", "token_ids", "prompt_tokens", "cached_tokens", "new_tokens", "prefill_seconds", "decode_seconds", "stop_reason", "seed"]


def exltui(*arguments: str | Path, stdin: str | bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "exltui", *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=300,  # the first run may have to build the extension
        check=False,
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process -> status, standard output, standard error."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse, on wrong usage
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def one_object(text: str) -> Any:
    """The one JSON object that ``text`` is, on one line."""
    assert text.endswith("\n") and text.count("\n") == 1
    return json.loads(text)


# ── generate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_generate_prints_one_json_object(starter_models_dir: Path) -> None:
    done = exltui(
        "generate", "-m", "smollm2-135m", "-", "--chat", "--greedy", "--max-new-tokens", "32", "--json", "--models-dir", starter_models_dir,
        stdin=QUESTION,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = one_object(done.stdout.decode())
    assert list(answer) == KEYS
    assert "Paris" in answer["text"] and answer["stop_reason"] == "stop_token"
    assert answer["new_tokens"] == len(answer["token_ids"]) <= 32 and answer["cached_tokens"] == 0
    assert answer["prompt_tokens"] == 36 and answer["prefill_seconds"] > 0 and answer["decode_seconds"] > 0


def test_generate_streams_text_and_keeps_figures_apart(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    status, out, err = run(capsys, "generate", "-m", starter_model, "-p", QUESTION, "--chat", "--greedy", "--max-new-tokens", "16")
    assert status == 0 and out == "The capital of France is Paris.\n"
    assert re.search(r"prompt 36 tokens, [\d,]+ tok/s; reply 7 tokens, [\d,]+ tok/s; stop token; seed \d+", err)


def test_text_file_ids_and_standard_input_are_the_same_prompt(
    capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path
) -> None:
    from exltui.tokenizer import Tokenizer

    text = "Once upon a time"
    (tmp_path / "prompt.txt").write_text(text)
    (tmp_path / "ids.json").write_text(json.dumps(Tokenizer(starter_model).encode(text)))
    common = ["generate", "-m", starter_model, "--greedy", "--max-new-tokens", "6", "--json"]
    answers = []
    for source in (["-p", text], ["-f", tmp_path / "prompt.txt"], ["--ids", tmp_path / "ids.json"]):
        status, out, _ = run(capsys, *common, *source)
        assert status == 0
        answers.append(one_object(out)["token_ids"])
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 6


def test_the_seed_decides_and_is_reported(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    common = ["generate", "-m", starter_model, "-p", "My favourite", "--temperature", "1.5", "--max-new-tokens", "8", "--json"]
    first = one_object(run(capsys, *common)[1])
    again = one_object(run(capsys, *common, "--seed", str(first["seed"]))[1])
    assert again["token_ids"] == first["token_ids"] and again["stop_reason"] == first["stop_reason"]
    other = one_object(run(capsys, *common, "--seed", "1")[1])
    assert other["token_ids"] != first["token_ids"]


def test_stop_strings_and_system_prompt(capsys: pytest.CaptureFixture[str], starter_model: Path) -> None:
    chat = ["generate", "-m", starter_model, "-p", QUESTION, "--chat", "--greedy", "--json"]
    stopped = one_object(run(capsys, *chat, "--stop", " France")[1])
    assert stopped["text"] == "The capital of" and stopped["stop_reason"] == "stop_string"
    told = one_object(run(capsys, *chat, "--system", "You are a pirate.", "--max-new-tokens", "4")[1])
    assert told["prompt_tokens"] != stopped["prompt_tokens"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "x", "-f", "y"], "one of -p TEXT"),
        ([], "one of -p TEXT"),
        (["-p", "x", "--greedy", "--temperature", "1"], "exclude each other"),
        (["-p", "x", "--max-new-tokens", "0"], "1 or more"),
        (["-p", "x", "--system", "y"], "go with --chat"),
        (["--ids", "x", "--chat"], "--chat takes text"),
        (["-p", "x", "--top-k", "many"], "invalid int value"),
        (["-p", "x", "--temp=1"], "unrecognized arguments"),  # no abbreviations
    ],
)
def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    status, out, err = run(capsys, "generate", "-m", "any", *arguments)
    assert status == 2 and out == "" and words in err and err.count("\n") <= 2


def test_what_cannot_be_done_is_status_1_with_a_sentence(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "ids.json").write_text("[1, -2]")
    (tmp_path / "long.txt").write_text("word " * 400)
    for arguments, words in (
        (["-p", "x", "-m", "nothing"], "there is no model 'nothing'"),
        (["-p", "x"], "no model is named"),
        (["-m", starter_model, "-f", tmp_path / "none.txt"], "cannot be read: No such file"),
        (["-m", starter_model, "-f", tmp_path / "latin.txt"], "is not UTF-8 text"),
        (["-m", starter_model, "--ids", tmp_path / "ids.json"], "not a list of token ids"),
        (["-m", starter_model, "--ids", tmp_path / "latin.txt"], "is not UTF-8"),
        (["-m", starter_model, "-p", ""], "the prompt is empty"),
        (["-m", starter_model, "-p", "x", "--top-p", "7"], "top_p is 7.0"),
        (["-m", starter_model, "-p", "x", "--device", "tpu"], "'tpu' is not a device"),
        (["-m", starter_model, "-p", "x", "--cache", "q3"], "'q3' is not a cache mode"),
        (["-m", starter_model, "-p", "x", "--chunk-size", "0"], "chunks of 0 tokens are impossible"),
        (["-m", starter_model, "-p", "x", "--max-batch", "33"], "33 jobs at once are impossible"),
        (["-m", starter_model, "-p", "x", "--cache-tokens", "0"], "a cache of 0 tokens is impossible"),
        (["-m", tmp_path, "-p", "x"], "no config.json, so this is not a model directory"),
        (["-m", starter_model, "-p", "x", "--threads", "0"], "0 threads are impossible"),
        (["-m", starter_model, "-p", "x", "--threads", "100000"], "100,000 threads are impossible"),
        (["-m", starter_model, "-f", tmp_path / "long.txt", "--length", "256"], "the context holds 256"),
        (["-m", write_model(tmp_path / "odd", model_files(architectures=["OddForCausalLM"])), "-p", "x"], "odd"),
        (["-m", write_model(tmp_path / "bare", {"config.json": b"{}", "tokenizer.json": b"{}"}), "-p", "x"], "bare"),
    ):
        status, out, err = run(capsys, "generate", *arguments)
        assert status == 1 and out == "", (arguments, err)
        sentence, *_ = err.splitlines()
        assert sentence.startswith("exltui: ") and words in sentence and "should not have happened" not in err, err


def test_ctrl_c_ends_quietly(starter_models_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "exltui",
        "generate",
        "-m",
        "smollm2-135m",
        "-p",
        "Count: 1, 2, 3,",
        "--models-dir",
        str(starter_models_dir),
    ]
    # Tests may run where interrupts are ignored (a job in the background), and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*command, "--greedy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err and err.decode().splitlines()[-1] == "exltui: stopped"


def test_a_reader_that_goes_away_is_no_drama(starter_models_dir: Path) -> None:
    flags = f"--greedy --max-new-tokens 40 --models-dir {starter_models_dir}"
    command = f"{sys.executable} -m exltui generate -m smollm2-135m -p 'Count: 1, 2, 3,' {flags}"
    done = subprocess.run(["sh", "-c", f"{command} | head -c 1"], capture_output=True, timeout=60, check=False)
    assert len(done.stdout) == 1 and b"Traceback" not in done.stderr and b"Broken" not in done.stderr


def test_a_defect_gives_a_sentence_and_a_log_entry(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "log_file", lambda: tmp_path / "exltui.log")
    monkeypatch.setattr("exltui.cli.models.find_models", lambda _: 1 / 0)
    status, out, err = run(capsys, "models")
    assert status == 1 and out == "" and "this should not have happened: ZeroDivisionError" in err and str(tmp_path) in err
    assert "Traceback" in (tmp_path / "exltui.log").read_text()


# ── eval ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_eval_logits(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    ids = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    out = tmp_path / "out.npz"
    status, printed, _ = run(capsys, "eval", "logits", "-m", starter_model, "--ids", tmp_path / "ids.json", "--out", out, "--json")
    assert status == 0
    assert {key: value for key, value in one_object(printed).items() if key != "seconds"} == {
        "out": str(out), "tokens": 5, "vocabulary": 49152,
    }  # fmt: skip
    with np.load(out) as file:
        assert list(file) == ["logits"]
        logits = file["logits"]
    assert logits.dtype == np.float32 and logits.shape == (5, 49152)
    assert logits[-1].argmax() == 7042  # " Paris"
    # Nothing is rounded unless a flag asks for it: an evaluation speaks of the file.
    for flags, same in ((["--load-f16", "--activations", "fp32"], True), (["--load-q4"], False)):
        run(capsys, "eval", "logits", "-m", starter_model, "--ids", tmp_path / "ids.json", "--out", out, *flags)
        with np.load(out) as file:
            assert np.array_equal(file["logits"], logits) is same
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_eval_logits_says_what_is_wrong(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[1, 99999999]")
    (tmp_path / "good.json").write_text("[1]")
    for ids, out, words in (
        ("ids.json", "o.npz", "is not in the vocabulary"),
        ("good.json", "no/o.npz", "cannot be written"),
    ):
        status, _, err = run(capsys, "eval", "logits", "-m", starter_model, "--ids", tmp_path / ids, "--out", tmp_path / out)
        assert status == 1 and words in err


def test_eval_ppl(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sense.txt").write_text("The quick brown fox jumps over the lazy dog. It was a bright cold day in April. " * 3)
    (tmp_path / "noise.txt").write_text("dog quick lazy fox It brown the jumps April over in day was The cold a bright zz qx " * 3)
    common = ["eval", "ppl", "-m", starter_model, "--json", "--window", "40"]
    sense = one_object(run(capsys, *common, "-f", tmp_path / "sense.txt")[1])
    noise = one_object(run(capsys, *common, "-f", tmp_path / "noise.txt", "--stride", "20")[1])
    assert 1 < sense["perplexity"] < noise["perplexity"]
    assert sense["perplexity"] == pytest.approx(np.exp(sense["nll"])) and sense["windows"] >= 2
    status, out, _ = run(capsys, *[a for a in common if a != "--json"], "-f", tmp_path / "sense.txt")
    assert status == 0 and out.startswith(f"perplexity {sense['perplexity']:.4f}")


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_are_listed_for_people_and_for_scripts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_model(tmp_path / "good")
    write_model(tmp_path / "evil\x1b[31m", {"config.json": b"{}"})
    status, out, _ = run(capsys, "models", "--models-dir", tmp_path)
    assert status == 0 and "\x1b" not in out
    assert re.search(r"good +f16 +16\.00", out) and "broken:" in out
    for arguments in (["models", "list", "--json"], ["models", "--json"]):
        status, out, _ = run(capsys, *arguments, "--models-dir", tmp_path)
        listing = one_object(out)
        assert status == 0 and len(listing["models"]) == 2 and listing["folders"][0] == str(tmp_path)
    assert listing["models"][1]["name"] == "good" and listing["models"][1]["bpw"] == 16.0


def test_an_empty_or_missing_folder_is_said_with_the_way_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        status, out, _ = run(capsys, "models", "list", "--models-dir", folder)
        assert status == 0 and out.startswith("no models in ") and "exltui models get smollm2-135m" in out


def test_models_dir_counts_before_and_after_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_model(tmp_path / "good")
    assert "good" in run(capsys, "--models-dir", tmp_path, "models", "list")[1]
    assert "good" in run(capsys, "models", "--models-dir", tmp_path, "list")[1]


def test_models_info(capsys: pytest.CaptureFixture[str], starter_model: Path, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "models", "info", starter_model)
    assert status == 0 and "134,515,008" in out and "LlamaForCausalLM" in out
    assert "30 layers of 576, 9 query and 3 key/value heads of 64" in out and "RoPE over 64, theta 100,000, in 30 layers" in out
    assert "<|im_end|> (2)" in out and "attention 16, mlp 16" in out
    details = one_object(run(capsys, "models", "info", starter_model, "--json")[1])["details"]
    assert details["refused"] == [] and details["bits"] == {"embedding": 16.0, "attention": 16.0, "mlp": 16.0}
    assert 2 in [token["id"] for token in details["eos"]] and "<|im_start|>" in details["special"] and details["template"]
    bad = write_model(tmp_path / "bad", {"config.json": b"{}"})
    status, out, err = run(capsys, "models", "info", bad)
    assert status == 1 and "there is no tokenizer.json" in err and "models rm" not in err
    assert "models rm bad" in run(capsys, "models", "--models-dir", tmp_path, "info", "bad")[2]
    status, out, err = run(capsys, "models", "info", bad, "--json")
    assert status == 1 and "there is no tokenizer.json" in err and "there is no tokenizer.json" in one_object(out)["problem"]


def test_models_rm_asks_and_stays_in_its_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_model(tmp_path / "models" / "m")
    outside = write_model(tmp_path / "outside")
    folder = ["--models-dir", tmp_path / "models"]
    assert exltui("models", "rm", "m", *folder).returncode == 1 and path.exists()  # nobody there to ask
    status, _, err = run(capsys, "models", "rm", outside, "--yes", *folder)
    assert status == 1 and "none of the models folders" in err and outside.exists()
    status, _, err = run(capsys, "models", "rm", "../outside", "--yes", *folder)
    assert status == 1 and outside.exists()
    status, _, err = run(capsys, "models", "rm", tmp_path / "models", "--yes", *folder)
    assert status == 1 and path.exists()
    (tmp_path / "models" / "m.partial").mkdir()
    status, out, _ = run(capsys, "models", "rm", "m", "--yes", *folder)
    assert status == 0 and out.startswith("removed ") and list((tmp_path / "models").iterdir()) == []


def test_models_rm_of_a_link_keeps_what_it_points_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    real = write_model(tmp_path / "real")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(real)
    status, _, _ = run(capsys, "models", "rm", "m", "--yes", "--models-dir", tmp_path / "models")
    assert status == 0 and (real / "config.json").exists() and not (tmp_path / "models" / "m").is_symlink()


def test_models_get_of_what_is_there(capsys: pytest.CaptureFixture[str], starter_models_dir: Path) -> None:
    status, out, _ = run(capsys, "models", "get", "smollm2-135m", "--models-dir", starter_models_dir)
    assert status == 0 and out == f"smollm2-135m is in {starter_models_dir / 'smollm2-135m'}\n"


def test_models_get_of_nonsense(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = run(capsys, "models", "get", "nonsense", "--models-dir", tmp_path)
    assert status == 1 and "OWNER/REPO" in err


# ── the app and the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_app_needs_a_terminal() -> None:
    done = exltui()
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1 and b"needs a terminal" in done.stderr


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    code = "import sys, exltui.cli.parser as p; p.build_parser(); print(*{'torch', 'textual', 'numpy', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"
    before = os.times()
    assert exltui("--help").returncode == 0
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 0.6, "seconds of processor time, not of the clock: the machine may be busy"
    assert exltui("--version").stdout.startswith(b"exltui 0.")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["models"],
        ["models", "get"],
        ["models", "rm"],
        ["generate"],
        ["bulk"],
        ["eval"],
        ["eval", "logits"],
        ["eval", "ppl"],
        ["doctor"],
    ):
        status, out, _ = run(capsys, *command, "--help")
        assert status == 0 and out.startswith(f"usage: exltui {' '.join(command)}")


def test_the_app_gets_the_command_line_over_the_settings_over_the_defaults() -> None:
    file = paths.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        'theme = "light"\nlast_model = "last"\nmodels_dirs = ["/more"]\n[load]\nlength = 100\ncache = "q4"\n[sampling]\ntop_k = 3\n'
    )
    try:
        plain = app_options(build_parser().parse_args([]))
        given = app_options(
            build_parser().parse_args(
                ["-m", "mine", "--theme", "dark", "--session", "7", "--models-dir", "/first", "--length", "200", "--device", "cpu"]
            )
        )
        assert (plain.model, plain.theme, plain.session) == ("last", "light", "")
        assert plain.load == LoadOptions(length=100, cache="q4") and plain.sampling == Sampling(top_k=3)
        assert (given.model, given.theme, given.session) == ("mine", "dark", "7")
        assert given.load == LoadOptions(length=200, cache="q4", device="cpu")
        assert given.models_dirs == (Path("/first"), paths.models_dir(), Path("/more"))
        file.write_text("theme = 1")
        broken = app_options(build_parser().parse_args([]))
        assert broken.theme == "dark" and len(broken.problems) == 1 and "theme" in str(broken.problems[0])
    finally:
        file.unlink()


def test_progress_is_painted_on_a_terminal() -> None:
    """With a terminal as standard error, a load shows megabytes in one line that is painted over."""
    code = (
        "from exltui.cli.output import ProgressLine\nimport time\np = ProgressLine()\n"
        "for i in range(5): p('downloading', i * 25_000_000, 100_000_000); time.sleep(0.3)\np.end()"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:
            break
        if not block:
            break
        seen += block
    process.wait(10)
    os.close(master)
    assert seen.count(b"\r\x1b[2K") == 5 and b"50 %  50 MB of 100 MB" in seen and b"MB/s" in seen
