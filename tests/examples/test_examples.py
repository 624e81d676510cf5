"""Every example runs as it is, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SAYS = {
    "predict": "person 0.9",
    "fine_tune": "objects in the first validation image",
    "compare": "report.html",
    "ladder": "deformable-detr-refine -> deformable-detr-two-stage",
    "explain": "explanation.json",
    "onnx_numpy": "person 0.9",
}
SHORTER = dict.fromkeys(("compare", "ladder"), ("--budget", "images=160"))
TRIED_ELSEWHERE = {"anchors"}  # tests/test_adding_a_variant.py


def test_all_are_tried_and_named():
    names = {path.stem for path in SCRIPTS}
    assert names == {*SAYS, *TRIED_ELSEWHERE}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}.py]({name}.py)" in listed for name in names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_it_runs(name, tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--output", "out", *SHORTER.get(name, ())],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert SAYS[name] in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
