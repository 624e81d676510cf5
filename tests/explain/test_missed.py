"""Why an object was missed: the cost taken apart, and one scene for each reason."""

import math

import pytest
import torch
from scenes_explained import PRESETS, TARGET, explained

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.explain.missed import explain_objects, find_objects, matching_costs, sentence
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import ModelOutput, Predictions, Target
from REMOVED import Weights, match  # TODO

WEIGHTS = Weights(classes=2.0)
HERE, THERE, FAR = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1]


def layer(*queries):
    """Each query: a box and its scores for two classes, as a sigmoid detector says them."""
    boxes = torch.tensor([[box for box, *_ in queries]])
    scores = torch.tensor([[scores for _, *scores in queries]])
    return Predictions(torch.logit(scores.clamp(1e-4, 1 - 1e-4)), boxes)


def judged(*layers, labels=(0,), boxes=(HERE,), **options):
    target = Target(torch.tensor(labels), torch.tensor(boxes))
    output = ModelOutput(tuple(layers), None)
    return explain_objects(output, 0, target, SigmoidScoring(), **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_terms_add_up_to_the_matchers_cost(preset):
    explanation = explained(preset, target=TARGET)
    final = explanation.recording.output.final
    one = Predictions(final.logits[1:2], final.boxes[1:2])
    weights = Weights(classes=explanation.scoring.class_weight)
    costs = matching_costs(one, TARGET, explanation.scoring, weights)
    # By hand, number by number.
    for query in (0, 7, 23):
        for index in range(2):
            label, box = int(TARGET.labels[index]), TARGET.boxes[index]
            logits = one.logits[0, query]
            if isinstance(explanation.scoring, SoftmaxScoring):
                classes = -float(logits.softmax(0)[label])
            else:
                p = 1 / (1 + math.exp(-float(logits[label])))
                classes = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
                classes -= 0.75 * p**2 * -math.log(1 - p + 1e-8)
                classes *= 2
            distance = sum(
                abs(a - b) for a, b in zip(one.boxes[0, query].tolist(), box.tolist(), strict=True)
            )
            assert float(costs.classes[query, index]) == pytest.approx(classes, abs=1e-5)
            assert float(costs.boxes[query, index]) == pytest.approx(5 * distance, rel=1e-5)
    # And as a whole: the pairs that minimise the sum are the matcher's.
    from scipy.optimize import linear_sum_assignment

    queries, objects = linear_sum_assignment(costs.total.numpy())
    pairs = match(one, [TARGET], explanation.scoring, weights)[0]
    assert dict(zip(objects, queries, strict=True)) == dict(
        zip(pairs.objects.tolist(), pairs.queries.tolist(), strict=True)
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_verdicts_agree_with_the_output(preset):
    explanation = explained(preset, target=TARGET)
    final = explanation.recording.output.final
    for verdict in explanation.verdicts():
        corners = cxcywh_to_xyxy(final.boxes[1])
        overlap = box_iou(corners, cxcywh_to_xyxy(TARGET.boxes[verdict.index])[None])
        assert verdict.final.closest.query == int(overlap.argmax())
        assert verdict.final.closest.iou == pytest.approx(float(overlap.max()))
        best = verdict.final.best
        assert best.cost == pytest.approx(best.cost_classes + best.cost_boxes + best.cost_giou)
        assert best.cost <= verdict.final.matched.cost + 1e-6
        assert len(verdict.layers) == 3


def test_found():
    (verdict,) = judged(layer((HERE, 0.9, 0.1), (FAR, 0.1, 0.1)))
    assert verdict.reason == "found"
    assert verdict.final.found
    assert verdict.lost_at is None


def test_unsure():
    (verdict,) = judged(layer((HERE, 0.2, 0.1), (FAR, 0.6, 0.1)))
    assert verdict.reason == "unsure"
    assert verdict.final.best.query == 0
    assert verdict.final.best.score == pytest.approx(0.2)


def test_the_threshold_decides():
    (verdict,) = judged(layer((HERE, 0.2, 0.1)), threshold=0.15)
    assert verdict.reason == "found"


def test_another_class():
    (verdict,) = judged(layer((HERE, 0.2, 0.8)))
    assert (verdict.reason, verdict.rival_class) == ("another class", 1)


def test_badly_placed():
    beside = [0.4, 0.3, 0.2, 0.2]  # IoU 1/3
    (verdict,) = judged(layer((beside, 0.9, 0.1), (FAR, 0.9, 0.1)))
    assert verdict.reason == "badly placed"
    assert verdict.final.closest.iou == pytest.approx(1 / 3, abs=1e-5)


def test_unseen():
    (verdict,) = judged(layer((FAR, 0.9, 0.1), (THERE, 0.9, 0.1)))
    assert verdict.reason == "unseen"


def test_shared():
    """Two objects almost in one place, and one detection for both."""
    beside = [0.32, 0.3, 0.2, 0.2]
    verdicts = judged(layer((HERE, 0.9, 0.1), (FAR, 0.1, 0.1)), labels=(0, 0), boxes=(HERE, beside))
    assert [verdict.reason for verdict in verdicts] == ["found", "shared"]
    assert verdicts[1].rival_object == 0


def test_taken():
    """An unsure box over two objects of other classes belongs to the one it fits best."""
    verdicts = judged(
        layer((HERE, 0.2, 0.05), (FAR, 0.05, 0.05)),
        labels=(0, 1),
        boxes=(HERE, [0.31, 0.3, 0.2, 0.2]),
    )
    assert verdicts[0].reason == "unsure"
    assert (verdicts[1].reason, verdicts[1].rival_object) == ("taken", 0)


def test_left_out():
    (verdict,) = judged(layer((HERE, 0.5, 0.1), (FAR, 0.9, 0.1)), limit=1)
    assert verdict.reason == "left out"


def test_the_layer_that_lost_it_is_named():
    sure, unsure = layer((HERE, 0.9, 0.1)), layer((HERE, 0.1, 0.1))
    away = layer((FAR, 0.9, 0.1))
    assert judged(unsure, sure, away, unsure)[0].lost_at == 2
    assert judged(unsure, sure, away, unsure)[0].box_lost_at is None
    assert judged(unsure, unsure, away, away)[0].lost_at is None
    assert judged(unsure, unsure, away, away)[0].box_lost_at == 2
    assert judged(away, sure)[0].lost_at is None


def test_more_objects_than_queries():
    verdicts = judged(layer((HERE, 0.9, 0.1)), labels=(0, 0), boxes=(HERE, THERE))
    assert [verdict.reason for verdict in verdicts] == ["found", "unseen"]
    assert verdicts[1].final.matched is None


def test_no_objects():
    assert judged(layer((HERE, 0.9, 0.1)), labels=(), boxes=torch.zeros(0, 4).tolist()) == []


def test_each_object_is_found_once_by_the_surest():
    iou = torch.tensor([[0.6, 0.7], [0.9, 0.8], [0.9, 0.2]])
    assert find_objects(iou, [0, 0, 0], [0, 0]) == {1: 0, 0: 1}
    assert find_objects(iou, [0, 1, 0], [0, 0]) == {1: 0, 0: 2}


def test_the_sentence_names_numbers_a_person_can_check():
    (verdict,) = judged(layer((HERE, 0.9, 0.1)), layer((HERE, 0.2, 0.1)))
    text = sentence(verdict, ("mask", "face"), 0.3)
    best = verdict.final.best
    assert text.startswith("object 0 (mask) missed: its box is there, but scores below 0.30")
    assert f"cost {best.cost:.2f} = class {best.cost_classes:.2f}" in text
    assert text.endswith("It was lost at decoder layer 2.")
