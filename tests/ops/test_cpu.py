import ctypes
import logging
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ops_cases import SHAPES, border_locations, make_case, naive_locations, naive_sample

from detrlab.errors import UserError
from detrlab.ops import cpu, deformable, reference, testing, threads
from detrlab.structures import References

pytest.importorskip("numba")

# A few kinds of kernels only: each costs seconds to compile when met for the first time.
KINDS = [
    pytest.param(torch.float32, 32, 4, SHAPES[:1], id="float32-32x4"),
    pytest.param(torch.float64, 3, 2, SHAPES, id="float64-3x6"),
    pytest.param(torch.float32, 68, 3, SHAPES[:1], id="float32-68x3"),  # 2 pieces of 34 channels
]


def attend_case(module, case):
    return testing.results(
        module.attend,
        testing.Case(
            case.values,
            case.shapes,
            case.valid_ratios,
            case.references,
            case.offsets,
            case.scores,
            torch.linspace(-1, 1, case.values.shape[2] * case.values.shape[3]).to(case.values)
            * torch.ones(case.offsets.shape[:2]).to(case.values)[..., None],
        ),
    )


def assert_same(actual, expected):
    bound = 1e-9 if expected[0].dtype == torch.float64 else 1e-5
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * b.abs().max().item())


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize(("dtype", "width", "points", "shapes"), KINDS)
def test_attend_equals_reference(dtype, width, points, shapes, boxes):
    case = make_case(
        queries=21, width=width, points=points, shapes=shapes, boxes=boxes, dtype=dtype
    )
    assert_same(attend_case(cpu, case), attend_case(reference, case))


def test_attend_equals_plain_loops():
    case = make_case(width=3, boxes=True)
    weights = case.scores.exp() / case.scores.exp().sum(-1, keepdim=True)
    expected = naive_sample(
        case.values, case.shapes, naive_locations(case), weights.view_as(case.weights)
    )
    actual = cpu.attend(
        case.values, case.shapes, case.valid_ratios, case.references, case.offsets, case.scores
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_attend_gradients_in_double(boxes):
    case = make_case(queries=3, heads=2, width=3, boxes=boxes)
    parts = [case.values, case.offsets, case.scores, case.references.centers]
    if boxes:
        parts.append(case.references.sizes)
    assert torch.autograd.gradcheck(
        lambda values, offsets, scores, *box: cpu.attend(
            values, case.shapes, case.valid_ratios, References(*box), offsets, scores
        ),
        [part.requires_grad_() for part in parts],
        nondet_tol=0.0,
    )


def test_sample_gradients_in_double():
    case = make_case(queries=3, heads=2, width=3)
    inputs = [part.requires_grad_() for part in (case.values, case.locations, case.weights)]
    assert torch.autograd.gradcheck(
        lambda values, locations, weights: cpu.sample(values, case.shapes, locations, weights),
        inputs,
    )


def test_borders_and_outside_equal_reference():
    shapes = ((8, 4), (2, 4), (1, 1))  # powers of two: locations are exact
    locations = border_locations(shapes, torch.float64)
    case = make_case(batch=1, queries=locations.shape[1], heads=1, width=3, points=1, shapes=shapes)

    def results(module):
        inputs = [case.values.clone(), locations.clone(), case.weights.clone()]
        inputs = [part.requires_grad_() for part in inputs]
        output = module.sample(inputs[0], shapes, inputs[1], inputs[2])
        return output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)

    assert_same(results(cpu), results(reference))


def test_far_outside_and_not_finite():
    case = make_case(batch=1, queries=4, width=3)
    locations = case.locations.clone()
    locations[0, 0] = 1e30
    locations[0, 1] = -float("inf")
    locations[0, 2, 0, 0, 0, 0] = float("nan")
    output = cpu.sample(case.values, case.shapes, locations, case.weights)
    assert (output[0, :2] == 0).all()
    assert output[0, 2, :3].isnan().all()  # of the one head, and of no other
    assert output[0, 2, 3:].isfinite().all()
    assert output[0, 3].isfinite().all()


def test_softmax_of_extreme_scores():
    case = make_case(batch=1, queries=2, width=3)
    scores = case.scores.clone()
    scores[0, 0] = torch.tensor([1e4, -1e4, 0, -float("inf"), 1e4, -800])
    scores[0, 1] = -1e30
    arguments = (case.shapes, case.valid_ratios, case.references, case.offsets, scores)
    torch.testing.assert_close(
        cpu.attend(case.values, *arguments), reference.attend(case.values, *arguments)
    )


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def large_case(**changes):
    """Enough work for several threads."""
    return make_case(**{"queries": 15_000, "width": 3, **changes})


@pytest.mark.parametrize(
    ("maps", "exact"),
    [({"heads": 4}, True), ({"batch": 1, "heads": 1, "queries": 60_000}, False)],
    ids=["many maps", "one map"],
)
def test_any_number_of_threads_gives_the_same_result(maps, exact, set_threads):
    """Bit for bit, unless maps are so few that a backward task is one level instead of one map."""
    case = large_case(boxes=True, **maps)
    set_threads(1)
    one = attend_case(cpu, case)
    set_threads(4)
    four = attend_case(cpu, case)
    assert_same(four, attend_case(reference, case))
    if exact:
        assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_layout_of_values_does_not_matter():
    case = make_case(width=3)
    scattered = case.values.transpose(1, 3).contiguous().transpose(1, 3)
    rest = (case.shapes, case.locations, case.weights)
    assert torch.equal(cpu.sample(scattered, *rest), cpu.sample(case.values, *rest))


