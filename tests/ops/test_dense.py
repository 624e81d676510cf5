"""Attention in blocks: the numbers of the plain form, in less memory."""

import pytest
import torch

from detrlab.ops import dense


def case(dtype, heads=3, queries=37, keys=50, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, count, 8) for count in (queries, keys, keys)]
    inputs = [torch.randn(each, dtype=dtype, generator=draw) for each in shapes]
    visible = torch.rand(2, 1, 1, keys, generator=draw) > 0.3
    return [each.requires_grad_() for each in inputs], visible


def results(inputs, visible, p=0.2):
    """Output and gradients, with the same random numbers each time."""
    torch.manual_seed(1)
    found = dense.attend(*inputs, visible, p)
    weight = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    return [found, *torch.autograd.grad((found * weight).sum(), inputs)]


@pytest.fixture(params=[40, 300, 1850, 4000, 100_000])
def in_blocks(request, monkeypatch):
    """Of one row, some rows, one head, two heads, and everything."""

    def change():
        monkeypatch.setattr(dense, "FEWEST", 0)
        monkeypatch.setattr(dense, "BLOCK", request.param)

    return change


@pytest.mark.parametrize("masked", [True, False])
def test_blocks_equal_the_plain_form(in_blocks, masked):
    inputs, visible = case(torch.float64)
    visible = visible if masked else None
    plain = results(inputs, visible)
    in_blocks()
    for one, other in zip(plain, results(inputs, visible), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_gradients_are_those_of_small_changes(monkeypatch):
    monkeypatch.setattr(dense, "FEWEST", 0)
    monkeypatch.setattr(dense, "BLOCK", 30)
    inputs, visible = case(torch.float64, heads=2, queries=4, keys=6)

    def attend(*inputs):
        torch.manual_seed(1)
        return dense.attend(*inputs, visible, 0.3)

    assert torch.autograd.gradcheck(attend, inputs)


def test_weights_are_not_kept(in_blocks):
    inputs, visible = case(torch.float32, heads=8, queries=200, keys=200)

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            results(inputs, visible)
        return sum(sizes)

    plain = kept()
    in_blocks()
    assert kept() < 0.25 * plain


def test_bfloat16_by_autocast_takes_the_plain_form(in_blocks):
    inputs, visible = case(torch.float32)
    in_blocks()
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.attend(*inputs, visible, 0.2).dtype == torch.bfloat16
