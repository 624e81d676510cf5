import pytest
import torch
from torch.utils.checkpoint import checkpoint

from detrlab.ops.dropout import dropout, relu_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_drops_its_share_everywhere_and_scales_the_rest(dtype, p):
    torch.manual_seed(0)
    output = dropout(torch.ones(400, 250, dtype=dtype), p)
    kept = output != 0
    torch.testing.assert_close(
        output[kept], torch.full_like(output[kept], 1 / (1 - p)), rtol=2e-5, atol=0
    )
    # Five standard deviations of the share, of every row's and every column's.
    for dims, count in (((0, 1), 400 * 250), ((0,), 400), ((1,), 250)):
        share = kept.double().mean(dims)
        assert ((share - (1 - p)).abs() < 5 * (p * (1 - p) / count) ** 0.5).all()


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(100_000), 0.5) != 0).double() - 0.5
    for shift in (1, 2, 3, 4, 16, 256, 1024):
        correlation = (kept[:-shift] * kept[shift:]).mean() * 4
        assert abs(correlation) < 5 / len(kept) ** 0.5, shift


def test_calls_differ_and_seeds_repeat():
    ones = torch.ones(1001)
    torch.manual_seed(1)
    first, second = dropout(ones, 0.5), dropout(ones, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(ones, 0.5), first)
    agreement = ((first != 0) == (second != 0)).double().mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / 1000**0.5


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_gradient_has_the_mask_of_the_output(layout):
    values = torch.randn(301, 7)
    values = (values.t() if layout == "columns" else values).requires_grad_()
    output = dropout(values, 0.25)
    (grad,) = torch.autograd.grad(output.sum(), values)
    torch.testing.assert_close(output, values * grad)
    assert len(grad.unique()) == 2


def test_no_probability_changes_nothing():
    values = torch.randn(5)
    assert dropout(values, 0.0) is values


def test_recomputing_gives_the_same_mask():
    values = torch.randn(50, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)

    def layer(values):
        return values + dropout((values @ weight).relu(), 0.3)

    torch.manual_seed(5)
    plain = torch.autograd.grad(layer(values).square().sum(), (values, weight))
    torch.manual_seed(5)
    output = checkpoint(layer, values, use_reentrant=False)
    again = torch.autograd.grad(output.square().sum(), (values, weight))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_half_precision_and_compiling():
    compiled = torch.compile(lambda values: dropout(values, 0.5), backend="eager", fullgraph=True)
    for function in (lambda values: dropout(values, 0.5), compiled):
        output = function(torch.ones(1000, dtype=torch.bfloat16))
        assert output.dtype == torch.bfloat16
        assert abs((output != 0).double().mean() - 0.5) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_relu_and_dropout_in_one_equal_both_and_keep_less(dtype):
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(40, 70, 3, dtype=dtype, generator=draw)
    weight = torch.randn(40, 70, 3, dtype=dtype, generator=draw)

    def run(function):
        torch.manual_seed(1)
        inputs, kept = values.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            found = function(inputs, 0.3)
        return found, torch.autograd.grad((found * weight).sum(), inputs)[0], sum(kept)

    one = run(relu_dropout)
    both = run(lambda inputs, p: dropout(torch.relu(inputs), p))
    assert torch.equal(one[0], both[0])
    assert torch.equal(one[1], both[1])
    assert one[2] < both[2]
