import itertools
import math

import pytest
import torch
from ops_cases import SHAPES, border_locations, make_case, naive_locations, naive_sample

from detrlab.ops import reference
from detrlab.structures import References


def test_sample_equals_plain_loops():
    case = make_case()
    expected = naive_sample(case.values, case.shapes, case.locations, case.weights)
    actual = reference.sample(case.values, case.shapes, case.locations, case.weights)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_sample_on_cell_borders_equals_plain_loops():
    locations = border_locations(SHAPES, torch.float64)
    case = make_case(batch=1, queries=locations.shape[1], heads=1, points=1)
    expected = naive_sample(case.values, case.shapes, locations, case.weights)
    actual = reference.sample(case.values, case.shapes, locations, case.weights)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_locations_equal_plain_loops(boxes):
    case = make_case(boxes=boxes)
    actual = reference.sampling_locations(
        case.references, case.valid_ratios, case.offsets, case.shapes
    )
    torch.testing.assert_close(actual, naive_locations(case), rtol=0, atol=1e-12)


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_attend_equals_plain_loops(boxes):
    case = make_case(boxes=boxes)
    weights = case.scores.exp() / case.scores.exp().sum(-1, keepdim=True)
    expected = naive_sample(
        case.values, case.shapes, naive_locations(case), weights.view_as(case.weights)
    )
    actual = reference.attend(
        case.values, case.shapes, case.valid_ratios, case.references, case.offsets, case.scores
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_sample_gradients_in_double():
    case = make_case(batch=2, queries=3, heads=2, width=2)
    inputs = [part.requires_grad_() for part in (case.values, case.locations, case.weights)]
    assert torch.autograd.gradcheck(
        lambda values, locations, weights: reference.sample(
            values, case.shapes, locations, weights
        ),
        inputs,
    )


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_attend_gradients_in_double(boxes):
    case = make_case(batch=2, queries=3, heads=2, width=2, boxes=boxes)
    parts = [case.values, case.offsets, case.scores, case.references.centers]
    if boxes:
        parts.append(case.references.sizes)
    assert torch.autograd.gradcheck(
        lambda values, offsets, scores, *box: reference.attend(
            values, case.shapes, case.valid_ratios, References(*box), offsets, scores
        ),
        [part.requires_grad_() for part in parts],
    )


def test_half_precision_computes_in_float32():
    case = make_case(dtype=torch.float32)
    half = case.values.bfloat16()
    expected = reference.sample(half.float(), case.shapes, case.locations, case.weights)
    actual = reference.sample(half, case.shapes, case.locations, case.weights)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected.bfloat16())


def test_single_cells_equal_plain_loops():
    case = make_case()
    batch, queries, heads, levels, points, _ = case.locations.shape
    width = case.values.shape[-1]
    expected = torch.zeros(batch, queries, heads, width, dtype=torch.float64)
    for b, q, m, level, point in itertools.product(
        *map(range, (batch, queries, heads, levels, points))
    ):
        height, columns = case.shapes[level]
        start = sum(h * w for h, w in case.shapes[:level])
        cell = []
        for axis, side in enumerate((columns, height)):
            valid = max(1, round(case.valid_ratios[b, level, axis].item() * side))
            place = math.floor(case.locations[b, q, m, level, point, axis].item() * side + 0.5)
            cell.append(min(max(place, 0), valid - 1))
        value = case.values[b, start + cell[1] * columns + cell[0], m]
        expected[b, q, m] += case.weights[b, q, m, level, point] * value
    found = reference.sample_cells(
        case.values, case.shapes, case.valid_ratios, case.locations, case.weights
    )
    torch.testing.assert_close(found, expected.flatten(2), rtol=0, atol=1e-12)
