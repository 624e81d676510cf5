"""Queries that are learned boxes."""

import pytest
import torch

from detrlab.boxes import inverse_sigmoid
from detrlab.presets import build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")


def built(**changes):
    return build_network(tiny_config("deformable-detr-anchors", **changes)).eval()


def images():
    pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    return ImageBatch(pixels, torch.zeros(2, 96, 128, dtype=torch.bool))


def test_boxes_start_as_the_anchors():
    network = built(num_queries=300)
    anchors = network.queries.boxes.sigmoid()
    torch.testing.assert_close(anchors[:, 2:], torch.full((300, 2), 0.1192), rtol=0, atol=1e-4)
    assert anchors[:, :2].min() < 0.02
    assert anchors[:, :2].max() > 0.98
    for layer in network(images()).layers:
        torch.testing.assert_close(layer.boxes, anchors.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_every_query_follows_its_own_anchor():
    network = built()
    before = network(images()).layers[0]
    moved = torch.tensor([0.3, 0.4, 0.5, 0.2])
    with torch.no_grad():
        network.queries.boxes[3] = inverse_sigmoid(moved)
    queries, _ = network.queries(network.encoder.neck(network.backbone(images().pixels), images().padding))
    torch.testing.assert_close(queries.references.centers[:, 3], moved[:2].expand(2, -1))
    torch.testing.assert_close(queries.references.sizes[:, 3], moved[2:].expand(2, -1))
    after = network(images()).layers[0]
    torch.testing.assert_close(after.boxes[:, 3], moved.expand(2, -1))
    assert (after.logits[:, 3] - before.logits[:, 3]).abs().max() > 1e-4
