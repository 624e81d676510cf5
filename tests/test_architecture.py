"""The house rules that a machine can check: who imports whom, and what no file may contain."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "detrlab"

# A module's place is the longest key that its dotted name starts with. Beside these places it
# may import itself, its own room, and packages from outside unless FORBIDDEN_OUTSIDE says no.
EVERYTHING = None
MAY_IMPORT: dict[str, set[str] | None] = {
    "": set(),  # detrlab/__init__.py: lazy names only, see EXCEPTIONS
    "structures": set(),
    "boxes": set(),
    "errors": set(),
    "files": {"errors"},
    "scoring": {"structures", "boxes"},
    "config": {"errors"},
    "presets": {"config", "errors"},
    "ops": {"structures", "errors"},
    "models": {"structures", "boxes", "scoring", "ops", "errors"},
    "models.build": {"structures", "boxes", "scoring", "ops", "errors", "config"},
    "models.init": {"structures", "boxes", "scoring", "ops", "errors", "config"},
    "training": {"structures", "boxes", "scoring", "errors", "files", "config"},
    "training.matcher": {"structures", "boxes", "scoring", "errors"},
    "training.criterion": {"structures", "boxes", "scoring", "errors"},
    "training.loop": EVERYTHING,
    "data": {"structures", "boxes", "errors", "files", "config"},
    "evaluation": {"structures", "boxes", "scoring", "data", "errors", "files"},
    "checkpoints": {"config", "presets", "models.build", "errors", "files"},
    "drawing": {"structures", "boxes", "errors"},
    "api": EVERYTHING,
    "compare": EVERYTHING,
    "benchmark": EVERYTHING,
    "explain": EVERYTHING,
    "report": EVERYTHING,
    "export": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": {"cli"},
}

# What is started by name, and may print and exit.
PROGRAMS = ("cli", "__main__", "compare.worker")

# (importing module, imported place): why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("structures", "drawing"): "Detections.plot imports its drawing only when it is called",
    ("evaluation.pictures", "drawing"): "the hardest images are shown with their boxes",
}

# Packages that a place must not need, even inside a function.
FORBIDDEN_OUTSIDE: dict[str, set[str]] = {
    "errors": {"torch", "numpy"},
    "config": {"torch", "numpy"},
    "presets": {"torch", "numpy"},
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


def place_of(name: str, places=MAY_IMPORT) -> str | None:
    """The longest place that ``name`` lies in; None when there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in places:
            return ".".join(parts[:length])
    return "" if name == "" and "" in places else None


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


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    place = place_of(name)
    assert place is not None, f"{name} stands in no room: add its room to MAY_IMPORT"
    allowed = MAY_IMPORT[place]
    room = name.split(".")[0]
    for imported in sorted(inside(MODULES[name])):
        target = place_of(imported)
        if imported == "" or imported.split(".")[0] == room or (name, target) in EXCEPTIONS:
            continue
        assert target != "cli" or name == "__main__", f"{name} imports the command line"
        if allowed is EVERYTHING:
            continue
        assert any(place_of(imported, {part: None}) is not None for part in allowed), (
            f"detrlab.{name} imports detrlab.{imported}; "
            f"{place or 'the package'} may import {', '.join(sorted(allowed)) or 'nothing'}"
        )


@pytest.mark.parametrize("name", MODULES)
def test_packages_from_outside_stay_outside(name):
    forbidden = set().union(
        *(gone for place, gone in FORBIDDEN_OUTSIDE.items() if place_of(name, {place: 0}))
    )
    used = {imported.split(".")[0] for imported in imports_of(MODULES[name])}
    assert not used & forbidden


def test_every_exception_is_needed():
    for (name, target), why in EXCEPTIONS.items():
        assert why
        assert target in {place_of(imported) for imported in inside(MODULES[name])}, (
            f"{name} no longer imports {target}: remove the exception"
        )


@pytest.mark.parametrize(
    "name", [name for name in MODULES if place_of(name, dict.fromkeys(PROGRAMS)) is None]
)
def test_the_library_neither_prints_nor_exits(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.exit", "exit", "quit", "os._exit", "breakpoint"}
    assert not any(
        isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree)
    ), "a bare except hides Ctrl-C"


HEAVY = ("torch", "torchvision", "timm", "numba", "hotcoco", "matplotlib", "scipy", "accelerate")


@pytest.mark.parametrize("module", ["config", "presets", "errors", "cli"])
def test_the_command_line_starts_without_torch(module):
    if module not in MODULES:
        pytest.skip(f"there is no detrlab.{module} yet")
    program = (
        f"import sys, detrlab.{module}\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert loaded == "", f"importing detrlab.{module} loads {loaded}"


def test_help_loads_nothing_heavy():
    if "cli" not in MODULES:
        pytest.skip("there is no detrlab.cli yet")
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
