"""Tiny detectors of every kind with strong random weights, and one image for them."""

import torch

from detrlab.config import TrainConfig
from detrlab.explain import explain
from detrlab.presets import FIVE, build_network
from detrlab.structures import ImageBatch, Target
from tiny_detectors import tiny_config

PRESETS = (*FIVE, "deformable-detr-single-scale-dc5")
CLASSES = ("cat", "dog", "<b>bird</b>")


def make_network(preset, seed=0):
    """A network with random, strong weights: the initial values would hide mistakes."""
    config = tiny_config(preset, num_classes=len(CLASSES))
    network = build_network(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("encoder", "decoder", "queries")) and "norm" not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.5 if "sampling_offsets.bias" in name else 0.15))
    return network, config.criterion(TrainConfig())


def make_image():
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(7))
    return ImageBatch(pixels, torch.zeros(1, 96, 128, dtype=torch.bool))


TARGET = Target(
    labels=torch.tensor([0, 2]),
    boxes=torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.5, 0.4]]),
)


def explained(preset, **options):
    network, criterion = make_network(preset)
    return explain(network, criterion, make_image(), CLASSES, **options)
