"""The demo: what its five detectors start from, and that they learn."""

import json
from pathlib import Path

import pytest

from detrlab.checkpoints.weights import figures, first_network
from detrlab.data import open_data, shapes
from detrlab.errors import UserError
from detrlab.presets import FIVE, model_config
from detrlab.recipes import recipe
from detrlab.training.loop import plan, train

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "docs/results/demo-weights.json").read_text())


def start(preset, **changes):
    tiny = recipe("tiny")
    classes = shapes.SHAPES_EASY.classes
    config = model_config(preset, len(classes), **{**tiny.model, **changes})
    return first_network(config, tiny.train.weights, classes)


@pytest.mark.parametrize("preset", FIVE)
def test_packaged_weights_give_everything_but_the_class_rows(preset):
    report = start(preset).report
    assert report.reinitialised
    assert all(".classes." in name for name in report.reinitialised)
    assert set(report.resized.values()) <= {"row 0, the objectness, kept; the others new"}
    assert not report.left_aside
    assert any("ImageNet" in note for note in report.notes)
    assert {name.split(".")[0] for name in report.kept} >= {"backbone", "encoder", "decoder"}


def test_packaged_weights_are_small():
    assert sum(figures(preset).stat().st_size for preset in FIVE) < 4e6


def test_other_detectors_are_told_what_to_start_from():
    with pytest.raises(UserError, match=r"detr-sigmoid.*--weights imagenet"):
        start("detr-sigmoid")


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="width 64 instead of 32"):
        start("detr", width=32)


def test_the_demo_never_shows_what_the_weights_were_trained_on():
    other = shapes.FIGURES
    assert not {*other.classes} & {*shapes.SHAPES_EASY.classes}
    assert other.stream != shapes.SHAPES_EASY.stream
    assert all(RESULTS[preset]["trained on"].startswith(other.name) for preset in FIVE)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["detr", "deformable-detr"])
def test_one_epoch_learns(preset, tmp_path):
    tiny, data = recipe("tiny").over(1), open_data("shapes-easy")
    outcome = train(plan(preset, tiny, data), tmp_path / "run", data)
    assert outcome.metrics["ap"] > 0.1
