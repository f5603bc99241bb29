"""Compiles the native extension of a device with ninja, once for each (torch, compiler flags, source), and loads it.

The sources lie in ``exltui/csrc``: ``bind*.cpp`` and ``cpu/*.cpp`` make the CPU extension, ``bind_cuda*.cpp`` and ``cuda/*.cu`` the GPU's.
Only the bind files know torch. The result is kept in the user's cache folder; a build takes well under a minute on two cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import cpp_extension

from exltui import paths
from exltui.errors import BuildError

Progress = Callable[[int, int], None]  # files done, files in all

COMPILERS = ("c++", "g++", "clang++")
STANDARD = "-std=c++20" if int(torch.__version__.split(".")[1]) >= 9 else "-std=c++17"
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
COMMON = ["-O3", "-fPIC", STANDARD, "-Wall", "-Wno-unknown-pragmas", "-fno-math-errno"]


@dataclass(frozen=True, slots=True)
class Extension:
    """What is compiled for one device type. ``commands`` maps a source's suffix to the command line before ``-c``."""

    name: str
    sources: tuple[Path, ...]
    commands: dict[str, list[str]]
    link: list[str]

    @property
    def fingerprint(self) -> str:
        """Changes with torch, Python, the flags, and every byte of its sources and of the headers beside them; not with where they lie."""
        commands = f"{self.commands} {self.link}".replace(str(paths.csrc_dir()), "")
        digest = hashlib.sha256(f"{torch.__version__} {sys.version_info[:2]} {commands}".encode())
        folders = {source.parent for source in self.sources}
        headers = [file for folder in folders for file in folder.iterdir() if file.suffix in (".h", ".cuh")]
        for path in sorted([*self.sources, *headers]):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def compiler() -> str | None:
    """The C++ compiler's path, or None. CXX names another one."""
    return next((found for name in (paths.environment("CXX"), *COMPILERS) if name and (found := shutil.which(name))), None)


def problem(device_type: str = "cpu") -> str:
    """Why the extension of ``device_type`` cannot be built, and what to do about it; "" if it can, or is there already."""
    try:
        extension = _extension(device_type)
        if _library(extension).exists():
            return ""
        if device_type == "cuda":
            _check_compiler(cuda_compiler(), cuda_architectures())
    except BuildError as error:
        return f"{error}; {error.hint}"
    return "" if _ninja() else "ninja is missing; pip install ninja"


def load(device_type: str, progress: Progress | None = None) -> None:
    """Load the extension of ``device_type``, building it first if need be. Raises BuildError."""
    extension = _extension(device_type)
    library = _library(extension)
    if not library.exists():
        if device_type == "cuda":
            _check_compiler(cuda_compiler(), cuda_architectures())
        _build(extension, library, progress or (lambda done, total: None))
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(f"the native extension cannot be loaded: {error}", f"remove {library.parent} and start again") from error


def _extension(device_type: str) -> Extension:
    if sys.platform == "win32":
        raise BuildError("the native extension is not built on Windows yet", "torch's own functions run instead, which is slower")
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler was found", "on Debian and Ubuntu: sudo apt install g++; on Fedora: sudo dnf install gcc-c++")
    nvcc = cuda_compiler() if device_type == "cuda" else ""  # before torch, which has no kind word for who lacks it
    csrc = paths.csrc_dir()
    torch_flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    torch_flags += [f"-isystem{path}" for path in cpp_extension.include_paths(device_type)]
    libraries = [path for path in cpp_extension.library_paths(device_type) if Path(path).is_dir()]
    link = [
        cxx,
        "-shared",
        *(f"-L{path}" for path in libraries),
        *(f"-Wl,-rpath,{path}" for path in libraries),
        "-lc10",
        "-ltorch_cpu",
        "-ltorch",
    ]
    plain = [cxx, *COMMON, f"-I{csrc}"]
    if paths.environment("EXLTUI_SANITIZE"):  # scripts/sanitize.sh
        plain += SANITIZERS
        link += SANITIZERS
    if device_type == "cpu":
        binds = sorted(path for path in csrc.glob("bind*.cpp") if not path.name.startswith("bind_cuda"))
        sources = (*binds, *sorted((csrc / "cpu").glob("*.cpp")))
        return Extension("exltui_cpu", sources, {".cpp": [*plain, *torch_flags]}, [*link, "-pthread"])
    sources = (*sorted(csrc.glob("bind_cuda*.cpp")), *sorted((csrc / "cuda").glob("*.cu")))
    commands = {
        ".cpp": [*plain, *torch_flags],
        ".cu": [
            nvcc,
            "-O3",
            "-std=c++17",
            "-Xcompiler",
            "-fPIC",
            f"-I{csrc}",
            *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in cuda_architectures()),
        ],
    }
    return Extension("exltui_cuda", sources, commands, [*link, "-lc10_cuda", "-ltorch_cuda", "-lcudart"])


