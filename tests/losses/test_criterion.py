"""The criterion on its own; with the originals' numbers it is compared in models/test_parity.py."""

import math

import drawn
import pytest
import torch
from drawn import CLASSES, targets_of

from detrlab.config import TrainConfig
from detrlab.losses.pairs import Counts, tally, total_counts
from detrlab.presets.parts import focal_criterion, softmax_criterion
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import (
    PROPOSALS,
    Denoising,
    Pairs,
    Predictions,
    Queries,
    SupervisedSet,
    Target,
    supervise,
)

SOFTMAX, SIGMOID = SoftmaxScoring(), SigmoidScoring()
FAMILIES = pytest.mark.parametrize("scoring", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])


def criterion_of(scoring, **changes):
    build = softmax_criterion if scoring == SOFTMAX else focal_criterion
    return build(TrainConfig(**changes))


def output_of(*layers, proposals=None, denoising=None):
    stage = [SupervisedSet(PROPOSALS, proposals, class_agnostic=True)] if proposals else []
    nothing = torch.empty(0)
    return supervise(layers, Queries(nothing, nothing, None, denoising=denoising), stage)


def predictions_of(*arguments, **options):
    logits, boxes, _ = drawn.predictions_of(*arguments, **options)
    return Predictions(logits.requires_grad_(), boxes.requires_grad_())


def naive_class_loss(scoring, logits, wanted, objects):
    """Sums and logarithms over (B, Q) nested lists; ``wanted`` is None where unmatched."""
    total, weight_sum = 0.0, 0.0
    for row, label in zip(logits, wanted, strict=True):
        if isinstance(scoring, SoftmaxScoring):
            weight = 0.1 if label is None else 1.0
            column = len(row) - 1 if label is None else label
            total += weight * (math.log(sum(map(math.exp, row))) - row[column])
            weight_sum += weight
        else:
            for column, value in enumerate(row):
                p = 1 / (1 + math.exp(-value))
                if column == label:
                    total -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    total -= 0.75 * p**2 * math.log(1 - p)
    return total / (weight_sum if isinstance(scoring, SoftmaxScoring) else objects)


@FAMILIES
def test_terms_equal_a_naive_loop(scoring):
    predictions, targets = predictions_of(scoring, 3, 5), targets_of(2, 0, 7)
    losses = criterion_of(scoring)(output_of(predictions), targets)
    rows, wanted, l1, hits = [], [], 0.0, []
    for image, pairs in enumerate(losses.matches["final"]):
        labels = [None] * 5
        for q, n in zip(pairs.queries.tolist(), pairs.objects.tolist(), strict=True):
            labels[q] = targets[image].labels[n].item()
            l1 += (predictions.boxes[image, q] - targets[image].boxes[n]).abs().sum().item()
            hits.append(predictions.logits[image, q].argmax().item() == labels[q])
        rows += predictions.logits[image].tolist()
        wanted += labels
    assert losses.final["box"].item() == pytest.approx(l1 / 9, rel=1e-5)
    expected = naive_class_loss(scoring, rows, wanted, objects=9)
    assert losses.final["class"].item() == pytest.approx(expected, rel=1e-5)
    assert losses.class_error.item() == pytest.approx(100 - 100 * sum(hits) / len(hits))


