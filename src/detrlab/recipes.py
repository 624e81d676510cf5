"""The recipes: full sets of settings for training, by name."""

from __future__ import annotations

from typing import Any

from detrlab.config import BACKBONE_GROUP, DataConfig, Recipe, TrainConfig, unit_square
from detrlab.errors import UserError, did_you_mean

# 500 epochs are the published checkpoints' schedule; the repository's default is 300 and 200.
_PAPER_DETR: dict[str, Any] = {
    "epochs": 500,
    "batch": 64,
    "micro_batch": 4,
    "learning_rate": 1e-4,
    "drop_epoch": 400,
}

# EfficientNet-Lite was trained on (value - 127) / 128.
_LITE0_MEAN = (127 / 255, 127 / 255, 127 / 255)
_LITE0_STD = (128 / 255, 128 / 255, 128 / 255)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="tiny",
            description="The demo. Small transformers on a frozen ImageNet backbone start from "
            "packaged weights, trained on other generated pictures with other classes, and are "
            "fine-tuned on small generated pictures.",
            model={
                "backbone": "tf_efficientnet_lite0",
                "backbone_norms": "frozen",
                "backbone_trains": "none",
                "width": 64,
                "num_heads": 4,
                "ffn_width": 128,
                "encoder_layers": 1,
                "decoder_layers": 3,
                "num_queries": 10,
                "dropout": 0.0,
            },
            train=TrainConfig(
                epochs=4, batch=8, learning_rate=5e-4, drop_epoch=3, weights="figures"
            ),
            data=DataConfig(
                data="shapes-easy",
                image_size=128,
                max_size=128,
                augmentation="none",
                workers=0,
                mean=_LITE0_MEAN,
                std=_LITE0_STD,
            ),
        ),
        Recipe(
            name="laptop",
            description="EfficientNet-Lite0 with ImageNet weights, 512 px, a small transformer: an "
            "evening for five detectors and a thousand photographs on a laptop's CPU.",
            model={
                "backbone": "tf_efficientnet_lite0",
                "width": 128,
                "ffn_width": 512,
                "encoder_layers": 3,
                "decoder_layers": 3,
                "num_queries": 100,
                "dropout": 0.0,
            },
            # How it was found: docs/recipe.md.
            train=TrainConfig(
                epochs=20,
                batch=4,
                micro_batch=2,  # images of one shape together: a quarter less to compute
                learning_rate=5e-4,
                drop_epoch=15,
                warmup_steps=100,
                ema_decay=0.998,
                class_weight=5.0,  # at 2 second boxes and wrong classes cost most
            ),
            # DETR's softmax keeps its own, 1: nothing else was tried there.
            train_each={"detr": {"class_weight": None}, "detr-dc5": {"class_weight": None}},
            data=DataConfig(
                image_size=512,
                max_size=512,
                augmentation="strong",
                mean=_LITE0_MEAN,
                std=_LITE0_STD,
            ),
        ),
        Recipe(
            name="photos",
            description="Fine-tune the packaged COCO detector, DEIMv2-Femto, on some hundred "
            "photographs: an hour on a laptop's CPU.",
            train=TrainConfig(
                epochs=24,
                batch=8,
                learning_rate=5e-4,
                groups=(BACKBONE_GROUP.change(factor=0.5),),
                decay_norms=False,
                schedule="flat_cosine",
                flat_part=0.5,
                final_factor=0.02,
                warmup_steps=100,
                ema_decay=0.998,
                plain_epochs=2,
                weights="coco",
            ),
            data=unit_square(512).change(augmentation="mild", repeat_threshold=0.3),
        ),
        Recipe(
            name="cppe5",
            description="The original experiment: CPPE-5, 50 epochs, batch 16. What it did not "
            "state is assumed.",
            train=TrainConfig(
                epochs=50, batch=16, micro_batch=4, learning_rate=1e-4, drop_epoch=40
            ),
            data=DataConfig(data="cppe5"),
            assumed=(
                "model.backbone",
                "model.backbone_trains",
                "model.dropout",
                "train.weights",
                "train.groups",
                "train.clip",
                "train.seed",
                "train.micro_batch",
                "data.image_size",
                "data.max_size",
                "data.augmentation",
            ),
        ),
        # Not run yet. docs/cppe5.md gives the source of every difference to cppe5.
        Recipe(
            name="cppe5-improved",
            description="CPPE-5 from COCO weights, with more and smaller steps. Not run yet.",
            train=TrainConfig(
                epochs=50,
                batch=8,
                micro_batch=4,
                learning_rate=1e-4,  # 2e-4 at a batch of 32, by the square-root rule for Adam
                drop_epoch=40,
                warmup_steps=125,  # an epoch
                weights="coco",
            ),
            train_each={
                # 1e-4 at a batch of 64, by the same rule.
                "detr": {"learning_rate": 3.5e-5},
                "detr-dc5": {"learning_rate": 3.5e-5},
            },
            data=DataConfig(data="cppe5"),
        ),
        Recipe(
            name="paper",
            description="Each original's own schedule: fair to the papers, not to one another.",
            train=TrainConfig(
                epochs=50, batch=32, micro_batch=2, learning_rate=2e-4, drop_epoch=40
            ),
            train_each={
                "detr": _PAPER_DETR,
                "detr-dc5": {**_PAPER_DETR, "micro_batch": 1},
                "detr-sigmoid": _PAPER_DETR,
            },
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A named recipe.

    Raises:
        UserError: unknown name; the closest match is named.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]
