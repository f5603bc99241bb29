"""What ``exltui doctor`` looks at. Each check says what it found, and if that is wrong, the fix."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import exltui
from exltui import paths
from exltui.errors import BuildError, SettingsError
from exltui.models.catalog import find_models
from exltui.settings import read_settings

Progress = Callable[[int, int], None]
PACKAGES = ("numpy", "safetensors", "tokenizers", "llguidance", "textual", "jinja2", "huggingface_hub", "gguf", "tomlkit")
VARIABLES = ("CXX", "TORCH_CUDA_ARCH_LIST", "EXLTUI_ISA", "HF_ENDPOINT", "HF_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
MIN_FREE = 2_000_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``state``: "ok", "slow" (works, but not as well as it could) or "wrong"."""

    check: str
    state: str
    found: str
    fix: str = ""


def examine(folders: Sequence[Path], progress: Progress) -> Iterator[Finding]:
    """All findings, as they are made: building the extension takes a while, and ``progress`` gets its (files done, files in all)."""
    yield Finding("exltui", "ok", f"{exltui.__version__}, {paths.package_dir()}")
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}")
    yield from _packages()
    yield _settings()
    yield from _torch()
    yield _compiler()
    yield from _extensions(progress)
    yield _terminal()
    yield from _models(folders)
    yield _disk()
    yield Finding("log", "ok", f"{paths.log_file()}{'' if paths.log_file().exists() else ' (nothing logged yet)'}")
    named = [f"{name}={value}" for name in VARIABLES if (value := paths.environment(name))]
    yield Finding("environment", "ok", ", ".join(named) or "nothing is set that changes exltui")


def _packages() -> Iterator[Finding]:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", "ok", ", ".join(versions))
    if missing:
        yield Finding("packages", "wrong", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def _settings() -> Finding:
    file = paths.settings_file()
    try:
        read_settings(file)
    except SettingsError as error:
        return Finding("settings", "wrong", str(error), error.hint)
    return Finding("settings", "ok", f"{file}{'' if file.exists() else ' (not there: the defaults are used)'}")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "wrong", f"cannot be imported: {error}", "pip install torch")
        return
    backend = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU build"
    yield Finding("torch", "ok", f"{torch.__version__}, {backend}, {torch.get_num_threads()} CPU threads")
    count = torch.cuda.device_count()
    for i in range(count):
        facts = torch.cuda.get_device_properties(i)
        yield Finding(f"cuda:{i}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute {facts.major}.{facts.minor}")
    nvidia, amd = shutil.which("nvidia-smi"), Path("/dev/kfd").exists()
    if count == 0 and (nvidia or amd):
        fix = "install the torch build for this GPU" if backend == "CPU build" else "the driver may be older than torch's CUDA or ROCm"
        yield Finding("gpu", "slow", "there is a GPU driver, but torch sees no GPU", fix)
    elif count == 0:
        yield Finding("gpu", "ok", "none; models run on the CPU")


def _compiler() -> Finding:
    from exltui.engine.ops import build

    found = build.compiler()
    if found is None:
        return Finding(
            "compiler", "slow", "no C++ compiler", "on Debian and Ubuntu: sudo apt install g++; on Fedora: sudo dnf install gcc-c++"
        )
    return Finding("compiler", "ok", found)


def _extensions(progress: Progress) -> Iterator[Finding]:
    """Build (or find) the extension of each device type and load it."""
    import torch

    from exltui.engine.ops import native
    from exltui.engine.ops.table import OPS

    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            native.register(kind, progress)
        except BuildError as error:
            yield Finding(f"{kind} kernels", "slow", f"{error}; torch's own functions run instead", error.hint)
        else:
            rows = sum(kind in op.impls for op in OPS.values())
            yield Finding(f"{kind} kernels", "ok", f"{rows} of {len(OPS)} operations{_instructions(kind)}, in {paths.build_dir()}")


def _instructions(kind: str) -> str:
    """Which vector instructions the CPU kernels use."""
    if kind != "cpu":
        return ""
    from exltui.engine.ops import cpu

    return f", {cpu.configure()}"


def _terminal() -> Finding:
    if not sys.stdout.isatty():
        return Finding("terminal", "ok", "none: the app needs one, the other commands do not")
    width, height = shutil.get_terminal_size()
    found = f"{width}x{height}, TERM={paths.environment('TERM') or 'not set'}, {sys.stdout.encoding}"
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        return Finding("terminal", "slow", found, "set a UTF-8 locale, for example LANG=C.UTF-8")
    if width < 80 or height < 24:
        return Finding("terminal", "slow", found, "the app is made for 80x24 or more")
    return Finding("terminal", "ok", found)


def _models(folders: Sequence[Path]) -> Iterator[Finding]:
    models = find_models(folders)
    where = ", ".join(f"{folder}{'' if folder.is_dir() else ' (not there)'}" for folder in folders)
    if not models:
        yield Finding("models", "slow", f"none in {where}", "exltui models get smollm2-135m fetches a small one")
        return
    yield Finding("models", "ok", f"{sum(model.problem is None for model in models)} in {where}")
    for model in models:
        if model.problem:
            yield Finding("models", "wrong", model.problem, f"exltui models rm {model.name} removes it; then get it again")


def _disk() -> Finding:
    """Room for models, and whether the data folder can be written."""
    place = paths.models_dir()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free for {paths.models_dir()}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "wrong", f"{place} cannot be written", "change its owner or permissions, or set XDG_DATA_HOME")
    if free < MIN_FREE:
        return Finding("disk", "slow", found, "make room: models take from 0.3 to many GB")
    return Finding("disk", "ok", found)
