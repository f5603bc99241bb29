"""The known bugs of ExLlamaV2, one by one: which test holds that they are not here, or why they cannot be.

The table is checked: a test that it names must exist. Those that had no other place are below.
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_sampling import SHAPES, random_logits

from exltui.chat.formats import FORMATS
from exltui.cli.options import sampling_options
from exltui.cli.parser import build_parser
from exltui.engine.generate.sampling import Sampler
from exltui.engine.ops import bind
from exltui.engine.ops import cpu as native
from exltui.engine.ops.sample import distribution
from exltui.protocol import Sampling

NAMED = ("plain", "raw", "solar", "openchat")  # formats whose own form has the names, once a turn
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

HELD = {
    "greedy settings take dry_base from dry_allowed_length": "test_peer_bugs.py::test_greedy_changes_nothing_but_the_temperature",
    "two jobs of one settings object share DRY's memory and mirostat's mu": (
        "test_sampling.py::test_two_samplers_of_the_same_settings_do_not_meet"
    ),
    "allowed tokens are ignored where there is a bias": "test_sampling.py::test_biases_bans_and_what_is_allowed",
    "typical takes x + log x for the surprise and drops the token that crosses the mass": (
        "test_sampling.py::test_typical_takes_the_surprise_of_the_logarithm_and_keeps_the_crossing_token"
    ),
    "XTC does not protect the least likely of its choices, and reads past the list": (
        "test_sampling.py::test_xtc_spares_the_least_likely_of_the_best_and_what_it_must_not_touch"
    ),
    "top-p drops the token that crosses the mass": "test_sampling.py::test_top_p_keeps_the_token_that_crosses_the_mass",
    "smoothing divides by the temperature once more for each row of a batch": (
        "test_sampling.py::test_smoothing_is_the_same_in_every_row_of_a_batch"
    ),
    "probabilities do not sum to 1 after smoothing": "test_peer_bugs.py::test_what_a_token_is_drawn_from_sums_to_one",
    "a rewind does not take held token ids back, so results have them twice": (
        "test_jobs.py::test_a_rewind_is_reported_and_its_text_never_shown"
    ),
    "with drafts a job ends up to num_draft_tokens short of max_new_tokens": (
        "test_drafts.py::test_good_guesses_save_steps_and_are_reported"
    ),
    "only the first EOS id of a list counts": "test_tokenizer.py::test_eos_is_the_union_of_all_places",
    "user text gets the user's name before it in every format": "test_peer_bugs.py::test_a_format_adds_no_name_and_begins_once",
    "gemma's <bos> comes again in the middle of a chat; granite3 sends its placeholder": (
        "test_peer_bugs.py::test_a_format_adds_no_name_and_begins_once"
    ),
    "library code ends the process": "test_peer_bugs.py::test_no_library_code_ends_the_process",
    "insufficient memory is said without numbers": "test_loading.py::test_an_allocation_that_fails_is_said_in_words",
    "an unknown architecture runs as Llama with a warning": (
        "test_loading.py::test_an_unknown_architecture_is_told_from_the_nearest_known_one"
    ),
}
IMPOSSIBLE = {
    "post-sampling hooks are never called": "there are no hooks: what a job did comes as typed events (Text, Scores, Rewound)",
    "granite3 as a named format": "models of that family bring their own template; without one the format is told by the vocabulary",
}


@pytest.mark.parametrize("bug", HELD)
def test_the_test_that_holds_it_is_there(bug: str) -> None:
    file, _, name = HELD[bug].partition("::")
    functions = {node.name for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert name in functions
    assert bug not in IMPOSSIBLE


def test_greedy_changes_nothing_but_the_temperature() -> None:
    flags = ["generate", "-p", "x", "--dry-multiplier", "0.8", "--dry-base", "2.5", "--dry-allowed-length", "4", "--min-p", "0.2"]
    plain, greedy = (sampling_options(build_parser().parse_args([*flags, *more])) for more in ([], ["--greedy"]))
    assert greedy == replace(plain, temperature=0.0) and greedy.dry_base == 2.5
    assert Sampler(greedy).params([1, 2, 3], 3).rules[0].stage == "top_k"


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_token_is_drawn_from_sums_to_one(name: str) -> None:
    assert "sample" in bind("cpu").native
    for seed in range(3):
        logits = random_logits(seed, 500)
        params = Sampler(SHAPES[name]).params([], 0)
        assert float(distribution(logits, params).probs.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(native.distribution(logits, params)[1].sum()) == pytest.approx(1.0, abs=1e-6)
    hot = torch.stack([random_logits(9, 50)] * 3)
    drawn = native.sample(hot, [Sampler(Sampling(smoothing_factor=0.3, temperature=1.7, seed=4)).params([], 0)] * 3).tolist()
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_adds_no_name_and_begins_once(name: str) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Good day."),
        ("assistant", "Hello."),
        ("user", "and you?"),
        ("assistant", "Fine."),
        ("user", "bye"),
    ]
    text = FORMATS[name].prompt([{"role": role, "content": content} for role, content in turns])
    assert text.count("User:") == (3 if name in NAMED else 0)
    assert "system_prompt" not in text
    assert all(text.count(content) == 1 for _, content in turns)
    begin = FORMATS[name].begin
    assert not begin or text.count(begin) == 1


def test_no_library_code_ends_the_process() -> None:
    allowed = {"exltui/models/hub_child.py", "exltui/__main__.py"}  # programs of their own
    for path in (ROOT / "exltui").rglob("*.py"):
        if str(path.relative_to(ROOT)) not in allowed:
            assert not re.search(r"\bsys\.exit\(|\bos\._exit\(|raise SystemExit|(?<![\w.])exit\(", path.read_text(encoding="utf-8")), path
