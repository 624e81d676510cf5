"""The house rules that a machine can check: who imports whom, and what no file may contain."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "detrlab"

# A room is a folder of the package, or a file that stands beside the folders. Beside the rooms
# listed it may import itself and packages from outside, unless FORBIDDEN_OUTSIDE says no.
# Imports inside functions count; imports for type checkers do not.
NETWORK = {"structures", "boxes", "scoring", "errors"}
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),  # detrlab/__init__.py: lazy names only
    "structures": set(),
    "boxes": set(),
    "errors": set(),
    "palette": set(),
    "files": {"errors"},
    "figures": {"files", "palette"},
    "scoring": {"structures"},
    "config": {"errors", "files"},
    "recipes": {"config", "errors"},
    "detections": {"boxes", "drawing"},
    "download": {"errors", "files"},
    "drawing": {"boxes", "palette", "errors"},
    "ops": {"structures", "errors"},
    "models": NETWORK | {"ops"},
    "losses": NETWORK,
    "presets": NETWORK | {"models", "losses", "config"},
    "data": {"structures", "boxes", "errors", "files", "config", "palette", "drawing", "download"},
    "evaluation": NETWORK
    | {"data", "files", "config", "detections", "palette", "drawing", "figures"},
    "checkpoints": NETWORK | {"config", "presets", "models", "files", "download"},
}
EVERYTHING = (
    "training", "images", "predicting", "api", "export", "explain", "compare", "benchmark",
    "report", "serve", "cli",
)  # fmt: skip
"""Rooms that join the others; they still form no circle."""

# What is started by name, and may print and exit.
PROGRAMS = ("cli", "__main__", "compare.runner")

# Packages that a room must not need, even inside a function.
FORBIDDEN_OUTSIDE: dict[str, set[str]] = {
    "errors": {"torch", "numpy"},
    "config": {"torch", "numpy"},
    "recipes": {"torch", "numpy"},
    "palette": {"torch", "numpy", "matplotlib"},
    "structures": {"timm", "numba"},
    "models": {"numba", "accelerate"},
}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(name: str) -> str:
    return name.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, wherever the statement stands, with TYPE_CHECKING ones left out.

    ``from detrlab.a import b`` counts as ``detrlab.a.b`` where that is a module.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(ast.Module(node.body, []))
    }
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("detrlab.") in MODULES else node.module)
    return found


def inside(path: Path) -> set[str]:
    """The package's own modules that a file imports, without the package's name."""
    own = {name for name in imports_of(path) if name.split(".")[0] == "detrlab"}
    return {name.removeprefix("detrlab").removeprefix(".") for name in own}


IMPORTS = {name: inside(path) - {name, ""} for name, path in MODULES.items()}


SCRIPTS = [
    path
    for folder in ("benchmarks", "docs", "examples")
    for path in (REPOSITORY / folder).glob("*.py")
]


DEFINED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.alias


@functools.cache
def names_in(name: str) -> set[str]:
    """The names that a module defines or imports."""
    nodes = list(ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))))
    stored = {
        each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    defined = {each.name for each in nodes if isinstance(each, DEFINED)}
    return stored | defined


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: path.stem)
def test_every_imported_name_exists(path):
    """Also inside functions, which no other test may call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "detrlab":
            known = names_in(node.module.removeprefix("detrlab").removeprefix("."))
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}".removeprefix("detrlab.") in MODULES
                assert is_module or alias.name in known, f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    room = room_of(name)
    rooms = {room_of(each) for each in IMPORTS[name]} - {room}
    if name == "__main__":
        assert rooms == {"cli"}
        return
    assert "cli" not in rooms, f"{name} imports the command line"
    if room not in EVERYTHING:
        assert room in MAY_IMPORT, f"{name} stands in no room: add its room to MAY_IMPORT"
        wrong = rooms - MAY_IMPORT[room]
        assert not wrong, f"detrlab.{name} imports {wrong}; {room!r} may import {MAY_IMPORT[room]}"


def test_every_listed_room_exists():
    rooms = {room_of(name) for name in MODULES}
    assert set(MAY_IMPORT) | set(EVERYTHING) <= rooms


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some circle of a graph, as the nodes along it; empty when there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := walk(after, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_between_rooms():
    graph: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        rooms = {room_of(each) for each in imported} - {room_of(name)}
        graph.setdefault(room_of(name), set()).update(rooms)
    assert not circle(graph)


def test_no_circle_between_files():
    assert not circle(IMPORTS)


@pytest.mark.parametrize("name", MODULES)
def test_packages_from_outside_stay_outside(name):
    used = {imported.split(".")[0] for imported in imports_of(MODULES[name])}
    assert not used & FORBIDDEN_OUTSIDE.get(room_of(name), set())


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_long(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name not in PROGRAMS and room_of(name) not in PROGRAMS]
)
def test_the_library_neither_prints_nor_exits(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.exit", "exit", "quit", "os._exit", "breakpoint"}
    assert not any(
        isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree)
    ), "a bare except hides Ctrl-C"


HEAVY = ("torch", "torchvision", "timm", "numba", "hotcoco", "matplotlib", "scipy", "accelerate")


@pytest.mark.parametrize("module", ["config", "recipes", "errors", "cli"])
def test_the_command_line_starts_without_torch(module):
    program = (
        f"import sys, detrlab.{module}\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert loaded == "", f"importing detrlab.{module} loads {loaded}"


def test_help_loads_nothing_heavy():
    program = (
        "import sys\n"
        "from detrlab.cli import main\n"
        "sys.argv = ['detrlab', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write('heavy:' + ','.join(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("heavy:")


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name]


# Absolute paths that only exist on somebody's own machine. The pattern does not match itself.
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:home|Users)/[\w.-]+/|(?<![\w./])/roo[t]/")


def test_no_file_mentions_somebodys_machine():
    mentions = []
    for path in tracked_files():
        if path.is_file():
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                if MACHINE_PATH.search(line):
                    mentions.append(f"{path.relative_to(REPOSITORY)}:{number}")
    assert not mentions


def test_no_data_set_is_committed():
    large = [
        path.relative_to(REPOSITORY)
        for path in tracked_files()
        if path.is_file() and path.stat().st_size > 12_000_000
    ]
    assert not large
