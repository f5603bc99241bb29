"""The token inspector and the sampler microscope, with an engine that is played and with the real one."""

from __future__ import annotations

import pytest
from app_stage import Speaker, Stage
from test_app_real import real_app, until

from exltui import protocol
from exltui.app.inspect import InspectedReply
from exltui.app.panes.sampler import SamplerPane
from exltui.app.scope import scope_lines
from exltui.app.screens.inspect import InspectScreen
from exltui.app.screens.microscope import MicroscopeScreen
from exltui.protocol import Explained, Sampling, Scores, StageOf
from exltui.tokenizer import Tokenizer

WIDE = (160, 45)
TIDES = "Why are there tides?"


def about(stage: Stage) -> str:
    return stage.app.screen.query_one("#inspect-about").render().plain


def table(app: object) -> str:
    return app.screen.query_one("#scope-table").render().plain  # type: ignore[attr-defined]


def prompts(stage: Stage) -> list[str]:
    return [command.job.prompt for command in stage.client.sent if isinstance(command, protocol.Submit)]


async def test_the_inspector_shows_what_else_could_have_been_said_and_branches_there():
    stage = Stage(client=Speaker(["The Moon pulls", " pulls"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        assert stage.client.sent[-1].job.keep
        await pilot.press("alt+up", "i")
        await stage.play(pilot, 0.5)
        assert isinstance(stage.app.screen, InspectScreen)
        await pilot.press("right")
        await stage.play(pilot, 0.3)
        assert "“ Moon”" in about(stage)
        assert "70.0%" in about(stage)
        assert "77.8%" in about(stage), "after the sampler, which the engine was asked for"
        assert "“ Sun”" in about(stage)
        await pilot.press("2")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        assert stage.texts[-1][1] == "The Sun pulls"
        assert prompts(stage)[-1].endswith("\nThe Sun")


async def test_a_reply_of_another_run_says_how_it_can_be_inspected():
    stage = Stage(client=Speaker(["The Moon pulls"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        stage.client.spoken.clear()
        await pilot.press("alt+up", "i")
        await stage.play(pilot, 0.3)
        assert stage.app.screen is stage.app.main
        assert [notice.message for notice in stage.app._notifications][-1].startswith("The logits of this reply are no longer kept.\nR ")


async def test_the_inspector_says_why_the_sampler_cannot_be_asked():
    stage = Stage(client=Speaker(["The Moon pulls"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        stage.client._explain = lambda query: stage.client._events.append(
            protocol.QueryFailed(query.id, "the logits of this reply are no longer kept", "write it again")
        )
        await pilot.press("alt+up", "i")
        await stage.play(pilot, 0.3)
        assert "after the sampler: the logits of this reply are no longer kept: write it again" in about(stage)


async def test_the_microscope_follows_a_value_that_changes_and_hands_its_settings_on():
    stage = Stage(client=Speaker(["The Moon pulls"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "i")
        await stage.play(pilot, 0.3)
        await pilot.press("right", "enter")
        await stage.play(pilot, 0.3)
        assert isinstance(stage.app.screen, MicroscopeScreen)
        assert "77.8%" in table(stage.app)
        pane = stage.app.screen.query_one(SamplerPane)
        await pilot.press("down", "1", "enter")
        await stage.play(pilot, 0.3)
        assert pane.sampling.top_k == 1
        assert "100.0%" in table(stage.app)
        assert stage.app.dialogue.sampling.top_k == 50, "the chat's own settings are as they were"
        asked = [command for command in stage.client.sent if isinstance(command, protocol.Explain)]
        assert asked[-1].sampling.top_k == 1
        assert len([command for command in stage.client.sent if isinstance(command, protocol.Submit)]) == 1, "no model call"
        await pilot.press("right_square_bracket")
        await stage.play(pilot, 0.3)
        assert "Token 3 of 3" in str(stage.app.screen.query_one("#scope-frame").border_title)
        await pilot.press("a")
        await stage.settle(pilot)
        assert stage.app.dialogue.sampling.top_k == 1


def test_the_table_shows_as_many_stages_as_there_is_room_for():
    stages = tuple(StageOf(name, 50 - n, 0.01 * n, (0.6, 0.4 - 0.1 * n)) for n, name in enumerate(["raw", "temperature", "top_k", "min_p"]))
    explained = Explained("q", "a", 3, 1, (0, 1), stages)
    names = {0: " yes", 1: " no\n"}
    wide = [line.plain for line in scope_lines(explained, names.__getitem__, 0, 120, 20)]
    assert wide[0].split() == ["model", "temper.", "top-k", "min-p"]
    assert wide[1].split()[-1] == "47"
    assert wide[-1].startswith("● “ no⏎”")
    narrow = [line.plain for line in scope_lines(explained, names.__getitem__, 2, 36, 20)]
    assert narrow[0].split() == ["◂", "2", "before", "top-k", "min-p"]
    assert all(len(line) <= 36 for line in narrow)


def test_a_branch_keeps_what_the_reply_was_begun_with_and_no_special_token(starter_model):
    tokenizer = Tokenizer(starter_model)
    end = tokenizer.encode("<|im_end|>")[-1]

    def inspected(*ids: int) -> InspectedReply:
        return InspectedReply([Scores("a", place, id, 0.5, 0.5, raw_top=((end, 0.2),)) for place, id in enumerate(ids)], tokenizer)

    paris = tokenizer.encode(" is Paris.")
    assert inspected(*paris, end).until(1, "The capital is Paris.") == "The capital is"
    whole = inspected(*tokenizer.encode("How are you today?"), end, *tokenizer.encode(" I am well."), end)
    assert whole.until(len(whole.tokens), "How are you today? I am well.") == "How are you today? I am well."
    assert whole.tokens[0].alternatives[0].said == "", "an end drawn in its place writes nothing"
    assert whole.tokens[0].alternatives[0].text == "<|im_end|>", "but is shown"
    cut = inspected(*tokenizer.encode("one two three STOP"))
    assert cut.until(2, "Well: one two three") == "Well: one two", "the stop string is not in the reply"


@pytest.mark.usefixtures("starter_model")
async def test_the_real_engine_explains_a_token_and_branches_from_it(starter_models_dir, tmp_path):
    app = real_app(starter_models_dir, tmp_path / "sessions.db")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.observed.loaded is not None)
        await pilot.press(*"Name the capital of France.", "enter")
        await until(pilot, lambda: not app.dialogue.busy)
        await pilot.press("alt+up", "i")
        await until(pilot, lambda: isinstance(app.screen, InspectScreen))
        reply = app.screen._tokens
        said = "".join(token.text for token in reply[:-1])
        assert said.startswith("The capital of France is Paris")
        assert reply[-1].text == "<|im_end|>", "the end is a token like any other"
        assert all(0 < token.raw <= 1 and token.drawn == 1.0 for token in reply), "greedy"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, MicroscopeScreen) and "model" in table(app))
        jobs = len(app.observed.jobs)
        before = table(app)
        app.screen.query_one(SamplerPane).take(Sampling(temperature=1.5, top_k=5, top_p=1.0, min_p=0.0))
        await until(pilot, lambda: table(app) != before)
        assert "temper." in table(app)
        assert "49,152" in table(app)
        assert len(app.observed.jobs) == jobs, "no model call"
        await pilot.press("escape", "2")
        await until(pilot, lambda: not app.dialogue.busy)
        branch = app.dialogue.conversation.path()[-1]
        assert len(app.dialogue.conversation.siblings(branch.id)) == 2
        assert branch.text.startswith(reply[0].alternatives[1].text)


@pytest.mark.parametrize("keys", [("right",), ("enter", "right")])
async def test_an_answer_that_comes_after_the_screen_was_closed_is_let_go(keys):
    stage = Stage(client=Speaker(["The Moon pulls"]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "i")
        await stage.play(pilot, 0.3)
        await pilot.press(*keys[:-1])
        await stage.play(pilot, 0.3)
        late: list[protocol.Explain] = []
        answer, stage.client._explain = stage.client._explain, late.append
        await pilot.press(keys[-1], "escape")
        await stage.settle(pilot)
        assert late
        stage.client._explain = answer
        for query in late:
            answer(query)
        await stage.play(pilot, 0.3)
        assert isinstance(stage.app.screen, InspectScreen) == (len(keys) > 1)
