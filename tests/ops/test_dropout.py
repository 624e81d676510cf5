import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from detrlab.ops import deformable, dropout

WITH_KERNELS = dropout.problem() is None
BACKENDS = [
    pytest.param("cpu", marks=pytest.mark.skipif(not WITH_KERNELS, reason="no CPU kernels")),
    "reference",
]


@pytest.fixture(params=BACKENDS)
def _backend(request):
    with deformable.use(request.param):
        yield


def mask_of(function, *inputs):
    """Outputs, gradients, and the factor each element was multiplied with."""
    torch.manual_seed(3)
    inputs = [each.clone().requires_grad_() for each in inputs]
    output = function(*inputs, 0.25)
    grads = torch.autograd.grad(output.sum(), inputs)
    return output.detach(), grads


@pytest.mark.usefixtures("_backend")
class TestEveryBackend:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_its_share_and_scales(self, dtype):
        torch.manual_seed(0)
        output = dropout.dropout(torch.ones(400, 250, dtype=dtype), 0.25)
        kept = output != 0
        torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / 0.75))
        # Five standard deviations of the share, of every row's and every column's.
        assert abs(kept.double().mean() - 0.75) < 5 * (0.75 * 0.25 / 1e5) ** 0.5
        assert ((kept.double().mean(0) - 0.75).abs() < 5 * (0.75 * 0.25 / 400) ** 0.5).all()
        assert ((kept.double().mean(1) - 0.75).abs() < 5 * (0.75 * 0.25 / 250) ** 0.5).all()

    def test_neighbours_are_independent(self):
        torch.manual_seed(0)
        kept = (dropout.dropout(torch.ones(100_000), 0.5) != 0).double() - 0.5
        for shift in (1, 2, 16, 256, 1024):
            correlation = (kept[:-shift] * kept[shift:]).mean() * 4
            assert abs(correlation) < 5 / len(kept) ** 0.5, shift

    def test_calls_differ_and_seeds_repeat(self):
        ones = torch.ones(1000)
        torch.manual_seed(1)
        first, second = dropout.dropout(ones, 0.5), dropout.dropout(ones, 0.5)
        torch.manual_seed(1)
        assert torch.equal(dropout.dropout(ones, 0.5), first)
        agreement = ((first != 0) == (second != 0)).double().mean()
        assert abs(agreement - 0.5) < 5 * 0.5 / 1000**0.5

    def test_gradient_follows_the_mask(self):
        values = torch.randn(300, 7)
        output, (grad,) = mask_of(dropout.dropout, values)
        torch.testing.assert_close(output, values * grad)
        assert set(grad.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}

    def test_relu_dropout(self):
        values = torch.randn(300, 7)
        output, (grad,) = mask_of(dropout.relu_dropout, values)
        torch.testing.assert_close(output, values.relu() * grad)
        assert (grad[values <= 0] == 0).all()
        share = (grad[values > 0] != 0).double().mean()
        assert abs(share - 0.75) < 0.08

    def test_add_dropout(self):
        residual, branch = torch.randn(300, 7), torch.randn(300, 7)
        output, (residual_grad, branch_grad) = mask_of(dropout.add_dropout, residual, branch)
        torch.testing.assert_close(output, residual + branch * branch_grad)
        assert (residual_grad == 1).all()
        assert abs((branch_grad != 0).double().mean() - 0.75) < 0.05

    def test_no_probability_changes_nothing(self):
        values, residual = torch.randn(5), torch.randn(5)
        assert torch.equal(dropout.dropout(values, 0.0), values)
        assert torch.equal(dropout.relu_dropout(values, 0.0), values.relu())
        assert torch.equal(dropout.add_dropout(residual, values, 0.0), residual + values)

    def test_layout_does_not_matter_to_the_gradient(self):
        values = torch.randn(6, 50).t()
        _, (grad,) = mask_of(dropout.dropout, values)
        torch.manual_seed(3)
        torch.testing.assert_close(dropout.dropout(values, 0.25), values * grad)

    def test_computing_again_gives_the_same_mask(self):
        values = torch.randn(50, 8, requires_grad=True)
        weight = torch.randn(8, 8, requires_grad=True)

        def layer(values):
            return dropout.add_dropout(values, dropout.relu_dropout(values @ weight, 0.3), 0.3)

        torch.manual_seed(5)
        plain = torch.autograd.grad(layer(values).square().sum(), (values, weight))
        torch.manual_seed(5)
        output = checkpoint(layer, values, use_reentrant=False)
        again = torch.autograd.grad(output.square().sum(), (values, weight))
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))

    def test_half_precision(self):
        torch.manual_seed(0)
        output = dropout.add_dropout(torch.zeros(1000), torch.ones(1000).bfloat16(), 0.5)
        assert output.dtype == torch.float32
        assert abs(output.mean() - 1) < 0.2


@pytest.mark.skipif(not WITH_KERNELS, reason="no CPU kernels")
def test_same_bits_with_any_number_of_threads():
    values = torch.randn(300_000)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            torch.manual_seed(2)
            outputs.append(dropout.relu_dropout(values, 0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_compiling_takes_torch():
    compiled = torch.compile(
        lambda values: dropout.relu_dropout(values, 0.5), backend="eager", fullgraph=True
    )
    torch.manual_seed(0)
    output = compiled(torch.ones(1000))
    assert abs((output != 0).double().mean() - 0.5) < 0.1


def test_without_numba(monkeypatch):
    def broken(_dtype):
        raise ImportError("No module named 'numba'")

    dropout._compiled.cache_clear()
    monkeypatch.setattr(dropout, "_build", broken)
    try:
        assert "numba" in dropout.problem()
        torch.manual_seed(4)
        output = dropout.dropout(torch.ones(100), 0.5)
        torch.manual_seed(4)
        assert torch.equal(output, F.dropout(torch.ones(100), 0.5))
    finally:
        dropout._compiled.cache_clear()


def test_kernels_that_fail_their_test_are_not_used(monkeypatch):
    real = dropout._run_kernel

    def wrong(kernels, kind, mask, values, other):
        output = real(kernels, kind, mask, values, other)
        return output * 1.01 if kind == "relu" else output

    dropout._compiled.cache_clear()
    monkeypatch.setattr(dropout, "_run_kernel", wrong)
    try:
        found = dropout.problem()
        if WITH_KERNELS:
            assert "'relu' is wrong" in found
    finally:
        dropout._compiled.cache_clear()