def cuda_compiler() -> str:
    """The path of nvcc. Raises BuildError."""
    home = cpp_extension.CUDA_HOME
    found = shutil.which("nvcc") or (str(Path(home) / "bin" / "nvcc") if home and (Path(home) / "bin" / "nvcc").exists() else None)
    if found is None:
        raise BuildError("no CUDA compiler (nvcc) was found", "install the CUDA toolkit that matches torch.version.cuda")
    return found


def _check_compiler(nvcc: str, targets: list[str]) -> None:
    """Raise BuildError if ``nvcc`` is too old for ``targets``, or of another generation than torch's CUDA."""
    release = re.search(r"release (\d+)\.(\d+)", _output([nvcc, "--version"]))
    if release is None:
        raise BuildError(f"{nvcc} does not say which release it is", "install the CUDA toolkit again")
    version, wanted = f"{release[1]}.{release[2]}", torch.version.cuda
    hint = f"install the CUDA toolkit {wanted or '12 or later'}, and put its nvcc first on the PATH"
    known = re.findall(r"sm_(\w+)", _output([nvcc, "--list-gpu-code"]))
    for target in targets:
        if target.rstrip("af") not in known:
            raise BuildError(f"nvcc {version} ({nvcc}) cannot compile for sm_{target}: it is too old, or too new", hint)
    if wanted is not None and wanted.split(".")[0] != release[1]:
        raise BuildError(f"nvcc {version} ({nvcc}) does not fit torch, which is built with CUDA {wanted}", hint)


def _output(command: list[str]) -> str:
    """What ``command`` prints; "" where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cuda_architectures() -> list[str]:
    """What to compile for: TORCH_CUDA_ARCH_LIST, or the GPUs of this machine."""
    stated = re.findall(r"(\d+)\.(\d+)(a?)(\+PTX)?", paths.environment("TORCH_CUDA_ARCH_LIST"))
    if stated:
        return [f"{major}{minor}{a}" for major, minor, a, _ in stated]
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}" for major, minor in sorted(capabilities)]


def _library(extension: Extension) -> Path:
    return paths.build_dir() / f"{extension.name}-{extension.fingerprint}" / f"{extension.name}.so"


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"  # a virtual environment that was not activated
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


def _build(extension: Extension, library: Path, progress: Progress) -> None:
    """Compile in a folder aside and move the library into place, so that two programs that start at once do no harm."""
    ninja = _ninja()
    if ninja is None:
        raise BuildError("ninja was not found", "pip install ninja")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as name:
            folder = Path(name)
            (folder / "build.ninja").write_text(_ninja_file(extension), encoding="utf-8")
            _run_ninja(ninja, folder, len(extension.sources) + 1, progress)
            (folder / library.name).replace(library)
    except OSError as error:
        raise BuildError(f"the native extension cannot be written: {error}", f"check {paths.build_dir()}") from error
    finally:
        with contextlib.suppress(OSError):  # it holds the library, unless this failed
            library.parent.rmdir()


def _ninja_file(extension: Extension) -> str:
    lines, objects = ["ninja_required_version = 1.5"], []
    for suffix, command in extension.commands.items():
        lines += [f"rule compile_{suffix[1:]}", f"  command = {_shell(command)} -c $in -o $out"]
    lines += ["rule link", f"  command = {_shell(extension.link[:1])} $in {_shell(extension.link[1:])} -o $out"]
    for source in extension.sources:
        objects.append(f"{source.stem}_{source.suffix[1:]}.o")
        lines.append(f"build {objects[-1]}: compile_{source.suffix[1:]} {str(source).replace(' ', '$ ').replace(':', '$:')}")
    lines.append(f"build {extension.name}.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _shell(words: list[str]) -> str:
    """``words`` as ninja hands them to the shell; folders may have blanks in their names."""
    return shlex.join(words).replace("$", "$$")


def _run_ninja(ninja: str, folder: Path, steps: int, progress: Progress) -> None:
    progress(0, steps)
    environment = paths.environment_copy(NINJA_STATUS="[%f/%t] ")
    process = subprocess.Popen([ninja, "-v"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output: list[str] = []
    for line in process.stdout or ():
        output.append(line)
        if found := re.match(r"\[(\d+)/(\d+)\]", line):
            progress(int(found[1]), int(found[2]))
    if process.wait() != 0:
        errors = [line.strip() for line in output if "error:" in line] or [line.strip() for line in output[-3:]]
        raise BuildError(f"the native extension does not compile: {errors[0][:300]}", "please report it with the output of exltui doctor")
