"""The committed performance page and the scripts behind it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def script(name):
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_measurements_say():
    command = [sys.executable, "benchmarks/performance_tables.py"]
    result = subprocess.run([*command, "--check"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}: {' '.join(command)}"


def test_exponents_of_growth():
    rows = [{"tokens": n, "ms": {"median": 3.0 * n**1.5}, "mb": 7.0 * n} for n in (10, 20, 80)]
    exponent = script("scaling").exponent
    assert exponent(rows, "tokens", "ms") == pytest.approx(1.5)
    assert exponent(rows, "tokens", "mb") == pytest.approx(1)


def test_tokens_are_counted_as_the_neck_makes_them():
    scaling = script("scaling")
    assert scaling.tokens(640, "detr") == 400
    assert scaling.tokens(640, "deformable-detr") == 80 * 80 + 40 * 40 + 20 * 20 + 10 * 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::addmm", "matrix products"),
        ("detrlab::deformable_backward", "deformable attention"),
        ("_AddDropoutBackward", "dropout (with its ReLU or sum)"),
        ("aten::add_", "sums and products of elements"),
        ("aten::mul", "sums and products of elements"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::topk", "everything else in PyTorch"),
    ],
)
def test_operators_are_sorted_by_what_they_do(name, kind):
    assert script("step_profile").kind_of(name) == kind
