"""Random predictions and targets."""

import torch

from detrlab.structures import Predictions, Target

CLASSES = 3


def predictions_of(scoring, batch, queries, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, scoring.num_logits(CLASSES), generator=draw)
    boxes = torch.rand(batch, queries, 4, generator=draw) * 0.5 + 0.2
    return Predictions(logits, boxes)


def targets_of(*sizes, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        Target(
            torch.randint(CLASSES, (size,), generator=draw),
            torch.rand(size, 4, generator=draw) * 0.4 + 0.2,
        )
        for size in sizes
    ]
