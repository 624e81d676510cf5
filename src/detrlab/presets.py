"""The detectors as rows that show only what differs, and the recipes."""

from __future__ import annotations

from typing import Any

from detrlab.config import DataConfig, ModelConfig, Recipe, TrainConfig
from detrlab.errors import UserError, did_you_mean

# DETR is what ModelConfig's defaults say: dense attention on C5, learned positions, softmax.
_DETR: dict[str, Any] = {}
_DEFORMABLE: dict[str, Any] = {
    "neck": "pyramid",
    "levels": 4,
    "position_offset": -0.5,
    "attention": "deformable",
    "ffn_width": 1024,
    "queries": "points",
    "num_queries": 300,
    "decoder_norm": False,
    "scoring": "sigmoid",
}
_SINGLE_SCALE = {**_DEFORMABLE, "levels": 1}

PRESETS: dict[str, dict[str, Any]] = {
    "detr": _DETR,
    "detr-dc5": {**_DETR, "dilation": True},
    "deformable-detr": _DEFORMABLE,
    "deformable-detr-refine": {**_DEFORMABLE, "refine": True},
    "deformable-detr-two-stage": {**_DEFORMABLE, "refine": True, "queries": "proposals"},
    "deformable-detr-single-scale": _SINGLE_SCALE,
    "deformable-detr-single-scale-dc5": {**_SINGLE_SCALE, "dilation": True},
    # A rung of the ladder, not a published detector: DETR with Deformable DETR's loss and queries.
    "detr-sigmoid": {**_DETR, "scoring": "sigmoid", "num_queries": 300},
}

FIVE = tuple(PRESETS)[:5]
"""The detectors of the original experiment, in the order of its table."""

ORIGINALS = (*FIVE, "deformable-detr-single-scale", "deformable-detr-single-scale-dc5")
"""The detectors that the original repositories can build, and published weights of."""

LADDER = (
    "detr",
    "detr-sigmoid",
    "deformable-detr-single-scale",
    "deformable-detr",
    "deformable-detr-refine",
    "deformable-detr-two-stage",
)
"""From DETR to two-stage Deformable DETR, one idea at a time."""

BESIDE_THE_LADDER = {
    "detr-dc5": "detr",
    "deformable-detr-single-scale-dc5": "deformable-detr-single-scale",
}
"""Variants of a rung that no other rung builds on, and the rung they are compared with."""


def model_config(preset: str, num_classes: int, **changes: Any) -> ModelConfig:
    """The architecture of a named detector.

    Args:
        preset: a row of ``PRESETS``.
        num_classes: K, the classes of the data.
        **changes: fields of ``ModelConfig`` that should differ from the row.

    Raises:
        UserError: unknown preset or field (the closest match is named), impossible values.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown model {preset!r}{did_you_mean(preset, PRESETS)}")
    row = {"preset": preset, "num_classes": num_classes, **PRESETS[preset], **changes}
    return ModelConfig.parse(row, where=f"model {preset!r}")


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
        # Ours, and not run yet. docs/cppe5.md gives the source of every difference to cppe5.
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
