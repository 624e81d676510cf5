import json

import numpy as np
import pytest
import torch
from scenes import judged, objects

from detrlab.boxes import box_iou
from detrlab.evaluation.analysis import (
    analyse,
    calibration,
    confusion,
    image_verdicts,
    object_fates,
    suggest_thresholds,
)
from detrlab.evaluation.coco import tide_errors
from detrlab.evaluation.matching import match
from detrlab.evaluation.records import Detected, GroundTruth


def build(annotated, detections, num_classes=2, num_images=1):
    """Objects (image, label, box[, crowd]) and detections (image, label, box, score)."""
    truth = GroundTruth.from_coco(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(num_images)],
            "categories": [{"id": k, "name": "abcdef"[k]} for k in range(num_classes)],
            "annotations": [
                {"image_id": o[0], "category_id": o[1], "bbox": o[2], "iscrowd": len(o) > 3}
                for o in annotated
            ],
        }
    )
    rows = [
        Detected(np.array([d[0]]), np.array([d[1]]), np.array([d[2]], float), np.array([d[3]]))
        for d in detections
    ]
    return truth, Detected.join(rows)


HERE, THERE, NEAR = [0, 0, 100, 100], [300, 300, 100, 100], [0, 0, 100, 60]


def test_sizes_agree_with_the_metrics():
    truth, detected = judged(0)
    analysis = analyse(truth, detected)
    for area, number in (("small", "ap_small"), ("large", "ap_large"), ("all", "ap")):
        values = [row.ap[area] for row in analysis.sizes if row.ap[area] is not None]
        assert np.mean(values) == pytest.approx(getattr(analysis.metrics, number))
    for k, row in enumerate(analysis.sizes):
        real = (truth.label == k) & ~truth.crowd
        assert row.objects["all"] == real.sum()
        assert row.objects["small"] == (real & (truth.area <= 32**2)).sum()


def test_the_area_below_the_curves_is_ap():
    analysis = analyse(*judged(1))
    for curve in analysis.curves:
        assert curve.ap.mean() == pytest.approx(analysis.metrics.per_class[curve.name])
        assert (np.diff(curve.precision, axis=1) <= 1e-12).all()
        reached = curve.scores[curve.scores > 0]
        assert (np.diff(reached) <= 0).all()


def test_thresholds_beat_every_other_score():
    truth, detected = judged(2, num_classes=2)
    matches = match(truth, detected)
    thresholds = suggest_thresholds(matches)
    count = (~truth.crowd).sum()
    of_account = matches.verdict[:, 0, 0] >= 0
    right = matches.verdict[:, 0, 0] == 1
    scores = np.unique(matches.score)
    best = max(
        2
        * (right & (matches.score >= s)).sum()
        / ((of_account & (matches.score >= s)).sum() + count)
        for s in scores
    )
    chosen = thresholds.overall
    assert chosen.f1 == pytest.approx(best)
    assert chosen.score not in scores
    kept = of_account & (matches.score >= chosen.score)
    assert chosen.precision == pytest.approx((right & kept).sum() / kept.sum())
    assert chosen.recall == pytest.approx((right & kept).sum() / count)


def test_a_rare_class_borrows_the_overall_threshold():
    truth, detected = judged(3, num_classes=3)
    rare = np.flatnonzero(truth.label == 2)
    truth = objects(truth, np.r_[np.flatnonzero(truth.label != 2), rare[:4]])
    thresholds = suggest_thresholds(match(truth, detected))
    assert thresholds.per_class["class 2"].borrowed
    assert thresholds.per_class["class 2"].score == thresholds.overall.score
    assert not thresholds.per_class["class 0"].borrowed
    json.dumps(thresholds.to_dict(), allow_nan=False)


def test_thresholds_exist_where_nothing_is_right_or_nothing_is_there():
    truth, detected = build([(0, 0, HERE)], [(0, 1, HERE, 0.9)])
    assert suggest_thresholds(match(truth, detected)).overall.score == 0.5
    analysis = analyse(*build([], []))
    assert analysis.thresholds.overall.recall is None
    json.dumps(analysis.to_dict(), allow_nan=False)


def test_confusion_in_a_scene_that_can_be_counted_by_hand():
    objects = [(0, 0, HERE), (0, 1, THERE), (1, 0, HERE), (1, 0, THERE)]
    truth, detected = build(
        [*objects, (2, 0, [500, 0, 90, 90], "crowd")],
        [
            (0, 0, HERE, 0.9),  # found
            (0, 1, HERE, 0.95),  # the object is found by its own class: a false alarm
            (0, 0, THERE, 0.8),  # b taken for a
            (0, 0, THERE, 0.7),  # again, but b is taken already: a false alarm
            (1, 0, [600, 0, 10, 10], 0.9),  # a false alarm
            (1, 0, HERE, 0.2),  # below the threshold: the object is missed
            (2, 0, [510, 10, 50, 50], 0.9),  # in the crowd: of no account
        ],
        num_images=3,
    )
    result = confusion(truth, detected, match(truth, detected), np.full(2, 0.5))
    assert result.counts.tolist() == [[1, 0, 2], [1, 0, 0], [2, 1, 0]]
    assert result.shares()[0].tolist() == [1 / 3, 0, 2 / 3]


