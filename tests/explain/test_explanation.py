"""The numbers of explanation.json."""

import json

import pytest
from scenes_explained import CLASSES, PRESETS, TARGET, explained


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
        assert (each["path"][0]["reference"] is None) == preset.startswith("detr")
    for each, verdict in zip(values["objects"], explanation.verdicts(), strict=True):
        assert (each["label"], each["reason"]) == (verdict.label, verdict.reason)
        assert each["best"]["query"] == verdict.best.query
