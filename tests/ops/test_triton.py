"""The Triton kernels, interpreted on a CPU: the same code, one program after another."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

BODY = """
    import sys
    import torch
    sys.path.insert(0, {tests!r})
    from ops_cases import border_locations, make_case
    from detrlab.ops import reference, triton_kernels

    def compare(values, shapes, locations, weights, seed=0):
        inputs = [each.clone().requires_grad_() for each in (values, locations, weights)]
        wanted = reference.sample(inputs[0], shapes, inputs[1], inputs[2])
        grad = torch.randn(wanted.shape, dtype=wanted.dtype,
                           generator=torch.Generator().manual_seed(seed))
        wanted_grads = torch.autograd.grad(wanted, inputs, grad)
        flat = [side for shape in shapes for side in shape]
        found = triton_kernels.forward(values, flat, locations, weights)
        grads = triton_kernels.backward(grad, values, flat, locations, weights)
        for a, b in zip((found, *grads), (wanted, *wanted_grads)):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-10)
"""

CASES = {
    "random, points outside, padding, odd width and count": """
        case = make_case(queries=37, heads=3, width=5, points=3)
        compare(case.values, case.shapes, case.locations, case.weights)
        far = case.locations * 1e7
        compare(case.values, case.shapes, far, case.weights)
    """,
    "more queries than a program takes": """
        case = make_case(batch=1, queries=70, heads=1, width=32, points=1)
        compare(case.values, case.shapes, case.locations, case.weights)
    """,
    "cell borders and map edges": """
        shapes = ((4, 8), (2, 2))
        locations = border_locations(shapes, torch.float64)
        queries = locations.shape[1]
        draw = torch.Generator().manual_seed(3)
        values = torch.randn(1, 36, 1, 4, dtype=torch.float64, generator=draw)
        weights = torch.randn(1, queries, 1, 2, 1, dtype=torch.float64, generator=draw)
        compare(values, shapes, locations, weights)
    """,
}


@pytest.mark.parametrize("body", CASES.values(), ids=CASES.keys())
def test_interpreted_kernels_equal_the_reference(body):
    here = str(Path(__file__).parent)
    program = textwrap.dedent(BODY.format(tests=here)) + textwrap.dedent(body)
    # Triton decides on import whether it interprets.
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_kernels_equal_the_reference(dtype):
    from detrlab.ops import reference, testing, triton_kernels

    attend = functools.partial(reference.attend_by, triton_kernels.sample)
    for boxes in (False, True):
        case = testing.small_case(boxes=boxes, dtype=dtype, device="cuda")
        found = testing.results(attend, case)
        assert testing.difference(found, testing.results(reference.attend, case)) is None
