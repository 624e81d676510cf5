"""The small detector that comes with the package."""

import json
from pathlib import Path

import pytest

import detrlab
from detrlab.checkpoints.weights import BUILT_IN
from detrlab.data import batches
from detrlab.data.shapes import shapes
from detrlab.evaluation.coco import Evaluator, as_ground_truth, evaluate

ROOT = Path(__file__).parents[1]


def test_it_is_small_and_says_where_it_comes_from():
    assert BUILT_IN["shapes"].stat().st_size < 10e6
    detector = detrlab.load("shapes")
    assert detector.config.preset == "deformable-detr-two-stage"
    assert next(detector.network.parameters()).dtype.is_floating_point


def test_it_finds_things_on_its_picture():
    detector = detrlab.load("shapes")
    found = detector.predict(ROOT / "examples/shapes.png", threshold=detector.threshold)
    assert len(found.boxes) >= 2
    assert set(found.names) <= set(detector.classes)


def test_a_misspelt_name_is_told():
    with pytest.raises(detrlab.UserError, match="did you mean 'shapes'"):
        detrlab.load("shape")


@pytest.mark.slow
def test_it_is_as_good_as_its_file_says():
    detector = detrlab.load("shapes")
    _, val = shapes()
    evaluator = Evaluator(as_ground_truth(val))
    pictures = batches(val, detector.preprocessing, batch=8, train=False, workers=0)
    evaluate(detector.network, detector.scoring, pictures, evaluator)
    said = json.loads((ROOT / "docs/results/first-checkpoint.json").read_text())
    assert evaluator.metrics().ap == pytest.approx(said["as_packaged"]["ap"], abs=1e-3)
