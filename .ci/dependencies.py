"""Install the oldest or the newest packages that pyproject.toml allows, and run tests with them.

    python .ci/dependencies.py oldest build/dependencies
    python .ci/dependencies.py newest build/dependencies

Makes a new environment in the folder (several gigabytes: PyPI's torch brings CUDA), installs
detrlab with every direct dependency at its lower bound, or none held back, and runs a selection
of fast tests in it: data, operators, presets, a training, a comparison, checkpoints, commands.
Writes NAME.json: the versions, and how many tests passed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "hypothesis")
TESTS = (
    "tests/test_files.py", "tests/data/test_opening.py", "tests/data/test_hostile.py",
    "tests/data/test_transforms.py", "tests/ops/test_deformable.py", "tests/ops/test_cpu.py",
    "tests/losses", "tests/models/test_every_preset.py", "tests/training/test_loop.py",
    "tests/training/test_optim.py", "tests/compare/test_study.py", "tests/compare/test_tables.py",
    "tests/checkpoints/test_native.py", "tests/checkpoints/test_pth.py",
    "tests/evaluation/test_analysis.py", "tests/cli/test_cli.py", "tests/report/test_page.py",
)  # fmt: skip


def main() -> int:
    """Install, run, report; the exit code is pytest's."""
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if name not in ("oldest", "newest"):
        sys.exit(__doc__)
    started = time.perf_counter()
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*declared["dependencies"], *declared["optional-dependencies"]["laptop"]]
    if name == "oldest":
        wanted = [re.sub(r">=([^,]+).*", r"==\1", each) for each in wanted]
    extra = declared["optional-dependencies"]["dev"]
    tools = [each for each in extra if re.split(r"[><=]", each)[0] in TOOLS]
    run(python, "-m", "pip", "install", "--quiet", *wanted, *tools)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT)
    installed = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *TESTS]
    tests = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(tests.stdout[-8000:], tests.stderr[-2000:])
    listed = run(python, "-m", "pip", "list", "--format", "json")
    names = {re.split(r"[><=]", each)[0].lower().replace("_", "-") for each in wanted}
    versions = {
        each["name"]: each["version"] for each in json.loads(listed)
        if each["name"].lower().replace("_", "-") in names
    }  # fmt: skip
    report = {
        "python": sys.version.split()[0],
        "tests": tests.stdout.strip().splitlines()[-1:],
        "passed": tests.returncode == 0,
        "minutes_to_install": round((installed - started) / 60, 1),
        "minutes_of_tests": round((time.perf_counter() - installed) / 60, 1),
        "versions": versions,
    }
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return tests.returncode


def run(*command: object) -> str:
    """Run a command; its output is shown when it fails."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
