"""Build the wheel, install it in a clean environment outside the checkout, and see that it brings everything along."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in the clean environment, far from the checkout. It shares this environment's torch and other packages through a .pth file,
# so that the check costs seconds; what it must find for itself is exltui.
PROBE = """
import pathlib, sys
import exltui, exltui.paths as paths
home = pathlib.Path(exltui.__file__).parent
assert home.is_relative_to(sys.prefix), f"exltui came from {home}, not from the wheel"
themes = sorted(path.stem for path in paths.themes_dir().glob("*.toml"))
assert {"dark", "light", "high-contrast"} <= set(themes), f"themes in the wheel: {themes}"
assert paths.themes_dir().is_relative_to(home), f"themes came from {paths.themes_dir()}"
for pattern in ("app/**/*.tcss", "csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/cpu/*.h"):
    assert list(home.glob(pattern)), f"no {pattern} in the wheel"
styles, sources = list(home.rglob("*.tcss")), list((home / "csrc").rglob("*.*"))
print(f"wheel: {len(themes)} themes, {len(styles)} styles, {len(sources)} sources")
"""


def run(*command: str | Path, cwd: Path) -> None:
    # PYTHONPATH and the checkout's folder would hide a file that is missing from the wheel.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        site = Path(subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip())
        wheel = next(folder.glob("exltui-*.whl"))
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=folder)
        (site / "shared.pth").write_text(
            subprocess.check_output([sys.executable, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
        )
        run(python, "-c", PROBE, cwd=folder)
        run(python, "-m", "exltui", "--version", cwd=folder)


if __name__ == "__main__":
    main()
