"""LoRA adapters while chatting, two replies with settings of their own, and what of each branch is in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from app_stage import Speaker, Stage
from safetensors.torch import save_file
from test_app_real import real_app, until

from exltui import protocol
from exltui.adapter import AdapterInfo
from exltui.app.screens.adapters import AdapterScreen
from exltui.app.screens.candidates import CandidatesScreen
from exltui.app.screens.form import FormScreen
from exltui.app.screens.pick import PickScreen
from exltui.chat.export import from_json, to_json

WIDE = (160, 45)
TIDES = "Why are there tides?"
PIRATE = AdapterInfo("pirate", Path("/models/pirate"), 8, ("q_proj", "v_proj"), 4_000_000, "smollm2-135m")
BROKEN = AdapterInfo("broken", Path("/models/broken"), problem="broken: there is no adapter_model.safetensors")


def stage_with_adapters(*replies: str, **parts: object) -> Stage:
    stage = Stage(client=Speaker(list(replies)), **parts)  # type: ignore[arg-type]
    stage.library.adapters = lambda: [PIRATE, BROKEN]  # type: ignore[method-assign]
    return stage


def write_adapter(model: Path, directory: Path) -> None:
    """A random adapter for ``model``, as PEFT writes one, strong enough to change what the model says."""
    config = json.loads((model / "config.json").read_text())
    hidden, generator = config["hidden_size"], torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, hidden, generator=generator) * 0.4
        tensors[f"{module}.lora_B.weight"] = torch.randn(hidden, 4, generator=generator) * 0.4
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(about))


def jobs(stage: Stage) -> list[protocol.JobSpec]:
    return [command.job for command in stage.client.sent if isinstance(command, protocol.Submit)]


def told(stage: Stage) -> str:
    return "\n".join(notice.message for notice in stage.app._notifications)


async def test_an_adapter_is_loaded_scaled_and_dropped_by_keys():
    stage = stage_with_adapters()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/lora")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, AdapterScreen)
        await pilot.press("enter")
        await stage.play(pilot, 0.2)
        assert stage.client.sent[-1] == protocol.LoadAdapter(stage.client.sent[-1].id, "/models/pirate", "pirate", 1.0)
        await pilot.press("left", "left")
        await stage.play(pilot, 0.2)
        assert stage.app.observed.adapters["pirate"].scale == 0.9
        assert "0.90" in stage.app.screen._line("pirate", 60).plain
        await pilot.press("0")
        await stage.play(pilot, 0.2)
        assert stage.app.observed.adapters["pirate"].scale == 0.0
        await pilot.press("enter")
        await stage.play(pilot, 0.2)
        assert stage.app.observed.adapters == {}
        await pilot.press("down", "enter")
        await stage.settle(pilot)
        assert "there is no adapter_model.safetensors" in told(stage)
        await pilot.press("escape")
        assert stage.app.screen is stage.app.main


async def test_commands_load_scale_and_drop_too():
    stage = stage_with_adapters()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        for command in ("/lora pirate:0.5", "/lora pirate:1.5", "/lora pirate off", "/lora nobody"):
            await stage.say(pilot, command)
            await stage.play(pilot, 0.2)
        sent = [each for each in stage.client.sent if isinstance(each, (protocol.LoadAdapter, protocol.DropAdapter))]
        assert [(type(each).__name__, each.name, getattr(each, "scale", None)) for each in sent] == [
            ("LoadAdapter", "pirate", 0.5),
            ("LoadAdapter", "pirate", 1.5),
            ("DropAdapter", "pirate", None),
        ]
        assert "There is no adapter nobody.\nThere are pirate, broken." in told(stage)


async def test_another_model_has_none_of_them():
    stage = stage_with_adapters()
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/lora pirate")
        await stage.play(pilot, 0.2)
        assert stage.app.observed.adapters
        stage.app.desk._load_path(Path("/models/other"))
        await stage.play(pilot, 0.2)
        assert stage.app.observed.adapters == {}


async def test_a_and_b_differ_in_sampler_adapters_and_system_prompt(tmp_path):
    (tmp_path / "terse.md").write_text("Be terse.")
    stage = stage_with_adapters("Arr.", "The Moon.", characters_dir=tmp_path)
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.say(pilot, "/lora pirate:0.8")
        await stage.play(pilot, 0.2)
        stage.app.dialogue.conversation.add("user", TIDES)
        await stage.say(pilot, "/compare")
        await stage.settle(pilot)
        assert isinstance(stage.app.screen, FormScreen)
        # A: the preset "default"; B: no adapter, the kept system prompt.
        await pilot.press("right", "down", "down", "down", "down", "right", "down", "right", "right", "down", "enter")
        await stage.play(pilot, 0.3)
        first, second = jobs(stage)
        assert (first.adapters, second.adapters) == (None, ())
        assert first.sampling == protocol.Sampling()
        assert "system: Be terse." not in first.prompt
        assert second.prompt.startswith("system: Be terse.")
        assert isinstance(stage.app.screen, CandidatesScreen)
        titles = [str(frame.border_title) for frame in stage.app.screen.query(".column")]
        assert titles == ["A · sampler default", "B · LoRA none · system terse"]
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        await pilot.press("2")
        await stage.settle(pilot)
        assert stage.texts[-1][1] == "The Moon."
        assert len(stage.app.dialogue.conversation.siblings(stage.app.dialogue.conversation.head)) == 2
        await pilot.press("alt+up", "o")
        await stage.settle(pilot)
        page = stage.app.screen.query_one("#sheet Static").render().plain
        assert "B · LoRA none · system terse" in page
        assert "system prompt    Be terse." in page
        await pilot.press("escape", "left_square_bracket", "o")
        await stage.settle(pilot)
        page = stage.app.screen.query_one("#sheet Static").render().plain
        assert "A · sampler default" in page
        assert "LoRA adapters    pirate:0.8" in page
        assert "version          1 of 2" in page
        kept = from_json(to_json(stage.app.dialogue.conversation))
        assert [message.asked for message in kept if message.asked] == ["A · sampler default", "B · LoRA none · system terse"]


async def test_two_presets_by_name():
    stage = stage_with_adapters("One.", "Two.")
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        stage.app.dialogue.conversation.add("user", TIDES)
        await stage.say(pilot, "/compare precise nothing")
        assert "Name two presets" in told(stage)
        await stage.say(pilot, "/compare precise creative")
        await stage.play(pilot, 0.1)
        assert [job.sampling for job in jobs(stage)] == [stage.app.presets.all["precise"], stage.app.presets.all["creative"]]


async def test_the_tree_says_what_of_each_branch_is_in_the_cache():
    stage = Stage(client=Speaker(["The Moon pulls.", "The Sun pulls."]))
    async with stage.app.run_test(size=WIDE) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, TIDES)
        await pilot.press("alt+up", "r")
        await stage.until(pilot, lambda: not stage.app.dialogue.busy)
        await pilot.press("ctrl+t")
        await stage.play(pilot, 0.3)
        assert isinstance(stage.app.screen, PickScreen)
        rows = [choice.right for choice in stage.app.screen._choices]
        assert [row.partition(" · ")[0] for row in rows] == ["you", "cached 4 of 9", "cached 4 of 9"]


@pytest.mark.usefixtures("starter_model")
async def test_the_real_engine_loads_an_adapter_and_says_what_is_cached(starter_model, starter_models_dir, tmp_path):
    write_adapter(starter_model, tmp_path / "adapters" / "noise")
    app = real_app(starter_models_dir, tmp_path / "sessions.db")
    app.parts.library._folders.append(tmp_path / "adapters")
    app.dialogue.max_new_tokens = 12
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.observed.loaded is not None)
        await pilot.press(*"Name the capital of France.", "enter")
        await until(pilot, lambda: not app.dialogue.busy)
        plain = app.dialogue.conversation.path()[-1]
        await pilot.press("ctrl+t")
        await until(pilot, lambda: isinstance(app.screen, PickScreen) and any("cached" in choice.right for choice in app.screen._choices))
        (row,) = [choice.right for choice in app.screen._choices if choice.right.startswith("cached")]
        cached, total = (int(word) for word in row.partition(" · ")[0].removeprefix("cached ").split(" of "))
        said = plain.stats.prompt_tokens + plain.stats.new_tokens
        assert said - 1 <= cached < total <= said + 8, "all of prompt and reply; not the marks of the next turn"
        await pilot.press("escape")

        await pilot.press(*"/lora noise:1", "enter")
        await until(pilot, lambda: "noise" in app.observed.adapters)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: isinstance(app.screen, PickScreen) and any("cached" in choice.right for choice in app.screen._choices))
        assert any(choice.right.startswith("cached 0 of ") for choice in app.screen._choices), "other adapters, other keys and values"
        await pilot.press("escape", "alt+up", "r")
        await until(pilot, lambda: not app.dialogue.busy)
        assert app.dialogue.conversation.path()[-1].text != plain.text
        await pilot.press("escape", *"/lora noise off", "enter")
        await until(pilot, lambda: not app.observed.adapters)
        await pilot.press("alt+up")
        await pilot.pause()
        await pilot.press("r")
        await until(pilot, lambda: not app.dialogue.busy)
        again = app.dialogue.conversation.path()[-1]
        assert len(app.dialogue.conversation.siblings(again.id)) == 3
        assert again.stats.cached_tokens == plain.stats.prompt_tokens - 1, "what was computed without adapters is found again"
