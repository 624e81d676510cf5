"""A detector of square images gives its boxes in pixels of the original image."""

import torch

from detrlab.api import Detector
from detrlab.config import DataConfig
from detrlab.presets import build_network
from tiny_detectors import tiny_config


def test_boxes_are_in_pixels_of_the_image_that_was_given():
    config = tiny_config("detr", num_classes=3)
    network = build_network(config, seed=1).eval()
    square = DataConfig(image_size=64, resize="square")
    detector = Detector(network, config, ("a", "b", "c"), preprocessing=square)
    pixels = torch.randint(0, 255, (40, 150, 3), generator=torch.Generator().manual_seed(0))
    images = detector.prepare(pixels.movedim(-1, 0).byte())
    assert images.pixels.shape == (1, 3, 64, 64)
    assert not images.padding.any()
    with torch.no_grad():
        x, y, w, h = network(images).final.boxes[0].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    expected = corners * torch.tensor([150, 40, 150, 40])
    found = detector.predict(pixels.byte().numpy(), threshold=0.0).boxes
    distance = (found[:, None] - expected).abs().max(-1).values
    assert len(found) > 0
    assert (distance.min(1).values < 1e-3).all()
    assert detector.at_size(128).prepare(torch.zeros(3, 9, 9).byte()).pixels.shape[-1] == 128
    explained = detector.explain(pixels.byte().numpy())
    assert explained.size == (40, 150)