def test_nothing_to_sample():
    case = make_case(width=3)
    values = case.values.clone().requires_grad_()
    output = cpu.sample(values, case.shapes, case.locations[:, :0], case.weights[:, :0])
    assert output.shape == (2, 0, 9)
    output.sum().backward()
    assert (values.grad == 0).all()


def test_wrong_sizes_are_refused():
    case = make_case(width=3)
    with pytest.raises(ValueError, match="do not fit"):
        cpu.sample(case.values[:, 1:], case.shapes, case.locations, case.weights)
    with pytest.raises(ValueError, match="do not fit"):
        cpu.sample(case.values, case.shapes, case.locations, case.weights[..., :1])


def test_autocast_computes_in_float32():
    case = make_case(width=32, points=4, shapes=SHAPES[:1], dtype=torch.float32)
    values = case.values.bfloat16()
    rest = (case.shapes, case.locations, case.weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = cpu.sample(values, *rest)
        raw = torch.ops.detrlab.deformable(
            values, [5, 3], None, None, None, case.locations, case.weights.flatten(-2)
        )
    assert actual.dtype == torch.bfloat16
    assert raw.dtype == torch.float32
    torch.testing.assert_close(raw, reference.sample(values.float(), *rest))


def test_operator_is_well_formed():
    case = make_case(width=3)
    inputs = (
        case.values.clone().requires_grad_(),
        [side for shape in case.shapes for side in shape],
        case.valid_ratios,
        case.references.centers,
        None,
        case.offsets.clone().requires_grad_(),
        case.scores.clone().requires_grad_(),
    )
    torch.library.opcheck(torch.ops.detrlab.deformable.default, inputs)


def test_two_threads_at_once():
    cases = [make_case(queries=50, width=3, seed=seed) for seed in range(4)]
    expected = [attend_case(reference, case) for case in cases]
    actual = [None] * len(cases)

    def work(index):
        for _ in range(20):
            actual[index] = attend_case(cpu, cases[index])

    pool = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b)


def _in_child(case, expected, outcome):
    output = cpu.sample(case.values, case.shapes, case.locations, case.weights)
    # Not torch's own operators: in a forked process their threads do not exist.
    outcome.put(bool(np.allclose(output.numpy(), expected.numpy())))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_process_started_after_use(method, set_threads):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    case = large_case()
    set_threads(2)
    expected = cpu.sample(case.values, case.shapes, case.locations, case.weights)
    context = multiprocessing.get_context(method)
    outcome = context.Queue()
    child = context.Process(target=_in_child, args=(case, expected, outcome))
    child.start()
    assert outcome.get(timeout=120)
    child.join(60)
    assert child.exitcode == 0


def test_every_thread_runs_the_function():
    seen = []
    together = threading.Barrier(3, timeout=30)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def function(argument):
        seen.append(argument)
        together.wait()

    threads.run(ctypes.cast(function, ctypes.c_void_p).value, 7, 3)
    assert seen == [7, 7, 7]


def test_cache_folder_that_cannot_be_written(monkeypatch):
    from detrlab.ops import kernels

    def refuse(number, lanes, count, *, cache):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(number, lanes, count, cache=False)

    real = kernels.compile_forward
    monkeypatch.setattr(kernels, "compile_forward", refuse)
    built = cpu._build(torch.float64, 3, 6)
    assert cpu._self_test(built, torch.float64, 3, 6) is None


class TestWithoutKernels:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch):
        monkeypatch.delenv("DETRLAB_OPS", raising=False)
        cpu._compiled.cache_clear()
        deformable._warn_once.cache_clear()
        yield
        monkeypatch.undo()
        cpu._compiled.cache_clear()
        deformable._warn_once.cache_clear()

    def check(self, caplog, reason):
        case = make_case(width=3)
        rest = (case.shapes, case.locations, case.weights)
        with caplog.at_level(logging.WARNING, logger="detrlab"):
            for _ in range(2):
                actual = deformable.sample(case.values, *rest)
        torch.testing.assert_close(actual, reference.sample(case.values, *rest))
        (record,) = caplog.records
        assert reason in record.getMessage()
        assert "\n" not in record.getMessage()
        assert deformable.backend() == "reference"
        with pytest.raises(UserError, match="does not work here"), deformable.use("cpu"):
            pass

    def test_compiler_broken(self, monkeypatch, caplog):
        from detrlab.ops import kernels

        def broken(*_args, **_keywords):
            raise RuntimeError("no such target\nand more lines")

        monkeypatch.setattr(kernels, "compile_backward", broken)
        self.check(caplog, "no such target")

    def test_wrong_results(self, monkeypatch, caplog):
        real = cpu._run_forward

        def wrong(kernels, work, output):
            real(kernels, work, output)
            output += 0.01

        monkeypatch.setattr(cpu, "_run_forward", wrong)
        self.check(caplog, "self-test failed: the output differs")


def test_child_process_without_numba_prints_one_line(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('broken on purpose')\n")
    code = (
        "import torch\n"
        "from detrlab.ops import deformable\n"
        "for _ in range(2):\n"
        "    deformable.sample(torch.ones(1, 4, 1, 2), ((2, 2),),\n"
        "                      torch.zeros(1, 3, 1, 1, 1, 2), torch.ones(1, 3, 1, 1, 1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("DETRLAB_OPS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "broken on purpose" in lines[0]
