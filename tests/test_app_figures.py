"""Numbers as the app writes them, and the record it keeps of the engine."""

from __future__ import annotations

import dataclasses

import pytest

from exltui import protocol
from exltui.app import fields, figures
from exltui.app.actions import ALL, APP_ACTIONS, COMMANDS, DO
from exltui.app.keymap import places
from exltui.app.keys import check_keymap, key_name, keys_name
from exltui.app.observed import Observed
from exltui.errors import SamplingError
from exltui.protocol import Sampling


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (92_900_000, "93 MB"), (4_100_000_000, "4.1 GB"), (1.2e11, "120 GB")],
)
def test_sizes(value, text):
    assert figures.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.082, "82 ms"), (3.14, "3.1 s"), (59.96, "1:00"), (245, "4:05")])
def test_durations(value, text):
    assert figures.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (8.44, "8.4"), (99.96, "100"), (31_200, "31,200")])
def test_rates(value, text):
    assert figures.rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "now"), (59, "now"), (61, "1 min"), (7200, "2 h"), (86400 * 3, "3 d"), (86400 * 40, "22 Oct")]
)
def test_how_long_ago(seconds, text, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    now = 1_796_083_200.0  # 1 December 2026, noon
    assert figures.ago(now - seconds, now) == text


def test_a_sparkline_has_its_width_and_blanks_for_unknown_values():
    assert figures.spark([0, 50, 100, None], 6, 100) == "  ▁▅█ "
    assert figures.spark([], 4) == "    "
    assert figures.spark([0, 0], 2) == "▁▁"


def test_a_bar_shows_the_smallest_share_and_never_overflows():
    assert figures.cells(0.0001, 10) == 1
    assert figures.cells(0, 10) == 0
    assert figures.cells(None, 10) == 0
    assert figures.cells(7.0, 10) == 10


class Clock:
    """Time that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job_spec(id: str) -> protocol.JobSpec:
    return protocol.JobSpec(id, prompt="x")


STATS = protocol.Stats("stop_token", prompt_tokens=100, cached_tokens=60, new_tokens=50, prefill_seconds=0.5, decode_seconds=2.0, seed=1)


def test_a_job_is_followed_from_submit_to_done():
    clock = Clock()
    observed = Observed(clock)
    observed.sent(protocol.Submit(job_spec("a")))
    assert observed.running == ["a"]
    assert observed.job.context_used is None
    observed.apply(protocol.Queued("a", 100))
    observed.apply(protocol.Prefill("a", 80, 100, 60))
    assert observed.job.context_used == 80
    clock.now += 0.25
    observed.apply(protocol.Text("a", "Hel", 1))
    observed.apply(protocol.Text("a", "lo", 2))
    assert observed.job.first_token_seconds == 0.25
    assert observed.job.context_used == 103
    assert observed.job.decode_rate is None, "the engine has not said it yet"
    observed.apply(protocol.Done("a", STATS, ()))
    assert observed.running == []
    assert observed.job.context_used == 150
    assert observed.job.decode_rate == 25
    assert observed.job.prefill_rate == 80


def test_a_prompt_that_was_stopped_counts_as_far_as_it_was_read():
    observed = Observed(Clock())
    observed.sent(protocol.Submit(job_spec("a")))
    observed.apply(protocol.Queued("a", 1000))
    observed.apply(protocol.Prefill("a", 300, 1000, 100))
    stats = dataclasses.replace(STATS, stop_reason="cancelled", prompt_tokens=1000, cached_tokens=100, new_tokens=0)
    observed.apply(protocol.Done("a", stats, ()))
    assert observed.job.context_used == 300
    assert observed.job.prefill_rate == 400


def test_a_failed_job_is_no_longer_running():
    observed = Observed(Clock())
    observed.sent(protocol.Submit(job_spec("a")))
    observed.apply(protocol.Failed("a", "The prompt has 9,000 tokens."))
    assert observed.running == []
    assert observed.job.stats is None


def test_a_load_has_speed_and_time_left():
    clock = Clock()
    observed = Observed(clock)
    observed.apply(protocol.HostUp("2.13", ("cpu",), native=True))
    assert not observed.busy
    observed.sent(protocol.Load("l", "/models/m"))
    assert observed.busy
    observed.apply(protocol.LoadProgress("l", "weights", 0, 1000))
    clock.now += 1
    observed.apply(protocol.LoadProgress("l", "weights", 250, 1000))
    assert observed.loading.rate == 250
    assert observed.loading.seconds_left == 3
    observed.apply(protocol.LoadProgress("other", "weights", 999, 1000))
    assert observed.loading.done == 250, "progress of another load is not ours"
    observed.apply(protocol.LoadFailed("l", "No space.", "Use a smaller context."))
    assert observed.loading is None
    assert observed.load_failed.error == "No space."
    observed.sent(protocol.Load("l2", "/models/m"))
    assert observed.load_failed is None, "a new load takes the old error away"


def test_another_chat_shows_no_figures_of_the_last_one():
    observed = Observed(Clock())
    observed.sent(protocol.Submit(job_spec("a")))
    observed.apply(protocol.Done("a", STATS, ()))
    observed.forget_figures()
    assert observed.job is None


# ── sampler fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_is_in_the_pane_once():
    shown = [field.name for _, group in fields.grouped() for field in group]
    assert sorted([*shown, "cfg_scale"]) == sorted(f.name for f in dataclasses.fields(Sampling))  # guidance needs a negative prompt


@pytest.mark.parametrize("field", fields.FIELDS, ids=lambda field: field.name)
def test_stepping_stays_in_the_range_and_off_is_allowed(field):
    value = getattr(Sampling(), field.name)
    for steps in (-10_000, 1, 10_000):
        field.setting.check(field.stepped(value, steps))
    if field.setting.off is not None:
        assert field.setting.kind == "text" or field.parse("off") == field.setting.off
        field.setting.check(field.setting.off)


@pytest.mark.parametrize("field", fields.FIELDS, ids=lambda field: field.name)
def test_what_the_pane_writes_can_be_typed_again(field):
    value = getattr(Sampling(), field.name)
    assert field.setting.kind == "text" or field.parse(field.text(value)) == value


def test_what_is_typed_is_checked():
    temperature, seed, top_k = fields.BY_NAME["temperature"], fields.BY_NAME["seed"], fields.BY_NAME["top_k"]
    assert temperature.parse("1.5") == 1.5
    assert seed.parse("") is None
    assert seed.parse("42") == 42
    assert fields.BY_NAME["token_repetition_range"].parse("all") == -1
    assert fields.BY_NAME["mirostat"].parse("on") is True
    assert fields.BY_NAME["dry_sequence_breakers"].parse(r"\n.") == "\n."
    with pytest.raises(SamplingError, match="temperature: 999 is outside 0 to 100"):
        temperature.parse("999")
    with pytest.raises(SamplingError, match="not a whole number"):
        top_k.parse("1.5")
    with pytest.raises(SamplingError, match="outside"):
        temperature.parse("nan")
    with pytest.raises(SamplingError, match="neither on nor off"):
        fields.BY_NAME["mirostat"].parse("perhaps")


def test_steps_leave_no_rounding_dust():
    temperature = fields.BY_NAME["temperature"]
    value = 0.8
    for _ in range(7):
        value = temperature.stepped(value, 1)
    assert value == 1.15


def test_a_summary_names_what_is_on():
    assert fields.summary(Sampling(temperature=0)) == "greedy"
    assert fields.summary(Sampling(temperature=0.7, top_k=0, top_p=1.0, min_p=0.05)) == "temp 0.7 · min-p 0.05"


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_key_is_given_to_two_actions_of_one_place():
    for actions in (APP_ACTIONS, ALL[len(APP_ACTIONS) :]):
        keys = [key for action in actions for key in action.keys.split(",") if key]
        assert len(keys) == len(set(keys))
    assert len({action.id for action in ALL}) == len(ALL)


def test_keys_that_terminals_cannot_tell_apart_are_not_used():
    keys = {key for action in ALL for key in action.keys.split(",")}
    assert not keys & {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+left_square_bracket", "ctrl+b", "ctrl+z"}


def test_every_alt_and_flow_control_key_has_another_way():
    """Some terminals send no Alt, and some keep Ctrl+S for themselves."""
    by_label: dict[str, set[str]] = {}
    for action in ALL:
        by_label.setdefault(action.label, set()).update(key for key in action.keys.split(",") if key)
    assert not [label for label, keys in by_label.items() if keys and all(key == "ctrl+s" or "alt+" in key for key in keys)]


def test_every_action_can_be_done_and_every_command_has_a_name_of_its_own():
    assert set(DO) == {action.id for action in ALL}
    assert len(COMMANDS) == len([action for action in ALL if action.slash])


def test_names_of_keys():
    assert key_name("ctrl+p") == "Ctrl+P"
    assert key_name("f1") == "F1"
    assert key_name("question_mark") == "?"
    assert key_name("alt+up") == "Alt+↑"
    assert keys_name("ctrl+o,f5") == "Ctrl+O, F5"


def test_a_keymap_of_the_settings_is_checked():
    assert check_keymap({}, places()) == []
    assert check_keymap({"chat.new": "f12"}, places()) == []
    [unknown] = check_keymap({"chat.neu": "f9"}, places())
    assert "keys.chat.neu is not an action" in str(unknown)
    [twice] = check_keymap({"chat.new": "f10", "app.quit": "f11,f10"}, places())
    assert "F10 is given to both chat.new and app.quit" in str(twice)
    [taken] = check_keymap({"chat.new": "ctrl+q"}, places())
    assert "Ctrl+Q is given to both chat.new and app.quit" in str(taken)
    assert check_keymap({"message.edit": "a"}, places()) == [], "a of the list of chats is another place"
