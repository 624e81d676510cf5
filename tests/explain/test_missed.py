"""Why an object was missed: the cost in its terms, and one scene for each reason."""

import math

import pytest
import torch
from scenes_explained import PRESETS, TARGET, explained
from scipy.optimize import linear_sum_assignment

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.config import TrainConfig
from detrlab.explain.missed import explain_objects, find_objects, matching_costs, sentence
from detrlab.presets.parts import focal_criterion
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import Predictions, Target

HERE, THERE, FAR = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1]


def layer(*queries):
    """Each query: a box and its scores for two classes, as a sigmoid detector says them."""
    boxes = torch.tensor([[box for box, *_ in queries]])
    scores = torch.tensor([[scores for _, *scores in queries]])
    return Predictions(torch.logit(scores.clamp(1e-4, 1 - 1e-4)), boxes)


def judged(*layers, labels=(0,), boxes=(HERE,), **options):
    target = Target(torch.tensor(labels), torch.tensor(boxes))
    matcher = focal_criterion(TrainConfig()).matcher
    return explain_objects(layers, target, SigmoidScoring(), matcher, **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_terms_add_up_to_the_matchers_cost(preset):
    explanation = explained(preset, target=TARGET)
    scoring, final = explanation.scoring, explanation.recording.layers[-1]
    matcher = explanation.criterion.matcher
    costs = matching_costs(final, TARGET, matcher)
    # By hand, number by number.
    for query in (0, 7, 23):
        for index in range(2):
            label, box = int(TARGET.labels[index]), TARGET.boxes[index]
            logits = final.logits[0, query]
            if isinstance(scoring, SoftmaxScoring):
                classes = -float(logits.softmax(0)[label])
            else:
                p = 1 / (1 + math.exp(-float(logits[label])))
                classes = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
                classes -= 0.75 * p**2 * -math.log(1 - p + 1e-8)
                classes *= 2
            distance = sum(
                abs(float(a - b)) for a, b in zip(final.boxes[0, query], box, strict=True)
            )
            assert float(costs[query, index, 0]) == pytest.approx(classes, abs=1e-5)
            assert float(costs[query, index, 1]) == pytest.approx(5 * distance, rel=1e-5)
    # And as a whole: the pairs that minimise the sum are the matcher's.
    queries, objects = linear_sum_assignment(costs.sum(-1).numpy())
    pairs = matcher([final], [TARGET]).sets[0][0]
    assert dict(zip(objects, queries, strict=True)) == dict(
        zip(pairs.objects.tolist(), pairs.queries.tolist(), strict=True)
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_verdicts_agree_with_the_output(preset):
    explanation = explained(preset, target=TARGET)
    corners = cxcywh_to_xyxy(explanation.recording.layers[-1].boxes[0])
    for verdict in explanation.verdicts():
        overlap = box_iou(corners, cxcywh_to_xyxy(TARGET.boxes[verdict.index])[None])
        assert verdict.closest.query == int(overlap.argmax())
        assert verdict.closest.iou == pytest.approx(float(overlap.max()))
        final = explanation.recording.layers[-1]
        costs = matching_costs(final, TARGET, explanation.criterion.matcher)[:, verdict.index]
        assert verdict.best.cost == pytest.approx(float(costs.sum(-1).min()), abs=1e-5)


BESIDE, CLOSE = [0.4, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2]  # IoU 1/3 and .82 with HERE


@pytest.mark.parametrize(
    ("reason", "queries", "options"),
    [
        ("found", [(HERE, 0.9, 0.1), (FAR, 0.1, 0.1)], {}),
        ("unsure", [(HERE, 0.2, 0.1), (FAR, 0.6, 0.1)], {}),
        ("found", [(HERE, 0.2, 0.1)], {"threshold": 0.15}),
        ("badly placed", [(BESIDE, 0.9, 0.1), (FAR, 0.9, 0.1)], {}),
        ("unseen", [(FAR, 0.9, 0.1), (THERE, 0.9, 0.1)], {}),
        ("another class", [(HERE, 0.2, 0.8)], {}),
    ],
)
def test_one_object(reason, queries, options):
    (verdict,) = judged(layer(*queries), **options)
    assert verdict.reason == reason
    assert verdict.rival == (1 if reason == "another class" else None)
    assert verdict.lost_at is None


def test_two_objects_in_one_place():
    one = layer((HERE, 0.9, 0.1), (FAR, 0.1, 0.1))
    verdicts = judged(one, labels=(0, 0), boxes=(HERE, CLOSE))
    assert [verdict.reason for verdict in verdicts] == ["found", "taken"]
    assert verdicts[1].rival == 0
    # An unsure box over objects of two classes belongs to the one that it fits best.
    one = layer((HERE, 0.2, 0.05), (FAR, 0.05, 0.05))
    verdicts = judged(one, labels=(0, 1), boxes=(HERE, CLOSE))
    assert [verdict.reason for verdict in verdicts] == ["unsure", "taken"]
    assert verdicts[1].rival == 0


def test_the_layer_that_lost_it_is_named():
    sure, unsure = layer((HERE, 0.9, 0.1)), layer((HERE, 0.1, 0.1))
    away = layer((FAR, 0.9, 0.1))
    for layers, lost_at in (((unsure, sure, away, unsure), 2), ((away, sure), None)):
        assert [verdict.lost_at for verdict in judged(*layers)] == [lost_at]


def test_more_objects_than_queries_and_none():
    one = layer((HERE, 0.9, 0.1))
    verdicts = judged(one, labels=(0, 0), boxes=(HERE, THERE))
    assert [verdict.reason for verdict in verdicts] == ["found", "unseen"]
    assert judged(one, labels=(), boxes=torch.zeros(0, 4).tolist()) == []


def test_each_object_is_found_once_by_the_highest_score():
    iou = torch.tensor([[0.6, 0.7], [0.9, 0.8], [0.9, 0.2]])
    assert find_objects(iou, [0, 0, 0], [0, 0]) == {1: 0, 0: 1}
    assert find_objects(iou, [0, 1, 0], [0, 0]) == {1: 0, 0: 2}


def test_the_sentence_names_numbers_a_person_can_check():
    (verdict,) = judged(layer((HERE, 0.9, 0.1)), layer((HERE, 0.2, 0.1)))
    text = sentence(verdict, ("mask", "face"), 0.3)
    best = verdict.best
    assert text.startswith("object 0 (mask) missed:")
    for fact in ("0.30", f"query {best.query}", f"{best.cost:.2f}", f"{best.cost_classes:.2f}"):
        assert fact in text
    assert text.endswith("decoder layer 2.")
