"""Flags that several verbs share, and how they change a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from detrlab.config import Recipe
from detrlab.errors import UserError, did_you_mean
from detrlab.recipes import recipe as named_recipe


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Settings of a run. The recipe sets all of them; each flag changes one."""

    recipe: str = "laptop"
    """The recipe, a full set of settings: tiny, laptop, photos, cppe5, cppe5-improved, paper, or a
    YAML file."""
    data: str | None = None
    """A folder, file or zip of annotated images, hf: and a data set of the Hugging Face Hub, or the
    name of a built-in set."""
    epochs: int | None = None
    """Passes over the training images; the learning rate drops at the same fraction."""
    batch: int | Literal["auto"] | None = None
    """Images per optimiser step; auto keeps the recipe's number and sets the micro-batch size by
    the memory at hand."""
    imgsz: int | None = None
    """Image size in pixels: the short side; the bound of the long side changes in proportion."""
    lr: float | None = None
    """Learning rate."""
    weights: str | None = None
    """Initial weights: imagenet (backbone only), coco-backbone (the packaged detector's backbone,
    for --set model.backbone=hgnetv2_femto), coco (the published detector), figures (the small
    packaged weights of the demo), none, a checkpoint of any layout, or hf:REPOSITORY."""
    class_rows: str | None = None
    """Rows of the class heads: auto, keep (by index), seed (by class name), new."""
    reinitialise: tuple[str, ...] = ()
    """Names (regular expressions) of tensors to re-initialise instead of loading."""
    freeze: tuple[str, ...] = ()
    """Names (regular expressions) of parameters that do not train: backbone ^encoder ..."""
    workers: int | None = None
    """Data loader processes; 0 loads images in the training process."""
    precision: str | None = None
    """float32, bfloat16 (bf16), float16 (fp16), or auto: bfloat16 where that is faster."""
    set: tuple[str, ...] = ()
    """Any other settings: model.width=192 train.clip=0.5 data.augmentation=detr ..."""

    def settled(self) -> Recipe:
        """The recipe with every flag applied.

        Raises:
            UserError: an unknown recipe or setting, or an impossible value.
        """
        if self.recipe.endswith((".yaml", ".yml")):
            recipe = Recipe.load(self.recipe)
        else:
            recipe = named_recipe(self.recipe)
        if self.epochs is not None:
            recipe = recipe.over(self.epochs)
        if self.imgsz is not None:
            recipe = recipe.change(data=recipe.data.resized(self.imgsz).model_dump())
        flags = {
            "data.data": self.data,
            "data.workers": self.workers,
            "train.batch": None if self.batch == "auto" else self.batch,
            "train.micro_batch": "auto" if self.batch == "auto" else None,
            "train.learning_rate": self.lr,
            "train.weights": self.weights,
            "train.precision": self.precision,
            "train.class_rows": self.class_rows,
            "train.reinitialise": list(self.reinitialise) or None,
            "train.freeze": list(self.freeze) or None,
        }
        given = {name: value for name, value in flags.items() if value is not None}
        return change_settings(recipe, given | parse_settings(self.set))


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``["model.width=192"]`` -> ``{"model.width": 192}``; the values are read as YAML.

    Raises:
        UserError: a setting without a value.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write NAME=VALUE, such as model.width=192")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: the value cannot be read ({error})") from None
    return found


def change_settings(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with settings such as ``train.clip`` changed, for every detector."""
    from detrlab.compare.entrants import by_part, known_settings
    from detrlab.presets import settings
    from detrlab.presets.saved import refuse_removed

    known = known_settings()
    refuse_removed([name.removeprefix("model.") for name in changes], settings(), "--set")
    for name in changes:
        if name not in known:
            raise UserError(f"unknown setting {name!r}{did_you_mean(name, known)}")
    parts = by_part(changes)
    each = {
        preset: {field: value for field, value in row.items() if field not in parts["train"]}
        for preset, row in recipe.train_each.items()
    }
    return recipe.change(
        train_each=each,
        model={**recipe.model, **parts["model"]},
        train=recipe.train.change(**parts["train"]).model_dump(),
        data=recipe.data.change(**parts["data"]).model_dump(),
    )
