"""Every detector can learn: gradients reach what trains, and four images can be overfitted."""

import pytest
import torch

from detrlab.config import TrainConfig
from detrlab.presets import FIVE, PRESETS, build_network, model_config
from detrlab.structures import ImageBatch, Target
from detrlab.training.optim import build_optimizer, clip_gradients, parameter_groups

SMALL = {
    "backbone": "test_resnet",
    "backbone_norms": "trained",
    "backbone_trains": "all",
    "width": 32,
    "num_heads": 4,
    "ffn_width": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
    "dropout": 0.0,
}


STEPS = 240


def parts_of(preset, **changes):
    config = model_config(preset, 2, **{**SMALL, **changes})
    return build_network(config), config.criterion(TrainConfig())


def four_images(scale=1):
    """Bright squares (class 0) and dark ones (class 1) on grey; the last image is empty."""
    pixels = torch.zeros(4, 3, 64, 64)
    squares = [
        [(0, 8, 8, 24), (1, 36, 32, 20)],
        [(1, 12, 30, 28)],
        [(0, 34, 6, 24), (0, 6, 36, 20)],
        [],
    ]
    targets = []
    for image, objects in enumerate(squares):
        boxes = torch.zeros(len(objects), 4)
        for row, (label, x, y, side) in enumerate(objects):
            pixels[image, :, y : y + side, x : x + side] = 2.0 if label == 0 else -2.0
            boxes[row] = torch.tensor([x + side / 2, y + side / 2, side, side]) / 64
        targets.append(Target(torch.tensor([o[0] for o in objects], dtype=torch.long), boxes))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return ImageBatch(pixels, torch.zeros(4, 64 * scale, 64 * scale, dtype=torch.bool)), targets


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("trains", ["late", "all"])
def test_what_trains_gets_a_gradient_and_what_is_frozen_none(preset, trains):
    norms = "frozen" if trains == "late" else "trained"
    network, criterion = parts_of(preset, backbone_trains=trains, backbone_norms=norms)
    network.train()
    # Zero-initialised layers and norms hide what lies behind them: move everything a little.
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in network.parameters():
            each += 0.03 * torch.randn(each.shape, generator=draw)
        for name, each in network.named_buffers():
            if name.endswith("weight"):  # of a frozen norm
                each += 0.1
    # Large enough for the coarsest level to have more than one cell to normalise over.
    images, targets = four_images(scale=2)
    criterion(network(images, targets), targets).total.backward()
    for name, each in network.named_parameters():
        if each.requires_grad:
            assert each.grad is not None, f"{name} gets no gradient"
            assert torch.isfinite(each.grad).all(), name
            # DETR's content starts at zero, so layer 0's attention weights cannot matter.
            if name.startswith("decoder.layers.0.self_attention."):
                continue
            assert each.grad.abs().sum() > 0, f"{name} gets a gradient of zero"
        else:
            assert each.grad is None, f"{name} is frozen but gets a gradient"
    frozen = [name for name, each in network.named_parameters() if not each.requires_grad]
    if preset.endswith("-dsp"):  # discrete sampling: the offsets never train
        frozen = [name for name in frozen if "sampling_offsets" not in name]
    assert bool(frozen) == (trains == "late")


@pytest.mark.slow
@pytest.mark.parametrize("preset", FIVE)
def test_four_images_can_be_overfitted(preset):
    network, criterion = parts_of(preset)
    config = TrainConfig(learning_rate=1e-3, groups=(), clip=1.0)
    optimizer = build_optimizer(parameter_groups(network, config), config)
    images, targets = four_images()
    network.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses = criterion(network(images, targets), targets)
        losses.total.backward()
        clip_gradients(optimizer, config.clip)
        optimizer.step()
    assert losses.class_error.item() == 0
    assert losses.final["box"].item() < 0.05  # L1 of the four numbers, a box
    assert losses.final["giou"].item() < 0.2
    matched = {
        (i, q) for i, pairs in enumerate(losses.matches["final"]) for q in pairs.queries.tolist()
    }
    output = network(images).final
    claims = criterion.scoring.claims(output.logits).nonzero().tolist()
    assert {tuple(claim) for claim in claims} == matched
