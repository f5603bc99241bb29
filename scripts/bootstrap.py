"""Make or refresh the virtual environment in .venv with everything that exltui needs. Needs only Python's standard library.

    python3 scripts/bootstrap.py            what the app needs
    python3 scripts/bootstrap.py --test     and what the tests need
    python3 scripts/bootstrap.py --dev      and what a developer needs (lint, types, wheel)
    python3 scripts/bootstrap.py --starter  and a first model, if there is none yet

It can be run again at any time: what is already there is kept, and a run that has nothing to do takes under a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "exltui-setup.json"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = {"app": "", "test": "[test]", "dev": "[dev]"}
LEVELS = list(EXTRAS)  # each holds the ones before it


class SetupError(Exception):
    """One sentence that says what is missing and what to do."""


def say(text: str) -> None:
    print(f"\033[1m› {text}\033[0m" if sys.stderr.isatty() else f"> {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, quiet: bool = False, attempt: bool = False) -> int:
    """The exit status of ``command``. Its output is shown unless it is ``quiet``, its errors only if it is no mere ``attempt``."""
    hidden = subprocess.DEVNULL
    outputs = {"stdout": hidden if quiet else None, "stderr": hidden if quiet or attempt else None}
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False, **outputs).returncode


def pip(*arguments: str, quiet: bool = False, attempt: bool = False) -> int:
    return run(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *arguments, quiet=quiet, attempt=attempt)


def pinned(package: str) -> str:
    """The version of ``package`` in constraints.txt."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition("==")
        if name.strip() == package:
            return rest.partition(";")[0].strip()
    raise SetupError(f"constraints.txt names no version of {package}; restore the file from git")


def fingerprint() -> str:
    """Changes when what has to be installed changes."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def installed_level(mark: str) -> int:
    """How much is installed already: an index into LEVELS, or -1."""
    if not (PYTHON.exists() and STAMP.exists()):
        return -1
    stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    return LEVELS.index(stamp["level"]) if stamp["fingerprint"] == mark else -1


def make_venv() -> None:
    if PYTHON.exists():
        return
    say(f"making .venv with Python {platform.python_version()}")
    if run(sys.executable, "-m", "venv", VENV) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError("Python could not make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv")


def gpu() -> str:
    """ "nvidia", "amd" or "" for none, as the drivers tell."""
    if shutil.which("nvidia-smi") and run("nvidia-smi", "-L", quiet=True) == 0:
        return "nvidia"
    return "amd" if Path("/dev/kfd").exists() else ""


def install_torch() -> None:
    """The build of the pinned torch that suits the machine.

    The default package on Linux is the CUDA build. The CPU build is taken from pip's configured sources if they have it, else
    through uv, which knows where torch's builds for each backend live; so is the build for AMD GPUs.
    """
    version, kind = pinned("torch"), gpu()
    if run(PYTHON, "-c", "import torch", quiet=True) == 0:
        return
    say(f"installing torch {version} ({'for the ' + kind + ' GPU' if kind else 'CPU build'}), the largest part")
    linux_nvidia = kind == "nvidia" and sys.platform == "linux"
    if not kind and pip(f"torch=={version}+cpu", "-c", str(CONSTRAINTS), attempt=True) == 0:
        return
    if not linux_nvidia and pip("-q", "uv", quiet=True) == 0:
        backend = "auto" if kind else "cpu"
        if run(BIN / "uv", "pip", "install", "--python", PYTHON, f"torch=={version}", f"--torch-backend={backend}") == 0:
            return
    if pip(f"torch=={version}", "-c", str(CONSTRAINTS)) != 0:
        raise SetupError(f"torch {version} could not be installed (pip's reason stands above); run the command again when that is mended")


def install(level: str) -> None:
    mark = fingerprint()
    if installed_level(mark) >= LEVELS.index(level):
        return
    started = time.monotonic()
    make_venv()
    install_torch()
    say(f"installing exltui and its packages{' for ' + level if level != 'app' else ''}")
    if pip("-q", "-c", str(CONSTRAINTS), "-e", f".{EXTRAS[level]}") != 0:
        raise SetupError("the packages could not be installed (pip's reason stands above); run the command again when that is mended")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
        say("no C++ compiler found: exltui will run, but slowly; on Debian and Ubuntu: sudo apt install g++")
    STAMP.write_text(json.dumps({"fingerprint": mark, "level": level}), encoding="utf-8")
    say(f"ready after {time.monotonic() - started:.0f} s")


def get_starter() -> None:
    """Fetch the starter model unless some model is there already."""
    listing = subprocess.run([str(PYTHON), "-m", "exltui", "models", "list", "--json"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode == 0 and json.loads(listing.stdout)["models"]:
        return
    say("getting the starter model, SmolLM2-135M-Instruct")
    if run(PYTHON, "-m", "exltui", "models", "get", "smollm2-135m") != 0:
        say("no starter model this time; the app offers it again")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--test", action="store_const", dest="level", const="test", default="app", help="also what the tests need")
    parser.add_argument("--dev", action="store_const", dest="level", const="dev", help="also lint, types and wheel tools")
    parser.add_argument("--starter", action="store_true", help="also a first model, if there is none")
    options = parser.parse_args()
    try:
        if sys.version_info < (3, 10):
            raise SetupError(f"exltui needs Python 3.10 or newer, not {platform.python_version()}; try: make chat PYTHON=python3.12")
        install(options.level)
        if options.starter:
            get_starter()
    except SetupError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bootstrap: stopped; run the command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
