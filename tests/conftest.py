"""What all tests share: a home of their own, and the starter model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
TEST_MODELS = ROOT / ".test-models"
STARTER = "smollm2-135m"


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settings, sessions and models of the person who runs the tests are out of reach; only the build cache is shared."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            patch.setenv(variable, str(home / variable.lower()))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TEXTUAL_ANIMATIONS", "none")
        yield home


@pytest.fixture(scope="session")
def starter_models_dir() -> Path:
    """A models folder that holds the starter model, fetched once through the project's own command and kept for the next run."""
    TEST_MODELS.mkdir(exist_ok=True)
    with FileLock(TEST_MODELS / ".lock"):
        if not (TEST_MODELS / STARTER / "config.json").exists():
            command = [sys.executable, "-m", "exltui", "models", "get", STARTER, "--models-dir", str(TEST_MODELS)]
            done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.fail(f"the starter model could not be fetched: {done.stderr[-2000:]}")
    return TEST_MODELS


@pytest.fixture(scope="session")
def starter_model(starter_models_dir: Path) -> Path:
    """The directory of SmolLM2-135M-Instruct, as ``exltui models get`` makes it."""
    return starter_models_dir / STARTER
