"""The variant of docs/adding-a-variant.md: built, trained, saved and loaded from outside."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import detrlab
from detrlab.config import TrainConfig
from detrlab.errors import UserError
from detrlab.losses.pairs import Weighted
from detrlab.presets import OWN_PRESETS, model_config, parse_config
from detrlab.structures import ImageBatch, Target
from tiny_detectors import TINY, tiny_resnet

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "anchors.py"
NAME = "deformable-detr-anchors"
pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture(scope="module")
def anchors():
    spec = importlib.util.spec_from_file_location("anchors", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["anchors"] = module
    spec.loader.exec_module(module)
    return module


def build(**changes):
    return detrlab.build(NAME, ["a", "b"], **{"backbone": tiny_resnet(), **TINY, **changes})


def batch():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 96, 128, generator=draw)
    targets = [
        Target(torch.tensor([0, 1]), torch.rand(2, 4, generator=draw) * 0.3 + 0.2),
        Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)),
    ]
    return ImageBatch(pixels, torch.zeros(2, 96, 128, dtype=torch.bool)), targets


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.usefixtures("anchors")
def test_it_trains_saves_and_loads(tmp_path):
    detector = build()
    images, targets = batch()
    output = detector.network(images, targets)
    first = output.layers[0].boxes
    torch.testing.assert_close(
        first, detector.network.queries.boxes.sigmoid().expand(2, -1, -1), rtol=0, atol=1e-5
    )
    detector.config.criterion(TrainConfig())(output, targets).total.backward()
    assert all(p.grad is not None for p in detector.network.parameters() if p.requires_grad)
    again = detrlab.load(detector.save(tmp_path / "anchors"))
    assert (again.config, again.classes) == (detector.config, ("a", "b"))
    assert torch.equal(again.network.queries.boxes, detector.network.queries.boxes)


@pytest.mark.usefixtures("anchors")
def test_a_loss_term_can_be_added():
    criterion = build().config.criterion(TrainConfig())
    term = Weighted("iou", 2.0, lambda pairs: (1 - pairs.iou).sum() / pairs.counts.objects)
    images, targets = batch()
    output = build().network(images, targets)
    more = dataclasses.replace(criterion, terms=(*criterion.terms, term))(output, targets)
    expected = criterion(output, targets).total + 2 * sum(row["iou"] for row in more.terms.values())
    torch.testing.assert_close(more.total, expected)
    assert "loss_iou" in more.measures()


def test_the_command_line_imports_it(monkeypatch):
    for name in ("other_anchors", "anchors"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv(OWN_PRESETS, "no_such_module")
    with pytest.raises(UserError, match="no_such_module"):
        model_config("no-such-model", 2)
    monkeypatch.delenv(OWN_PRESETS)
    monkeypatch.delitem(sys.modules, "anchors")
    monkeypatch.setenv(OWN_PRESETS, "anchors")
    monkeypatch.chdir(EXAMPLE.parent)
    assert model_config(NAME, 2).preset == NAME
    assert "" not in sys.path


def test_settings_of_earlier_versions_are_read():
    old = {
        "preset": "deformable-detr",
        "num_classes": 2,
        "neck": "pyramid",
        "levels": 1,
        "position_offset": -0.5,
        "attention": "deformable",
        "points": 4,
        "queries": "points",
        "num_queries": 300,
        "decoder_norm": False,
        "refine": False,
        "scoring": "sigmoid",
        "dilation": True,
    }
    config = parse_config(old)
    assert (config.preset, config.levels) == ("deformable-detr-single-scale-dc5", 1)
    assert parse_config({**old, "refine": True}).preset == "deformable-detr-refine"
    with pytest.raises(UserError, match=r"dense.*points"):
        parse_config({**old, "attention": "dense"})


@pytest.mark.parametrize("setting", ["refine", "scoring", "attention"])
def test_a_setting_that_became_a_preset_says_so(setting):
    with pytest.raises(UserError, match=f"{setting}.*deformable-detr-two-stage"):
        model_config("detr", 2, **{setting: True})
