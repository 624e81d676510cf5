import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.evaluation import plots
from detrlab.evaluation.coco import Evaluator
from detrlab.evaluation.folder import write_analysis


@pytest.fixture(scope="module")
def shapes():
    return open_data("shapes").val


def test_everything_is_written_for_a_table(shapes, tmp_path):
    table = shapes.select(range(6))
    rng = np.random.default_rng(0)
    layers = []
    for noise in (9.0, 2.0):
        evaluator = Evaluator(table)
        truth = evaluator.truth
        for i, image_id in enumerate(truth.image_ids):
            mine = truth.image == i
            corners = truth.boxes[mine] + rng.normal(0, noise, (mine.sum(), 4))
            corners[:, 2:] = np.abs(corners[:, 2:]) + corners[:, :2]
            evaluator.add(image_id, corners, rng.uniform(0.3, 1, mine.sum()), truth.label[mine])
        layers.append(evaluator)
    analysis = write_analysis(table, layers[-1], tmp_path / "out", layers)
    values = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert values["ap"] == analysis.metrics.ap == layers[-1].metrics().ap
    assert [layer["ap"] for layer in values["layers"]] == [e.metrics().ap for e in layers]
    assert values["thresholds"]["overall"]["score"] == analysis.thresholds.overall.score
    assert {path.stem for path in (tmp_path / "out" / "pictures").iterdir()} == {
        *("precision_recall", "sizes", "confusion", "tide", "calibration", "layers")
    }
    with Image.open(tmp_path / "out" / "hard_images.jpg") as sheet:
        assert sheet.width > 400


class Gone:
    """Pictures whose files have vanished."""

    def name(self, i):
        return f"{i}.jpg"

    def read(self, i, _size):
        raise UserError(f"{i}.jpg cannot be read")


def test_a_missing_photograph_does_not_stop_the_report(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: [])
    table = dataclasses.replace(shapes.select(range(4)), pictures=Gone())
    write_analysis(table, Evaluator(table), tmp_path)
    with Image.open(tmp_path / "hard_images.jpg") as sheet:
        assert sheet.width > 400
