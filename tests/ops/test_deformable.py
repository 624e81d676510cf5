import logging

import pytest
import torch
from ops_cases import SHAPES, make_case

from detrlab.errors import UserError
from detrlab.ops import deformable, reference


@pytest.fixture
def case():
    return make_case(width=32, points=4, shapes=SHAPES[:1], dtype=torch.float32)


def call_attend(case):
    return deformable.attend(
        case.values, case.shapes, case.valid_ratios, case.references, case.offsets, case.scores
    )


def expected(case):
    return reference.attend(
        case.values, case.shapes, case.valid_ratios, case.references, case.offsets, case.scores
    )


def test_use_is_undone(monkeypatch):
    monkeypatch.delenv("DETRLAB_OPS", raising=False)
    before = deformable.backend()
    with deformable.use("reference"):
        assert deformable.backend() == "reference"
        with deformable.use("auto"):
            assert deformable.backend() == before
        assert deformable.backend() == "reference"
    assert deformable.backend() == before


def test_environment_variable(monkeypatch, case):
    monkeypatch.setenv("DETRLAB_OPS", "reference")
    assert deformable.backend() == "reference"
    assert torch.equal(call_attend(case), expected(case))


def test_unknown_names(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'reference'"), deformable.use("referense"):
        pass
    monkeypatch.setenv("DETRLAB_OPS", "cpuu")
    with pytest.raises(UserError, match=r"DETRLAB_OPS: .*did you mean 'cpu'"):
        deformable.backend()


def test_unusable_name():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="here: no CUDA device"), deformable.use("cuda"):
        pass


def test_other_devices_take_the_reference(monkeypatch, caplog):
    monkeypatch.delenv("DETRLAB_OPS", raising=False)
    with caplog.at_level(logging.WARNING, logger="detrlab"):
        assert deformable.backend("meta") == "reference"
    assert not caplog.records


def test_auto_equals_reference(case):
    torch.testing.assert_close(call_attend(case), expected(case))


class Attend(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, values, offsets, scores):
        case = self.case
        return deformable.attend(
            values, case.shapes, case.valid_ratios, case.references, offsets, scores
        )


def test_export_takes_the_plain_form(case):
    inputs = (case.values, case.offsets, case.scores)
    program = torch.export.export(Attend(case), inputs)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("detrlab" in name for name in names)
    assert any("grid_sampler" in name for name in names)
    torch.testing.assert_close(program.module()(*inputs), expected(case))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tracing_takes_the_plain_form(case):
    inputs = (case.values, case.offsets, case.scores)
    traced = torch.jit.trace(Attend(case), inputs)
    assert "detrlab::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*inputs), expected(case))


def test_compile_sees_one_operator(case, monkeypatch):
    monkeypatch.delenv("DETRLAB_OPS", raising=False)
    if deformable.backend() != "cpu":
        pytest.skip("no CPU kernels here")
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    inputs = [part.clone().requires_grad_() for part in (case.values, case.offsets, case.scores)]
    compiled = torch.compile(Attend(case), backend=keep, fullgraph=True)
    output = compiled(*inputs)
    torch.testing.assert_close(output, expected(case))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    # PyTorch 2.7 takes whatever it compiles for an export, which has no operators of ours.
    told = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")
    exported = told(torch.zeros(())).item()
    assert sum("detrlab.deformable" in target for target in targets) == 1 - exported
    assert not exported or torch.__version__.startswith("2.7.")


def test_compile_differentiates(case, monkeypatch):
    monkeypatch.delenv("DETRLAB_OPS", raising=False)
    inputs = [part.clone().requires_grad_() for part in (case.values, case.offsets, case.scores)]
    compiled = torch.compile(Attend(case), backend="aot_eager", fullgraph=True)
    grads = torch.autograd.grad(compiled(*inputs).sin().sum(), inputs)
    plain = torch.autograd.grad(Attend(case)(*inputs).sin().sum(), inputs)
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, b)
