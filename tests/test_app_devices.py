"""The devices pane: memory by owner, the page table, where the time of a step goes, what a reply took."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from app_stage import Speaker, Stage
from toy import toy_generator

from exltui import protocol
from exltui.app.observed import JobFigures
from exltui.app.panes.devices import device_lines, job_lines, page_strip, step_lines
from exltui.app.screens.loader_lines import layer_bits
from exltui.engine.meters import held_memory
from exltui.engine.run import pages
from exltui.engine.run.stopwatch import Stopwatch
from exltui.meter import DeviceMeter, Meter, StepTimes
from exltui.protocol import JobSpec, Sampling, Stats, from_json, to_json

GPU = DeviceMeter(
    "NVIDIA H200", "cuda", 143_000_000_000, 20_000_000_000, 4_100_000_000, 2_300_000_000, 600_000_000, 62.0, 61.0, 410.0
)  # fmt: skip
STEP = StepTimes(40, 0.0006, 0.0210, 0.0004)


def plain(lines) -> list[str]:
    return [line.plain.rstrip() for line in lines]


def test_a_gpu_shows_who_has_its_memory_and_how_it_is():
    lines = plain(device_lines(0, GPU, [10.0, 62.0], 44))
    assert lines[0] == "0 NVIDIA H200"
    assert lines[2].startswith("20.0 / 143 GB")
    assert lines[3] == "w 4.1  c 2.3  b 0.60  o 13.0 GB", "others: what is used and not this program's"
    assert lines[4].startswith(" 62% 61°C 410 W")
    narrow = plain(device_lines(0, GPU, [], 26))
    assert narrow[3:5] == ["w 4.1  c 2.3", "b 0.60  o 13.0 GB"]
    assert all(len(line) <= 26 for line in narrow)


def test_what_the_driver_does_not_tell_is_a_dash():
    lines = plain(device_lines(1, DeviceMeter("GPU", "rocm"), [], 30))
    assert lines[2].startswith("– / – GB")
    assert lines[3] == "w –  c –  o – GB"
    assert lines[-1].strip() == "–%"


@pytest.mark.parametrize(("page_map", "width", "wanted"), [(".pfus", 5, "·▁▄▇█"), ("ff..", 6, "▄▄··  "), ("....u...ffff", 3, "·▇▄")])
def test_the_page_table_is_a_strip_of_what_is_busiest(page_map, width, wanted):
    assert page_strip(page_map, width).plain == wanted


def test_a_step_is_told_by_its_parts():
    lines = plain(step_lines(STEP, 26))
    assert lines[0].endswith("22.00 ms · 40/s")
    assert [line.split() for line in lines[2:]] == [["model", "21.00", "ms"], ["sampling", "0.40", "ms"], ["host", "0.60", "ms"]]
    assert step_lines(None, 26) == []
    waits = StepTimes(40, 0.0210, 0.0006, 0.0004)
    assert "waits for the processor" in plain(step_lines(waits, 40, gpu=True))[-1]
    assert len(step_lines(waits, 40)) == len(step_lines(STEP, 40, gpu=True)) == len(lines)


def test_a_reply_tells_its_speeds_and_how_many_drafts_held():
    stats = Stats("stop_token", 252, 36, 40, 0.5, 2.0, 1, accepted_drafts=31, rejected_drafts=19)
    job = JobFigures(10.0, 252, 252, 36, 40, 10.25, stats)
    lines = dict(line.strip().rsplit("  ", 1) for line in plain(job_lines(job, 40))[1:])
    assert {name.strip(): value.strip() for name, value in lines.items()} == {
        "first token": "250 ms",
        "prefill": "432/s",
        "decode": "20.0/s",
        "cached": "36 of 252",
        "drafts": "62% of 50 held",
    }


async def test_the_pane_says_more_with_the_focus():
    stage = Stage(client=Speaker(["The Moon pulls."]))
    async with stage.app.run_test(size=(160, 45)) as pilot:
        await stage.load(pilot)
        await stage.ask(pilot, "Why?")
        stage.client._events.append(Meter((GPU, replace(GPU, weights=None)), 40.0, None, 24, 512, 2, 8, "uu.f...p", STEP))
        stage.app.pump()
        await pilot.pause()
        text = stage.app.main.devices.render().plain
        assert "NVIDIA H200" in text and "1 NVIDIA H200" in text
        assert "▇▇·▄···▁" in text
        assert "a step" not in text
        await pilot.press("ctrl+d")
        await stage.settle(pilot)
        text = stage.app.main.devices.render().plain
        assert "21.00 ms" in text
        assert "first token" in text
        assert "8 of 20" in text


def test_the_engine_tells_its_pages_and_the_parts_of_its_steps():
    generator = toy_generator(6)
    generator.submit(JobSpec("a", prompt_ids=tuple(range(1, 9)), sampling=Sampling(temperature=0.0), max_new_tokens=4, min_new_tokens=4))
    generator.advance()
    assert generator.table.map().count("u") == 1
    started = time.perf_counter()
    while generator.busy:
        generator.advance()
    assert generator.table.map().replace("p", "").replace("f", "") == "." * (6 - 1), "what was computed is remembered"
    step = generator.watch.take()
    assert step.steps >= 4
    assert min(step.host, step.model, step.sampling) > 0
    assert step.steps * (step.host + step.model + step.sampling) < time.perf_counter() - started + 1
    assert generator.watch.take() is None


def test_the_stopwatch_splits_a_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("exltui.engine.run.stopwatch.time.perf_counter", lambda: now[0])
    watch = Stopwatch(torch.device("cpu"))
    for model in (3.0, 5.0):
        watch.begin()
        now[0] += 0.5
        with watch.model:
            now[0] += model
        with watch.sampling:
            now[0] += 0.25
        now[0] += 0.25
        watch.end()
    assert watch.take() == StepTimes(2, 0.75, 4.0, 0.25)


def test_pages_of_several_jobs_are_told_apart():
    table = pages.PageTable(4)
    first = table.take(pages.Reuse((), None), 2)
    assert table.map() == "uu.."
    table.filled(first[0], pages.ROOT, list(range(pages.PAGE)))
    table.take(pages.Reuse((first[0],), None), 1)
    assert table.map() == "su.."


def test_a_program_knows_what_it_holds():
    held = held_memory("cpu", 0)
    assert held is None or held > 1 << 20


def test_the_meter_survives_as_json():
    meter = Meter((GPU,), 40.0, None, 24, 512, 2, 8, "uu.f...p", STEP)
    assert from_json(to_json(meter)) == meter
    assert protocol.Meter is Meter


def test_the_bits_of_each_layer_are_a_line_of_bars():
    assert layer_bits([2.0, 4.0, 8.0]) == "2.0-8.0 ▃▅█"
    assert layer_bits([4.0] * 31 + [8.0]).endswith("▅▆"), "two layers share a bar"
