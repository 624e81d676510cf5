"""The numbers of explanation.json."""

import json

import pytest
import torch
from scenes_explained import CLASSES, PRESETS, TARGET, explained

from detrlab.explain.records import look_as_dict


@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_json_and_agrees_with_the_output(preset):
    explanation = explained(preset, target=TARGET, name=preset)
    values = json.loads(json.dumps(explanation.to_dict(top=5), allow_nan=False))
    assert values["classes"] == list(CLASSES)
    assert values["size"] == [96, 128]
    final = explanation.recording.layers[-1]
    assert len(values["detections"]) == 5
    for each, found in zip(values["detections"], explanation.detections(), strict=False):
        assert each["query"] == found.query
        assert each["box"] == pytest.approx(final.boxes[0, found.query].tolist(), abs=1e-4)
        assert each["path"][-1]["box"] == each["box"]
        assert each["path"][-1]["score"] == pytest.approx(each["score"], abs=1e-4)
        assert len(each["path"]) == 3
        assert ("reference" in each["path"][0]) == preset.startswith("deformable")
    assert (values["proposals"] is not None) == ("two-stage" in preset)
    for each, verdict in zip(values["objects"], explanation.verdicts(), strict=True):
        assert (each["label"], each["reason"]) == (verdict.label, verdict.reason)
        best = each["layers"][-1]["best"]
        assert best["query"] == verdict.final.best.query
        assert best["cost"] == pytest.approx(verdict.final.best.cost, abs=1e-4)


def test_points_hold_every_sample_and_all_weight():
    look = explained("deformable-detr").look(3)
    points = look_as_dict(look, digits=6)["points"]
    heads, levels, count = look.weights.shape
    assert len(points) == heads * levels * count
    assert sum(weight for *_, weight, _, _ in points) == pytest.approx(1, abs=1e-4)
    for x, y, weight, level, head in points:
        distance = (look.locations[head, level] - torch.tensor([x, y])).abs().sum(-1)
        place = int(distance.argmin())
        assert float(distance[place]) < 1e-5
        assert weight * heads == pytest.approx(float(look.weights[head, level, place]), abs=1e-5)


def test_a_map_is_the_mean_of_the_heads():
    look = explained("detr").look(3)
    values = look_as_dict(look, digits=6)["map"]
    assert values["shape"] == list(look.maps[0].shape[1:])
    assert values["weights"] == pytest.approx(look.maps[0].mean(0).flatten().tolist(), abs=1e-6)
    assert sum(values["weights"]) == pytest.approx(1, abs=1e-3)
