"""How many threads compute, and that nobody else's threads spin beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exltui.engine.cores import physical_cores
from exltui.engine.session import open_session, use_threads
from exltui.protocol import JobSpec, LoadOptions, Sampling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")


def topology(folder: Path, siblings: list[str]) -> Path:
    for index, text in enumerate(siblings):
        (folder / f"cpu{index}" / "topology").mkdir(parents=True)
        (folder / f"cpu{index}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("allowed", "siblings", "cores"),
    [
        ({0, 1, 2, 3}, ["0-1", "0-1", "2-3", "2-3"], 2),  # hyperthreads beside each other
        ({0, 1, 2, 3}, ["0,2", "1,3", "0,2", "1,3"], 2),  # and far apart
        ({1, 3}, ["0,2", "1,3", "0,2", "1,3"], 1),  # a process that is bound to one core
        ({0, 1, 2}, ["0", "1", "2"], 3),
        ({0, 1, 2}, [], 3),  # nothing is known
    ],
)
def test_hyperthreads_of_a_core_count_once(
    allowed: set[int], siblings: list[str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed)
    assert physical_cores(topology(tmp_path, siblings)) == cores


@pytest.fixture
def as_before() -> Iterator[None]:
    yield
    use_threads(None)


def cpu_seconds() -> dict[str, float]:
    """By thread of this process."""
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("as_before")
def test_only_the_pool_computes_while_a_model_decodes(threads: int, starter_model: Path) -> None:
    """torch has a pool of its own, whose threads spin for a while after each use: none may do so beside ours."""
    options = LoadOptions(device="cpu", threads=threads, length=512)
    session = open_session(starter_model, options, lambda *_: None, lambda: False)
    assert torch.get_num_threads() == threads
    session.generator.submit(JobSpec("j", prompt_ids=tuple(range(40)), max_new_tokens=80, sampling=Sampling(seed=1), stop_token_ids=()))
    for _ in range(20):
        session.generator.advance()
    before = cpu_seconds()
    while session.generator.job_ids:
        session.generator.advance()
    spent = {task: seconds - before.get(task, 0.0) for task, seconds in cpu_seconds().items()}
    assert len([seconds for seconds in spent.values() if seconds > 0.02 * sum(spent.values())]) <= threads
