import math

import pytest
import torch
from drawn import predictions_of, targets_of
from scipy.optimize import linear_sum_assignment

from detrlab.config import TrainConfig
from detrlab.presets.parts import focal_criterion, softmax_criterion
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import Predictions, Target

SOFTMAX = (SoftmaxScoring(), softmax_criterion(TrainConfig()).matcher)
SIGMOID = (SigmoidScoring(), focal_criterion(TrainConfig()).matcher)
FAMILIES = pytest.mark.parametrize(
    ("scoring", "matcher"), [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"]
)


def naive_cost(scoring, logits, box, label, target):
    """Section 3.1 of DETR and appendix A.4 of Deformable DETR, number by number."""
    if isinstance(scoring, SoftmaxScoring):
        exponents = [math.exp(value) for value in logits]
        classes = -exponents[label] / sum(exponents)
    else:
        p = 1 / (1 + math.exp(-logits[label]))
        positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
        classes = positive - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    distance = sum(abs(a - b) for a, b in zip(box, target, strict=True))
    (ax, ay, aw, ah), (bx, by, bw, bh) = box, target
    left, right = (ax - aw / 2, bx - bw / 2), (ax + aw / 2, bx + bw / 2)
    top, bottom = (ay - ah / 2, by - bh / 2), (ay + ah / 2, by + bh / 2)
    both = max(0, min(right) - max(left)) * max(0, min(bottom) - max(top))
    union = aw * ah + bw * bh - both
    hull = (max(right) - min(left)) * (max(bottom) - min(top))
    giou = both / union - (hull - union) / hull
    class_weight = 1 if isinstance(scoring, SoftmaxScoring) else 2
    return 5 * distance + class_weight * classes - 2 * giou


@FAMILIES
def test_pairs_equal_a_naive_search_over_padded_batches(scoring, matcher):
    predictions, targets = predictions_of(scoring, 3, 6), targets_of(4, 1, 3)
    matches = matcher([predictions], targets).sets[0]
    for image, (logits, boxes, target) in enumerate(zip(*predictions[:2], targets, strict=True)):
        cost = [
            [
                naive_cost(scoring, logits[q].tolist(), boxes[q].tolist(), label, box)
                for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True)
            ]
            for q in range(6)
        ]
        queries, objects = linear_sum_assignment(cost)
        assert matches[image].queries.tolist() == queries.tolist()
        assert matches[image].objects.tolist() == objects.tolist()
        assert queries.tolist() == sorted(queries)


@FAMILIES
def test_several_sets_at_once_equal_each_alone(scoring, matcher):
    sets = [predictions_of(scoring, 2, 5, seed) for seed in range(3)]
    targets = targets_of(2, 3)
    together = matcher(sets, targets).sets
    for predictions, matches in zip(sets, together, strict=True):
        alone = matcher([predictions], targets).sets[0]
        for a, b in zip(matches, alone, strict=True):
            assert torch.equal(a.queries, b.queries)
            assert torch.equal(a.objects, b.objects)


@FAMILIES
@pytest.mark.parametrize("sizes", [(0, 2), (0, 0), (9, 1), (9, 0)])
def test_empty_images_and_more_objects_than_queries(scoring, matcher, sizes):
    matches = matcher([predictions_of(scoring, 2, 5)], targets_of(*sizes)).sets[0]
    assert [len(each.queries) for each in matches] == [min(5, size) for size in sizes]
    for each, size in zip(matches, sizes, strict=True):
        assert each.queries.dtype == each.objects.dtype == torch.int64
        assert len(set(each.queries.tolist())) == len(each.queries)
        assert len(set(each.objects.tolist())) == len(each.objects)
        assert all(0 <= index < size for index in each.objects.tolist())


@FAMILIES
def test_permuting_objects_permutes_the_pairs(scoring, matcher):
    predictions, (target,) = predictions_of(scoring, 1, 6), targets_of(4)
    order = torch.tensor([2, 0, 3, 1])
    (plain,) = matcher([predictions], [target]).sets[0]
    moved = Target(target.labels[order], target.boxes[order])
    (permuted,) = matcher([predictions], [moved]).sets[0]
    assert torch.equal(plain.queries, permuted.queries)
    assert torch.equal(plain.objects, order[permuted.objects])


@FAMILIES
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_query_is_matched_last_and_counted(scoring, matcher, bad):
    predictions, targets = predictions_of(scoring, 2, 4), targets_of(3, 2)
    predictions.boxes[0, 1] = bad
    matching = matcher([predictions], targets)
    assert matching.invalid == 3
    assert matching.sets[0][0].queries.tolist() == [0, 2, 3]
    assert matcher([predictions], targets_of(0, 2)).invalid == 0


def test_half_precision_is_matched_in_float32():
    scoring, matcher = SIGMOID
    predictions, targets = predictions_of(scoring, 1, 6), targets_of(3)
    half = Predictions(predictions.logits.half(), predictions.boxes.half())
    (coarse,) = matcher([half], targets).sets[0]
    rounded = Predictions(half.logits.float(), half.boxes.float())
    (expected,) = matcher([rounded], targets).sets[0]
    assert torch.equal(coarse.objects, expected.objects)
