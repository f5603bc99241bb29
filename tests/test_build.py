"""Building the native extension: what is compiled when, what is said when it cannot be, and that nothing half-made is left."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exltui import paths
from exltui.engine.ops import OPS, bind, build, native
from exltui.errors import BuildError

ROOT = Path(__file__).resolve().parent.parent
SOURCE = 'extern "C" int exltui_test_answer() { return 42; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny extension in place of the real one, in folders of its own; one has a space in its name."""
    csrc = tmp_path / "c sources"
    (csrc / "cpu").mkdir(parents=True)
    (csrc / "bind.cpp").write_text(SOURCE)
    (csrc / "cpu" / "more.cpp").write_text('#include "more.h"\nint more() { return MORE; }\n')
    (csrc / "cpu" / "more.h").write_text("#define MORE 1\n")
    monkeypatch.setattr(paths, "csrc_dir", lambda: csrc)
    monkeypatch.setattr(paths, "build_dir", lambda: tmp_path / "built")
    return csrc


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been bound in this process."""
    monkeypatch.setattr(native, "_outcomes", {})
    for op in OPS.values():
        monkeypatch.setattr(op, "impls", {})


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "built").glob("*/*"))


def test_every_file_is_compiled_once_and_the_result_is_kept(sources: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    build.load("cpu", lambda done, total: steps.append((done, total)))
    assert steps[0] == (0, 3) and steps[-1] == (3, 3) and [done for done, _ in steps] == sorted(done for done, _ in steps)
    (library,) = built(tmp_path)
    assert library.name == "exltui_cpu.so"
    steps.clear()
    build.load("cpu", lambda done, total: steps.append((done, total)))
    assert steps == [] and built(tmp_path) == [library]


def test_another_checkout_of_the_same_sources_is_the_same_extension(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load("cpu")
    shutil.copytree(sources, tmp_path / "elsewhere")
    monkeypatch.setattr(paths, "csrc_dir", lambda: tmp_path / "elsewhere")
    build.load("cpu")
    assert len(built(tmp_path)) == 1


def test_a_changed_header_is_another_extension(sources: Path, tmp_path: Path) -> None:
    build.load("cpu")
    (sources / "cpu" / "more.h").write_text("#define MORE 2\n")
    build.load("cpu")
    assert len(built(tmp_path)) == 2


def test_a_compile_error_is_said_in_one_line_and_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    (sources / "cpu" / "more.cpp").write_text("int more( { return 1; }\n")
    with pytest.raises(BuildError) as caught:
        build.load("cpu")
    assert "does not compile" in str(caught.value) and "more.cpp" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.hint and built(tmp_path) == []


def test_a_library_that_does_not_load_is_named(sources: Path, tmp_path: Path) -> None:
    (sources / "cpu" / "more.cpp").write_text("extern int nowhere(); int more() { return nowhere(); }\n")
    with pytest.raises(BuildError) as caught:
        build.load("cpu")
    assert "cannot be loaded" in str(caught.value) and str(built(tmp_path)[0].parent) in caught.value.hint


def test_a_folder_that_cannot_be_written_is_named(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "built").write_text("a file where the folder should be")
    with pytest.raises(BuildError, match="cannot be written"):
        build.load("cpu")


@pytest.mark.parametrize("missing", ["compiler", "_ninja"])
def test_without_tools_the_references_run_and_the_fix_is_said(
    missing: str, sources: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    monkeypatch.setattr(build, missing, lambda: tries.append(missing))  # None: there is none
    assert "install" in build.problem("cpu")
    tries.clear()
    ops = bind("cpu")
    assert not ops.native and all(getattr(ops, name) is op.reference for name, op in OPS.items())
    with pytest.raises(BuildError) as caught:
        native.register("cpu")
    assert "install" in caught.value.hint
    assert len(tries) == 1  # what failed is not tried again in this process


def test_cxx_names_another_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    assert build.compiler() == sys.executable
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert build.compiler() != "/nowhere/c++"


@pytest.mark.parametrize(("stated", "names"), [("9.0", ["90"]), ("8.0;8.6+PTX", ["80", "86"]), ("9.0a 10.0", ["90a", "100"])])
def test_stated_gpu_architectures_are_compiled_for(stated: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", stated)
    assert build.cuda_architectures() == names


def test_without_a_statement_the_gpus_here_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 6), (9, 0)][index])
    assert build.cuda_architectures() == ["86", "90a"]


@pytest.mark.parametrize(
    ("release", "codes", "stated", "cuda", "words"),
    [
        ("release 13.0, V13.0.88", "sm_75 sm_90 sm_120", "9.0a", "13.0", ""),
        ("release 11.4, V11.4.1", "sm_70 sm_80 sm_86", "9.0a", "13.0", "cannot compile for sm_90a: it is too old"),
        ("release 13.0, V13.0.88", "sm_75 sm_90", "7.0", "13.0", "cannot compile for sm_70"),
        ("release 12.8, V12.8.93", "sm_70 sm_90", "9.0", "13.0", "nvcc 12.8 .* does not fit torch, which is built with CUDA 13.0"),
        ("an error", "", "9.0", None, "does not say which release"),
    ],
)
def test_a_cuda_compiler_that_will_not_do_is_named(
    release: str, codes: str, stated: str, cuda: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{release}" || echo "{codes}"\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(build, "cuda_compiler", lambda: str(nvcc))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(build.cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(paths, "build_dir", lambda: tmp_path / "built")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", stated)
    if not words:
        assert build.problem("cuda") == ""
        return
    assert re.search(words, build.problem("cuda")) and "install the CUDA toolkit" in build.problem("cuda")
    with pytest.raises(BuildError, match=words):
        build.load("cuda")


def test_a_machine_without_a_cuda_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name == "nvcc" else f"/usr/bin/{name}")
    assert "no CUDA compiler (nvcc) was found; install the CUDA toolkit" in build.problem("cuda")


def test_importing_the_table_builds_nothing(tmp_path: Path) -> None:
    code = "import exltui.engine.ops, sys; sys.exit('exltui.engine.ops.cpu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=paths.environment_copy(XDG_CACHE_HOME=str(tmp_path)), check=False)
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []


def test_only_the_bind_files_know_torch() -> None:
    csrc = paths.csrc_dir()
    kernels = [path for folder in ("cpu", "cuda") for path in (csrc / folder).iterdir()]
    assert len(kernels) > 8
    for path in kernels:
        includes = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#include")]
        assert not any("torch" in line or "ATen" in line or "c10" in line for line in includes), path.name
