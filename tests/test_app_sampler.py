"""Whose sampler settings hold: what a model's files recommend, or the person's own."""

from __future__ import annotations

import json
from dataclasses import replace

from app_stage import STARTER, Speaker, Stage

from exltui.protocol import Sampling
from exltui.settings import read_settings, remember

WIDE = (160, 45)
RECOMMENDED = Sampling(temperature=0.2, top_k=0, top_p=0.9, min_p=0.0)


def stage_with(folder, **parts) -> Stage:
    """Two models: one whose files recommend settings, one that says nothing."""
    for name, config in (("cold", {"temperature": 0.2, "top_p": 0.9}), ("silent", {})):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "generation_config.json").write_text(json.dumps(config))
    models = [replace(STARTER, name=name, path=folder / name) for name in ("cold", "silent")]
    return Stage(client=Speaker(["Good."]), models=models, model=str(folder / "cold"), **parts)


def told(stage: Stage) -> str:
    return "\n".join(notice.message for notice in stage.app._notifications)


async def test_what_a_models_files_recommend_holds_and_is_said(tmp_path):
    stage = stage_with(tmp_path)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        assert stage.app.dialogue.sampling == RECOMMENDED == stage.app.main.sampler.sampling
        assert "as the model's files recommend: temperature 0.80 → 0.20" in told(stage)
        assert stage.app.main.sampler.border_subtitle == "as the model's files say"
        stage.app._save_settings()
        assert stage.remembered["sampling"] is None
        stage.app.desk._load_path(tmp_path / "silent")
        await stage.settle(pilot)
        assert stage.app.dialogue.sampling == Sampling(), "the other model's settings are not its own"


async def test_a_persons_own_settings_stay_with_every_model_until_they_are_taken_back(tmp_path):
    stage = stage_with(tmp_path)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/set temperature 0.5")
        own = replace(RECOMMENDED, temperature=0.5)
        await stage.settle(pilot)
        stage.app._save_settings()
        assert stage.remembered["sampling"] == own
        stage.app.desk._load_path(tmp_path / "silent")
        await stage.settle(pilot)
        assert stage.app.dialogue.sampling == own
        await pilot.press("ctrl+s", "R")
        await stage.settle(pilot)
        assert stage.app.dialogue.sampling == Sampling()
        stage.app._save_settings()
        assert stage.remembered["sampling"] is None


async def test_settings_of_the_file_are_the_persons_own(tmp_path):
    stage = stage_with(tmp_path, sampling=Sampling())
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        assert stage.app.dialogue.sampling == Sampling()
        assert stage.app.main.sampler.defaults == RECOMMENDED


def test_settings_that_are_the_defaults_are_kept_as_ones_own_too(tmp_path):
    file = tmp_path / "settings.toml"
    assert read_settings(file).sampling is None
    remember("sampling", Sampling(), file)
    assert read_settings(file).sampling == Sampling()
    remember("sampling", None, file)
    assert read_settings(file).sampling is None
