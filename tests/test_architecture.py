"""The floors, the import cycles and the size budgets of docs/architecture.md, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "exltui"

# The longest matching prefix gives a module's floor; a module imports its own floor and those below.
FLOORS = {
    "exltui": 5,  # the package itself: a lazy door to the Python API
    "exltui.protocol": 0,
    "exltui.meter": 0,
    "exltui.wire": 0,
    "exltui.errors": 0,
    "exltui.paths": 0,
    "exltui.sampling": 0,
    "exltui.text": 0,
    "exltui.checkpoint": 0,
    "exltui.adapter": 0,
    "exltui.tokenizer": 0,
    "exltui.engine.ops": 1,
    "exltui.engine.model": 2,
    "exltui.engine.run": 3,
    "exltui.engine.generate": 4,
    "exltui.engine.convert": 4,
    "exltui.engine.evaluate": 4,
    "exltui.engine": 5,
    "exltui.client": 5,
    "exltui.settings": 6,
    "exltui.models": 6,
    "exltui.chat": 6,
    "exltui.cli": 6,
    "exltui.__main__": 7,
    "exltui.app": 7,
}
# What may start the floor above from within a function: the command line opens the app.
DOORS = {("exltui.cli", "exltui.app")}
# Third-party packages that a part must never import, not even within a function.
FORBIDDEN = {
    "exltui.app": {"torch", "transformers"},
    "exltui.chat": {"torch", "textual", "transformers"},
    "exltui.models": {"torch", "textual", "transformers"},
    "exltui.settings": {"torch", "textual"},
    "exltui.protocol": {"torch", "textual"},
    "exltui.sampling": {"torch", "textual"},
    "exltui.checkpoint": {"torch", "textual"},
    "exltui.tokenizer": {"torch", "textual", "transformers"},
    "exltui.engine": {"textual", "rich", "transformers"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def floor(name: str) -> int:
    prefix = name
    while prefix not in FLOORS:
        prefix = prefix.rpartition(".")[0]
    return FLOORS[prefix]


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Every module that ``path`` imports, dotted; of exltui's own, as far down as the name leads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _top_level(tree) if top_level else ast.walk(tree)
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base for alias in node.names)
    return found


def _top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import, without those under ``if TYPE_CHECKING``."""
    found: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        found.extend(inner for inner in ast.walk(node) if isinstance(inner, ast.stmt) and isinstance(node, (ast.If, ast.Try)))
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_lower_floors(path: Path) -> None:
    name = module_name(path)
    above = {
        other
        for other in imports(path)
        if other.startswith("exltui")
        and floor(other) > floor(name)
        and not any(name.startswith(a) and other.startswith(b) for a, b in DOORS)
    }
    assert not above, f"{name} (floor {floor(name)}) imports {sorted(above)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_part_stays_free_of_what_it_must_not_know(path: Path) -> None:
    name = module_name(path)
    banned = set().union(*(packages for prefix, packages in FORBIDDEN.items() if name == prefix or name.startswith(prefix + ".")))
    met = {other.partition(".")[0] for other in imports(path)} & banned
    assert not met, f"{name} imports {sorted(met)}"
    if name.startswith("exltui.app"):
        assert not any(other.startswith("exltui.engine") for other in imports(path)), f"{name} reaches into the engine"


def test_there_are_no_import_cycles() -> None:
    graph = {name: {other for other in imports(path, top_level=True) if other in NAMES and other != name} for name, path in NAMES.items()}
    state: dict[str, int] = {}
    trail: list[str] = []

    def visit(name: str) -> None:
        state[name] = 1
        trail.append(name)
        for other in sorted(graph[name]):
            assert state.get(other) != 1, "cycle: " + " -> ".join([*trail[trail.index(other) :], other])
            if other not in state:
                visit(other)
        trail.pop()
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name)


@pytest.mark.parametrize(
    "module", ["exltui", "exltui.cli", "exltui.app", "exltui.chat", "exltui.models", "exltui.client", "exltui.settings", "exltui.app.start"]
)
def test_torch_and_numpy_are_not_imported_at_start(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0, f"importing {module} imports one of them"


SOURCES = [path for suffix in ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh") for path in PACKAGE.rglob(suffix)]


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_at_most_500_lines(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines"


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_function_has_at_most_60_lines_and_8_arguments(path: Path) -> None:
    for function in functions(path):
        where = f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= 60, f"{where} has {lines} lines"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = len([a for a in arguments if a.arg not in ("self", "cls")])
        assert count <= 8, f"{where} takes {count} arguments"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_printing_and_the_environment_have_one_place(path: Path) -> None:
    name = module_name(path)
    source = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func.id for node in ast.walk(source) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if not name.startswith("exltui.cli"):
        assert "print" not in calls, f"{name} prints"
    if name != "exltui.paths":
        reads = {ast.unparse(node) for node in ast.walk(source) if isinstance(node, ast.Attribute)} & {"os.environ", "os.getenv"}
        assert not reads, f"{name} reads the environment; use exltui.paths"


def test_there_is_at_least_half_as_much_test_as_code() -> None:
    def count(paths: list[Path]) -> int:
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)

    code, tests = count(MODULES), count(sorted((ROOT / "tests").rglob("*.py")))
    assert tests >= code / 2, f"{tests} lines of tests for {code} of code"
