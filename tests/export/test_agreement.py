"""Detections compared as sets, and the first layer that differs."""

import onnx
import pytest
import torch
from onnx import numpy_helper

from detrlab.detections import Detections
from detrlab.export import deploy
from detrlab.export.agreement import agreement, first_difference
from detrlab.presets import build_network
from tiny_detectors import tiny_config

TOLERANCE = (0.05, 1e-4)


def detections(boxes, scores, labels, size=(640, 640)):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        ("a", "b"),
        (0, 1),
        size,
    )


BOXES = [[0, 0, 10, 10], [50, 50, 90, 90], [50, 50, 90, 90]]
FIRST = detections(BOXES, [0.9, 0.8, 0.7], [0, 1, 0])


def test_order_does_not_matter():
    second = detections([BOXES[2], BOXES[0], BOXES[1]], [0.7, 0.9, 0.8], [0, 0, 1])
    found = agreement([FIRST], [second], TOLERANCE)
    assert (found.images, found.compared, found.lost, found.box, found.score) == (1, 3, 0, 0, 0)


def test_the_worst_difference_counts_in_pixels_of_640():
    moved = [[0, 0, 10, 10.5], *BOXES[1:]]
    second = detections(moved, [0.9, 0.8, 0.75], [0, 1, 0], size=(320, 160))
    first = detections(BOXES, [0.9, 0.8, 0.7], [0, 1, 0], size=(320, 160))
    found = agreement([first], [second], TOLERANCE)
    assert found.box == pytest.approx(1.0)
    assert found.score == pytest.approx(0.05)


@pytest.mark.parametrize(
    "second",
    [
        detections(BOXES[:2], [0.9, 0.8], [0, 1]),
        detections(BOXES, [0.9, 0.8, 0.7], [0, 1, 1]),
        detections([*BOXES[:2], [70, 50, 90, 90]], [0.9, 0.8, 0.7], [0, 1, 0]),
        detections([], [], []),
    ],
    ids=["missing", "another class", "elsewhere", "nothing"],
)
def test_what_has_no_counterpart_is_lost(second):
    found = agreement([FIRST], [second], TOLERANCE)
    assert found.lost == 3 if not len(second) else found.lost == 1


def test_only_what_rounding_moves_as_far_is_unstable():
    second = detections([[0, 0, 10, 10.3], *BOXES[1:]], [0.9, 0.8, 0.7], [0, 1, 0])
    near = detections([[0, 0, 10, 10.1], *BOXES[1:]], [0.9, 0.8, 0.7], [0, 1, 0])
    far = detections([[0, 0, 10, 10.2], *BOXES[1:]], [0.9, 0.8, 0.7], [0, 1, 0])
    cases = (([FIRST], 0, 0.3), ([FIRST, near], 0, 0.3), ([FIRST, far, near], 1, 0.0))
    for rounded, unstable, box in cases:
        found = agreement([FIRST], [second], TOLERANCE, [rounded].__getitem__)
        assert (found.unstable, found.box) == (unstable, pytest.approx(box, abs=1e-5))
    assert found.unstable_box == pytest.approx(0.3, abs=1e-5)


def test_something_is_compared_where_all_scores_are_low():
    low = detections(BOXES, [0.02, 0.015, 0.001], [0, 1, 0])
    assert agreement([low], [low], TOLERANCE).compared == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "module", ["network.encoder.neck.projections.0.0", "network.decoder.heads.0.boxes.layers.1"]
)
def test_the_first_layer_that_differs_is_named(module, tmp_path, plain_ops):  # noqa: ARG001
    network = build_network(tiny_config("detr", encoder_layers=1, decoder_layers=1)).eval()
    scoring = tiny_config("detr").scoring
    whole = deploy.Deployed(network, scoring, (0.0,) * 3, (1.0,) * 3).eval()
    path = tmp_path / "a.onnx"
    program = deploy.write_onnx(deploy.trace(whole, (128, 160)), path, {})
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 128, 160), generator=draw, dtype=torch.uint8)
    given = (images, torch.tensor([[160, 128]]))
    assert first_difference(program, path, *given) is None

    model = onnx.load(path)
    weight = network.get_submodule(module.removeprefix("network.")).weight.detach()
    for each in model.graph.initializer:
        values = torch.from_numpy(numpy_helper.to_array(each).copy())
        same = values.numel() == weight.numel() and torch.equal(
            values.flatten().sort().values, weight.flatten().sort().values
        )
        if same:
            each.CopyFrom(numpy_helper.from_array((1.5 * values).numpy(), each.name))
    onnx.save(model, path)
    found = first_difference(program, path, *given)
    assert found is not None
    assert found.module == module
    assert found.worst > 0.01
