"""Build wheel and sdist, install the wheel into an empty environment, and try it there.

    python .ci/release.py build/release

The environment sees the packages that this Python has installed, through a line in a .pth file,
but neither this checkout nor an editable installation of it: nothing is downloaded, and a file
that is missing from the wheel is missing there. Writes report.json beside the wheel.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SITE_PACKAGES = Path(torch.__file__).resolve().parents[1]
LARGEST_WHEEL = 16e6
COMPARE = ("compare", "--recipe", "tiny", "--epochs", "1", "--output", "compare", "--models")
TWO = ("deformable-detr", "deformable-detr-two-stage")


def main() -> None:
    """Build, install, try, report."""
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report: dict[str, float] = {}
    wheel = build(folder / "dist", report)
    python = empty_environment(folder / "venv")
    bin_folder = python.parent

    started = time.perf_counter()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    report["seconds_to_install"] = round(time.perf_counter() - started, 1)
    work = folder / "work"
    work.mkdir()
    shutil.copy(ROOT / "examples" / "street.jpg", work)
    found = json.loads(run(bin_folder / "detrlab", "predict", "street.jpg", "--json", cwd=work))
    assert sum(each["category_id"] == 1 and each["score"] > 0.5 for each in found) >= 3, found
    report["seconds_from_pip_install_to_first_detection"] = round(time.perf_counter() - started, 1)

    where = run(python, "-c", "import detrlab; print(detrlab.__file__)", cwd=work).strip()
    assert Path(where).is_relative_to(folder / "venv"), where
    run(*pip, "check")
    run(python, "-c", SERVE, cwd=work)
    started = time.perf_counter()
    run(bin_folder / "detrlab", *COMPARE, *TWO, cwd=work)
    report["seconds_to_compare"] = round(time.perf_counter() - started, 1)
    assert (work / "compare" / "report.html").stat().st_size > 50_000

    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


SERVE = """
import detrlab
from detrlab.serve.app import create_app
paths = {route.path for route in create_app(detrlab.load("deimv2-femto"), "femto").routes}
assert {"/", "/page.js", "/predict", "/explain"} <= paths, paths
"""


def build(output: Path, report: dict[str, float]) -> Path:
    """Wheel and sdist, the wheel made from the sdist; returns the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ROOT)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    report["wheel_megabytes"] = round(wheel.stat().st_size / 1e6, 2)
    report["sdist_megabytes"] = round(sdist.stat().st_size / 1e6, 2)
    assert wheel.stat().st_size < LARGEST_WHEEL, report
    return wheel


def empty_environment(folder: Path) -> Path:
    """A new environment; returns its Python."""
    venv.create(folder, with_pip=False)  # its own pip and setuptools would hide the newer ones
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    (Path(purelib) / "installed-here.pth").write_text(f"{SITE_PACKAGES}\n")
    return python


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command that knows nothing of this checkout; its output is shown when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
