"""What is measured: a detector of ours or transformers', ready to infer and to learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detrlab.checkpoints.hf_config import to_transformers
from detrlab.config import ModelConfig, TrainConfig
from detrlab.errors import UserError
from detrlab.models.backbones.timm import frozen_parameters
from detrlab.models.prepare import prepare
from detrlab.presets import build_network
from detrlab.presets.deformable import DeformableDetrTwoStage
from detrlab.presets.rtdetr import RtDetr
from detrlab.structures import ImageBatch, Target
from detrlab.training.optim import build_optimizer, clip_gradients, parameter_groups

OBJECTS = 7
"""Objects in every image, as in COCO on average."""


@dataclass(frozen=True)
class Subject:
    """Something to measure."""

    name: str
    """Of the library."""
    network: nn.Module
    predict: Callable[[], Any]
    loss: Callable[[], Tensor]
    clip: Callable[[], Any]
    optimizer: torch.optim.Optimizer

    def infer(self) -> Any:
        """Images to predictions, without gradients."""
        self.network.eval()
        with torch.no_grad():
            return self.predict()

    def learn(self) -> None:
        """One training step: forward, losses, backward, clipping, AdamW."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.clip()
        self.optimizer.step()


def pictures(
    size: tuple[int, int], batch: int, device: str = "cpu", objects: int = OBJECTS
) -> tuple[ImageBatch, list[Target]]:
    """Noise of one (height, width), unpadded, with objects at random positions."""
    draw = torch.Generator().manual_seed(0)
    images = ImageBatch(
        torch.randn(batch, 3, *size, generator=draw).to(device),
        torch.zeros(batch, *size, dtype=torch.bool, device=device),
    )
    targets = []
    for _ in range(batch):
        sides = torch.rand(objects, 2, generator=draw) * 0.3 + 0.05
        centers = torch.rand(objects, 2, generator=draw) * (1 - sides) + sides / 2
        labels = torch.zeros(objects, dtype=torch.long)
        targets.append(Target(labels.to(device), torch.cat([centers, sides], 1).to(device)))
    return images, targets


def ours(
    config: ModelConfig,
    size: tuple[int, int],
    batch: int = 1,
    device: str = "cpu",
    objects: int = OBJECTS,
) -> Subject:
    """Detrlab's detector."""
    network = prepare(build_network(config)).to(device)
    images, targets = pictures(size, batch, device, objects)
    train = TrainConfig()
    criterion = config.criterion(train)
    optimizer = build_optimizer(parameter_groups(network, train), train)

    return Subject(
        name="detrlab",
        network=network,
        predict=lambda: network(images).final,
        loss=lambda: criterion(network(images, targets), targets).total,
        clip=lambda: clip_gradients(optimizer, train.clip),
        optimizer=optimizer,
    )


def theirs(
    config: ModelConfig, size: tuple[int, int], batch: int = 1, device: str = "cpu"
) -> Subject:
    """The same architecture in transformers: equal dropout, losses and trainable parameters.

    Raises:
        UserError: transformers is not installed, has no such detector, or cannot take images
            so small.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            "--against transformers needs the package transformers: pip install transformers"
        ) from None
    if isinstance(config, DeformableDetrTwoStage):
        strides = [8 * 2**level for level in range(config.levels)]
        cells = sum(math.prod(math.ceil(side / stride) for side in size) for stride in strides)
        if cells < config.num_queries:
            raise UserError(
                "transformers' two-stage detector needs at least as many cells as queries: a "
                f"{size[1]} x {size[0]} image has {cells}, not {config.num_queries}: enlarge "
                f"--imgsz, or --set model.num_queries={cells}"
            )
    values = to_transformers(config, [f"class {index}" for index in range(config.num_classes)])
    # A loss for every decoder layer, as ours.
    values["auxiliary_loss"] = True
    (kind,) = values["architectures"]
    settings = getattr(transformers, kind.replace("ForObjectDetection", "Config"))
    model = getattr(transformers, kind)(settings(**values))
    if not isinstance(config, RtDetr):  # real-time detectors train all, in both libraries
        # Freeze what ours freezes: transformers leaves a timm backbone's stem trainable.
        body = model.get_submodule("model.backbone.model")
        for parameter in frozen_parameters(body, config.backbone_trains):
            parameter.requires_grad_(False)
    model.to(device)
    images, targets = pictures(size, batch, device)
    given: dict[str, Any] = {
        "pixel_values": images.pixels,
        "pixel_mask": (~images.padding).long(),
    }
    labels = [{"class_labels": each.labels, "boxes": each.boxes} for each in targets]
    train = TrainConfig()
    learned = [each for each in model.parameters() if each.requires_grad]
    # The optimiser is not what is compared: both get the fused one.
    optimizer = torch.optim.AdamW(
        learned, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )

    return Subject(
        name="transformers",
        network=model,
        predict=lambda: model(**given),
        loss=lambda: model(**given, labels=labels).loss,
        clip=lambda: nn.utils.clip_grad_norm_(learned, train.clip),
        optimizer=optimizer,
    )
