"""Train a detector that nobody here wrote, torchvision's FCOS, as a comparison trains ours.

    python benchmarks/outside_detector.py --data bccd --output runs/fcos \\
        --recipe docs/results/study-bccd/fcos.yaml
    detrlab compare ... --predictions fcos=runs/fcos/predictions.json

The same images in the same order with the same augmentation, the same first backbone, optimiser,
schedule and average of the weights, and the same evaluator. Only the network and its loss are
torchvision's: a feature pyramid and dense heads (FCOS, arXiv 2006.09214), with non-maximum
suppression. ``metrics.csv`` has the columns that our own runs have; its seconds are processor time.
"""

import argparse
import csv
import time
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from detrlab.boxes import cxcywh_to_xyxy
from detrlab.checkpoints.weights import first_network
from detrlab.compare.results import METRICS
from detrlab.config import BACKBONE_GROUP, Recipe
from detrlab.data import Loader, num_batches, open_data
from detrlab.data.batching import Batch
from detrlab.evaluation.coco import Evaluator
from detrlab.models.prepare import prepare
from detrlab.recipes import RECIPES
from detrlab.training.optim import (
    Schedule,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_rate,
)

FEATURES = "deformable-detr"
"""Whose feature maps the pyramid is built on."""
LEVELS = 2
"""So many of them; two coarser ones follow. The finest would cost more than all others."""
WIDTH = 64
SCORE = 0.01
"""Detections below it are dropped: AP needs the uncertain ones too."""


class Pyramid(nn.Module):
    """Our backbone with torchvision's feature pyramid, four levels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.out_channels = WIDTH
        extra = LastLevelP6P7(WIDTH, WIDTH)
        self.pyramid = FeaturePyramidNetwork(list(body.channels[-LEVELS:]), WIDTH, extra)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.body(pixels)[-LEVELS:]
        return self.pyramid(OrderedDict((str(i), each) for i, each in enumerate(maps)))


def build(recipe: Recipe, classes: list[str]) -> nn.Module:
    """FCOS on the first backbone of the recipe's detectors."""
    config = model_of(recipe, len(classes))
    start = first_network(config, recipe.train.weights, classes, seed=recipe.train.seed)
    body = prepare(start.network).backbone
    strides = [*body.strides[-LEVELS:], 2 * body.strides[-1], 4 * body.strides[-1]]
    anchors = AnchorGenerator(tuple((each,) for each in strides), ((1.0,),) * len(strides))
    torch.manual_seed(recipe.train.seed)
    network = FCOS(
        Pyramid(body),
        num_classes=len(classes) + 1,  # torchvision counts a background
        anchor_generator=anchors,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        score_thresh=SCORE,
        detections_per_img=100,
    )
    network.transform.resize = lambda image, target: (image, target)  # ours has resized them
    return network


def model_of(recipe: Recipe, classes: int):
    from detrlab.presets import model_config

    return model_config(FEATURES, classes, shared=recipe.model)


def unpadded(batch: Batch) -> list[Tensor]:
    """Each image without padding, as torchvision takes them."""
    valid = ~batch.images.padding
    sizes = zip(valid.any(2).sum(1).tolist(), valid.any(1).sum(1).tolist(), strict=True)
    return [
        pixels[:, :height, :width]
        for pixels, (height, width) in zip(batch.images.pixels, sizes, strict=True)
    ]


def targets(batch: Batch, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Boxes in pixels of the images, classes from 1."""
    found = []
    for image, target in zip(images, batch.targets, strict=True):
        height, width = image.shape[1:]
        scale = torch.tensor([width, height, width, height])
        boxes = cxcywh_to_xyxy(target.boxes) * scale
        found.append({"boxes": boxes.reshape(-1, 4), "labels": target.labels + 1})
    return found


@torch.inference_mode()
def judge(network: nn.Module, loader: Loader, evaluator: Evaluator) -> Evaluator:
    """The detections in pixels of the original images."""
    network.eval()
    for batch in loader.epoch():
        images = unpadded(batch)
        for i, found in enumerate(network(images)):
            height, width = batch.original_sizes[i]
            scale = torch.tensor([width, height, width, height]) / torch.tensor(
                [images[i].shape[2], images[i].shape[1]] * 2
            )
            labels = found["labels"] - 1
            known = labels >= 0
            evaluator.add(
                batch.image_ids[i],
                (found["boxes"] * scale)[known],
                found["scores"][known],
                labels[known],
            )
    network.train()
    return evaluator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", required=True, help="a name or a file")
    parser.add_argument("--epochs", type=int, help="another number than the recipe's")
    parser.add_argument("--clip", type=float, default=10.0, help="bound of the gradient norm")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES.get(options.recipe) or Recipe.load(options.recipe)
    train = recipe.train.over(options.epochs or recipe.train.epochs)
    data = open_data(options.data)
    network = build(recipe, list(data.train.classes))
    of_body = BACKBONE_GROUP.change(pattern=r"^backbone\.body\.")
    trains = any(each.requires_grad for each in network.backbone.body.parameters())
    groups = parameter_groups(network, train.change(groups=(of_body,) if trains else ()))
    optimizer = build_optimizer(groups, train)
    steps = num_batches(data.train, recipe.data, batch=train.batch, train=True)
    schedule = Schedule(train, steps)
    average = WeightAverage(network, train.ema_decay) if train.ema_decay else None
    common = {"seed": train.seed, "workers": 0, "phases": train.phases}
    loader = Loader(data.train, recipe.data, batch=train.batch, train=True, **common)
    judged = Loader(data.val, recipe.data, batch=train.batch, train=False, **common)
    rows, seconds, step = [], 0.0, 0
    network.train()
    for epoch in range(train.epochs):
        total, clock = 0.0, time.process_time()
        for batch in loader.epoch(epoch):
            images = unpadded(batch)
            set_rate(optimizer, schedule.rate(step))
            optimizer.zero_grad(set_to_none=True)
            loss = sum(network(images, targets(batch, images)).values())
            loss.backward()
            clip_gradients(optimizer, options.clip)
            optimizer.step()
            if average is not None:
                average.update(network)
            total += loss.item()
            step += 1
        seconds += time.process_time() - clock
        with nullcontext() if average is None else average.applied_to(network):
            evaluator = judge(network, judged, Evaluator(data.val))
        metrics = evaluator.metrics().to_dict()
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(seconds, 3),
            "loss": total / steps,
        }
        rows.append(row | {name: metrics[name] for name in METRICS})
        print(f"epoch {epoch + 1}: loss {total / steps:.3f}, AP {metrics['ap']:.3f}", flush=True)
        with (options.output / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        evaluator.save_predictions(options.output / "predictions.json")


if __name__ == "__main__":
    main()