@pytest.mark.parametrize("seed", range(4))
def test_confusion_counts_every_object_and_every_detection_once(seed):
    truth, detected = judged(seed, confused=0.4, crowd_share=0.0)
    result = confusion(truth, detected, match(truth, detected), np.full(4, 0.4))
    loud = detected.select(detected.score >= 0.4)
    assert result.counts[:-1].sum(axis=1).tolist() == np.bincount(truth.label, minlength=4).tolist()
    assert result.counts[:, :-1].sum(axis=0).tolist() == (
        np.bincount(loud.label, minlength=4).tolist()
    )


def corners(boxes):
    return torch.from_numpy(np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1))


def naive_tide(truth, detected):
    """The paper's six kinds, one detection at a time."""
    matches = match(truth, detected)
    counts = dict.fromkeys(["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"], 0)
    covered = set(matches.owner[matches.verdict[:, 0, 0] == 1, 0].tolist())
    used = set(covered)
    for d in np.flatnonzero(matches.verdict[:, 0, 0] == 0):
        box = corners(detected.boxes[matches.row[d]])
        here = np.flatnonzero((truth.image == matches.image[d]) & ~truth.crowd)
        overlaps = box_iou(box, corners(truth.boxes[here])).numpy()
        same = truth.label[here] == matches.label[d]
        best_same = overlaps[same].max(initial=0.0)
        best_other = overlaps[~same].max(initial=0.0)
        if 0.1 <= best_same < 0.5:
            counts["Loc"] += 1
            covered.add(here[same][overlaps[same].argmax()])
        elif best_other >= 0.5:
            counts["Cls"] += 1
            covered.add(here[~same][overlaps[~same].argmax()])
        elif best_same >= 0.5:
            counts["Dupe"] += 1
        elif max(best_same, best_other) < 0.1:
            counts["Bkg"] += 1
        else:
            counts["Both"] += 1
    assert used <= covered
    counts["Miss"] = int((~truth.crowd).sum()) - len(covered)
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_tide_counts_follow_the_paper(seed):
    truth, detected = judged(seed, confused=0.3, jitter=0.25, crowd_share=0.0, num_images=20)
    _, cost, counts = tide_errors(truth, detected)
    assert counts == naive_tide(truth, detected)
    assert all(value >= -1e-12 for value in cost.values())


def test_tide_names_the_one_thing_that_is_wrong():
    place = [[200 * k, 0, 100, 100] for k in range(10)]
    objects = [(0, k % 2, place[k]) for k in range(10)]
    scenes = {
        "Cls": [(0, 1 - k % 2, place[k], 0.9) for k in range(10)],
        "Loc": [(0, k % 2, [200 * k, 0, 100, 40], 0.9) for k in range(10)],
        "Miss": [(0, k % 2, place[k], 0.9) for k in range(0, 10, 3)],
        "Bkg": [
            *((0, k % 2, place[k], 0.5) for k in range(10)),
            *((0, k % 2, [200 * k, 500, 90, 90], 0.9) for k in range(10)),
        ],
    }
    for kind, detections in scenes.items():
        _, cost, _ = tide_errors(*build(objects, detections))
        assert max(cost, key=lambda key: cost[key] if key not in ("FP", "FN") else -1) == kind


def test_calibration_of_scores_that_mean_what_they_say():
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 1, 4000)
    right = rng.uniform(0, 1, 4000) < score
    objects = [(i, 0, HERE) for i in range(4000) if right[i]]
    truth, detected = build(
        objects, [(i, 0, HERE, s) for i, s in enumerate(score)], num_classes=1, num_images=4000
    )
    matches = match(truth, detected)
    honest = calibration(truth, detected, matches, suggest_thresholds(matches))
    assert honest.error < 0.03
    assert abs(honest.overconfidence) < 0.03
    loud = Detected(detected.image, detected.label, detected.boxes, np.sqrt(score))
    matches = match(truth, loud)
    boastful = calibration(truth, loud, matches, suggest_thresholds(matches))
    assert boastful.error > 0.12
    assert boastful.overconfidence > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_the_textbooks(seed):
    truth, detected = judged(seed, crowd_share=0.0)
    matches = match(truth, detected)
    result = calibration(truth, detected, matches, suggest_thresholds(matches))
    right = matches.verdict[:, 0, 0] == 1
    total = 0.0
    for low, high in zip(result.edges[:-1], result.edges[1:], strict=True):
        mine = (matches.score >= low) & ((matches.score < high) | (high == 1.0))
        if mine.any():
            total += mine.sum() * abs(matches.score[mine].mean() - right[mine].mean())
    # Scores on the edge of a bin may fall on either side.
    assert result.error == pytest.approx(total / len(right), abs=0.02)
    assert result.count.sum() == len(right)


def test_the_hardest_image_comes_first():
    truth, detected = build(
        [(0, 0, HERE), (1, 0, HERE), (1, 1, THERE), (2, 0, HERE), (3, 0, HERE, "crowd")],
        [*((i, 0, HERE, 0.9) for i in (0, 1, 3)), (2, 0, THERE, 0.9), (4, 1, THERE, 0.2)],
        num_images=5,
    )
    matches = match(truth, detected)
    thresholds = suggest_thresholds(matches)
    verdicts = image_verdicts(truth, matches, thresholds)
    assert [v.image_id for v in verdicts] == [2, 1, 0, 3, 4]
    assert (verdicts[0].missed, verdicts[0].false_alarms, verdicts[0].f1) == (1, 1, 0.0)
    assert verdicts[1].mistakes == 1
    assert verdicts[3].f1 == verdicts[4].f1 == 1.0
    found, fate = object_fates(matches, thresholds)
    assert found.tolist() == [True, True, False, False, False]
    assert (fate == 0).sum() == 1