@FAMILIES
def test_perfect_boxes_cost_nothing(scoring):
    targets = targets_of(2, 2)
    boxes = torch.stack([target.boxes for target in targets])
    predictions = Predictions(torch.zeros(2, 2, scoring.num_logits(CLASSES)), boxes)
    losses = criterion_of(scoring)(output_of(predictions), targets)
    assert losses.final["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses.final["giou"].item() == pytest.approx(0, abs=1e-6)


@FAMILIES
def test_a_batch_without_objects_has_gradients_but_no_box_loss(scoring):
    predictions, targets = predictions_of(scoring, 2, 4), targets_of(0, 0)
    losses = criterion_of(scoring)(output_of(predictions), targets)
    losses.total.backward()
    assert losses.final["box"].item() == losses.final["giou"].item() == 0
    assert losses.final["class"].item() > 0
    assert losses.class_error.item() == 100
    assert predictions.boxes.grad.abs().sum() == 0
    assert predictions.logits.grad.abs().sum() > 0


@FAMILIES
def test_micro_batches_with_the_steps_counts_add_up_to_the_whole(scoring):
    predictions, targets = predictions_of(scoring, 4, 5), targets_of(2, 0, 7, 1)
    criterion = criterion_of(scoring)
    whole = criterion(output_of(predictions), targets).total
    parts = [(0, 1), (1, 4)]
    counts = total_counts([tally(targets[a:b], 5) for a, b in parts])
    assert counts == Counts(10, 8, 20)
    split = sum(
        criterion(
            output_of(Predictions(predictions.logits[a:b], predictions.boxes[a:b])),
            targets[a:b],
            counts,
        ).total
        for a, b in parts
    )
    assert split.item() == pytest.approx(whole.item(), rel=1e-6)


def test_auxiliary_losses_can_be_off_but_the_proposals_keep_theirs():
    layers = tuple(predictions_of(SIGMOID, 2, 5, seed) for seed in range(3))
    proposals = predictions_of(SIGMOID, 2, 30, seed=9)
    targets = targets_of(3, 2)
    output = output_of(*layers, proposals=proposals)
    full = criterion_of(SIGMOID)(output, targets)
    bare = criterion_of(SIGMOID, auxiliary_losses=False)(output, targets)
    assert list(full.terms) == ["layer0", "layer1", "final", "proposal"]
    assert list(bare.terms) == ["final", "proposal"]
    bare.total.backward()
    assert proposals.logits.grad.abs().sum() > 0
    assert layers[0].logits.grad is None
    weights = {"class": 2.0, "box": 5.0, "giou": 2.0}
    expected = sum(
        weight * bare.terms[name][term] for name in bare.terms for term, weight in weights.items()
    )
    assert bare.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_given_pairs_are_not_matched_and_repeats_divide_the_losses():
    """Denoising queries lead, bring their own pairs, and stay out of the detections."""
    targets = targets_of(2, 1)  # two groups of at most two objects: four denoising queries
    pairs = Pairs(torch.tensor([0, 1, 2, 3, 4, 6]), torch.tensor([0, 1, 0, 1, 2, 2]))
    layers = [predictions_of(SIGMOID, 2, 4 + 5, seed) for seed in range(2)]
    output = output_of(*layers, denoising=Denoising(4, pairs, groups=2))
    assert all(
        torch.equal(a.boxes, b.boxes[:, 4:]) for a, b in zip(output.layers, layers, strict=True)
    )
    losses = criterion_of(SIGMOID)(output, targets)
    assert list(losses.terms) == ["layer0", "final", "denoising_layer0", "denoising_final"]
    assert {"loss_class", "loss_denoising_class"} <= set(losses.measures())
    boxes = torch.cat([each.boxes for each in targets])[pairs.objects]
    found = layers[1].boxes[:, :4].flatten(0, 1)[pairs.queries]
    expected = (found - boxes).abs().sum() / (3 * 2)
    assert losses.terms["denoising_final"]["box"].item() == pytest.approx(expected.item())


def test_costs_have_weights_of_their_own():
    predictions, targets = predictions_of(SIGMOID, 1, 6), targets_of(2)
    same = criterion_of(SIGMOID, class_cost=2.0, box_cost=5.0, giou_cost=2.0)
    assert same.matcher.costs == criterion_of(SIGMOID).matcher.costs
    by_class = criterion_of(SIGMOID, box_cost=0.0, giou_cost=0.0)
    changed = by_class.matcher([predictions], targets).sets[0][0]
    best = predictions.logits[0][:, targets[0].labels].argmax(0)
    assert set(changed.queries.tolist()) == set(best.tolist())
    a, b = (each(output_of(predictions), targets) for each in (same, by_class))
    assert torch.equal(a.final["class"], a.final["class"])
    assert not torch.equal(a.final["box"], b.final["box"])


def test_proposals_learn_objectness_in_the_first_logit_only():
    proposals, targets = predictions_of(SIGMOID, 1, 20), targets_of(4)
    layer = predictions_of(SIGMOID, 1, 5, seed=2)
    named = [Target(torch.full_like(targets[0].labels, 2), targets[0].boxes)]
    criterion = criterion_of(SIGMOID)
    a = criterion(output_of(layer, proposals=proposals), targets).terms[PROPOSALS]
    b = criterion(output_of(layer, proposals=proposals), named).terms[PROPOSALS]
    assert torch.equal(a["class"], b["class"])
    a["class"].backward()
    assert (proposals.logits.grad[..., 0] < 0).sum() == 4
    assert (proposals.logits.grad[..., 1:] > 0).all()


def test_proposals_at_invalid_cells_give_finite_losses_and_gradients():
    logits = torch.zeros(1, 3, CLASSES, requires_grad=True)
    raw = torch.full((1, 3, 4), math.inf)
    offset = torch.zeros(1, 3, 4, requires_grad=True)
    proposals = Predictions(logits, (offset + raw).sigmoid())  # (1, 1, 1, 1)
    layer = predictions_of(SIGMOID, 1, 5)
    losses = criterion_of(SIGMOID)(output_of(layer, proposals=proposals), targets_of(2))
    losses.total.backward()
    assert losses.invalid_costs == 0
    assert torch.isfinite(losses.total)
    assert torch.isfinite(offset.grad).all()


@FAMILIES
def test_losses_are_float32_under_autocast_and_for_half_outputs(scoring):
    predictions, targets = predictions_of(scoring, 2, 5), targets_of(2, 1)
    half = Predictions(predictions.logits.bfloat16(), predictions.boxes.bfloat16())
    rounded = Predictions(half.logits.float(), half.boxes.float())
    expected = criterion_of(scoring)(output_of(rounded), targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion_of(scoring)(output_of(half), targets)
    assert losses.total.dtype == torch.float32
    assert torch.equal(losses.total, expected.total)


def test_cardinality_counts_queries_that_claim_an_object():
    logits = torch.tensor([[[9.0, 0, 0, 0], [0, 0, 0, 9.0], [0, 9.0, 0, 0]]])
    boxes = torch.full((1, 3, 4), 0.5)
    losses = criterion_of(SOFTMAX)(output_of(Predictions(logits, boxes)), targets_of(1))
    assert losses.cardinality_error.item() == 1  # two claims, one object
