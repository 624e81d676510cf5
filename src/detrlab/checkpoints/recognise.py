"""Recognise the architecture of a state dict from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from detrlab.checkpoints import deim, detrex, hf, official, rtdetr
from detrlab.checkpoints.rules import Layout
from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.presets import ORIGINALS, model_config

# Settings that names and shapes do not show, or not always, and their usual values.
_UNSEEN: dict[str, Any] = {
    "num_heads": 8,
    "dilation": False,
    "num_queries": 300,  # of proposals
    "backbone": None,
    "dropout": None,  # the preset's
}

# A tensor with one row for each query.
_LEARNED_QUERIES = {
    "deformable-detr": "queries.embedding",
    "deformable-detr-refine": "queries.embedding",
    "dino-4scale": "queries.source.content",
    "dino-4scale-detrex": "queries.source.content",
}

# Names by which a model of another tool is recognised.
_OTHERS = {
    "detr.transformer.": "a panoptic segmentation model of the official DETR repository",
    "bbox_head.": "a model of mmdetection",
    "transformer.encoder.layers.0.attentions.": "a model of detrex that is no DINO",
    "model.model.": "a model wrapped by a training framework",
    "fc.weight": "an image classifier",
    "model.enc_score_head.": "a detector of transformers without the config.json beside it",
}


def variant_of(preset: str, *, dilation: bool, levels: int = 4) -> str:
    """The preset with the same parts whose dilation and number of levels these are."""
    if preset == "detr":
        return "detr-dc5" if dilation else "detr"
    if preset == "deformable-detr" and levels == 1:
        return "deformable-detr-single-scale" + ("-dc5" if dilation else "")
    if preset == "dino-4scale" and levels == 5:
        return "dino-5scale"
    return preset


def is_original(config: ModelConfig) -> bool:
    """Whether it is one of the seven of the original DETR repositories, at some size.

    Transformers has the same seven.
    """
    return config.preset in ORIGINALS


class Recognised(NamedTuple):
    """What a state dict was found to be.

    Attributes:
        layout: the table its names follow.
        config: the architecture.
        assumed: settings that cannot be seen in a state dict, and the values taken.
    """

    layout: Layout
    config: ModelConfig
    assumed: dict[str, Any]


def recognise(
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    told: Mapping[str, Any] | None = None,
    likely: Mapping[str, Any] | None = None,
) -> Recognised:
    """Find the layout and the architecture of an official or a transformers state dict.

    Args:
        tensors: the state dict, cleaned.
        where: names the file in errors.
        told: settings known from elsewhere, for what the shapes do not show.
        likely: guesses at the same; those that are used are ``assumed``.

    Raises:
        UserError: the names follow no layout that detrlab knows.
    """
    told = {name: value for name, value in (told or {}).items() if name in _UNSEEN}
    hints = {**_UNSEEN, **(likely or {}), **told}
    spelling = None
    for family in (deim, rtdetr):
        if family.fits(tensors):
            preset, sizes = family.sizes_of(tensors, where, hints)
            break
    else:
        preset, sizes, spelling = _sizes_of(tensors, where, hints)
    unseen = {
        name: value
        for name, value in hints.items()
        if name in _UNSEEN.keys() - sizes.keys() and value is not None
    }
    variant = variant_of(preset, dilation=unseen["dilation"], levels=sizes.get("levels", 1))
    config = model_config(variant, **{**unseen, **sizes})
    # Dropout does not change what a detector computes once it is trained.
    known = {*told, "dropout"}
    assumed = {name: value for name, value in unseen.items() if name not in known}
    return Recognised(_layout_of(config, spelling), config, assumed)


def _sizes_of(
    tensors: Mapping[str, Tensor], where: str, hints: Mapping[str, Any]
) -> tuple[str, dict[str, Any], hf.Spelling | None]:
    """The preset, the settings that the shapes show, and how transformers spells the names."""
    preset, root = _structure(tensors, where)
    spelling = hf.spelling_of(tensors) if root == "model" else None
    seen = _Shapes(tensors, root, _layout_of(model_config(preset, 1), spelling))
    sizes: dict[str, Any] = {
        "num_classes": max(1, seen.rows("decoder.heads.0.classes.weight") - (preset == "detr")),
        "width": seen.rows("decoder.layers.0.ffn_norm.weight"),
        "ffn_width": seen.rows("decoder.layers.0.ffn.linear1.weight"),
        "encoder_layers": seen.count_layers("encoder"),
        "decoder_layers": seen.count_layers("decoder"),
        "backbone": seen.backbone(where, hints["backbone"]),
    }
    if preset == "detr":
        sizes["num_queries"] = seen.rows("queries.position")
    else:
        sizes["levels"] = seen.rows("encoder.neck.position.level_embedding")
        samples = seen.rows("decoder.layers.0.cross_attention.attention_weights.weight")
        sizes["points"] = max(1, samples // (hints["num_heads"] * sizes["levels"]))
        learned = _LEARNED_QUERIES.get(preset)
        if learned is not None:
            sizes["num_queries"] = seen.rows(learned)
    return preset, sizes, spelling


# The official training programs' own settings, and ours.
_ARGUMENTS = {
    "nheads": "num_heads",
    "dilation": "dilation",
    "dropout": "dropout",
    "num_queries": "num_queries",
    "backbone": "backbone",
}


def told_by_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings from the arguments of the official training programs."""
    return {ours: arguments[name] for name, ours in _ARGUMENTS.items() if name in arguments}


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """The arguments of the official programs, as far as shapes do not show them."""
    return {name: getattr(config, ours) for name, ours in _ARGUMENTS.items()}


def _structure(tensors: Mapping[str, Tensor], where: str) -> tuple[str, str]:
    """The preset that has such tensors, and the first word of their names."""
    for root in ("transformer", "model"):
        if any(name.startswith(f"{root}.decoder.layers.0.") for name in tensors):
            break
    else:
        root = ""
    if {detrex.SIGN, "transformer.tgt_embed.weight"} <= tensors.keys():
        return "dino-4scale-detrex", root
    for sign, what in _OTHERS.items():
        if any(name.startswith(sign) for name in tensors):
            raise UserError(f"{where} looks like {what}, which detrlab does not read")
    if not root:
        raise UserError(
            f"{where} holds no detector that detrlab knows: its names are like "
            f"{', '.join(sorted(tensors)[:3])}"
        )
    if f"{root}.level_embed" not in tensors:
        return "detr", root
    if f"{root}.decoder.ref_point_head.layers.0.weight" in tensors:
        # Look forward twice changes the training only: without it the names are the same.
        if f"{root}.tgt_embed.weight" in tensors:
            return "dino-4scale", root
        denoising = "label_enc.weight" in tensors
        return ("cdn-deformable-detr" if denoising else "dab-deformable-detr"), root
    if f"{root}.enc_output.weight" in tensors:
        return "deformable-detr-two-stage", root
    if any(name.startswith(f"{root}.decoder.bbox_embed.") for name in tensors):
        return "deformable-detr-refine", root
    return "deformable-detr", root


def _layout_of(config: ModelConfig, spelling: hf.Spelling | None) -> Layout:
    return official.layout(config) if spelling is None else hf.layout(config, spelling)


class _Shapes:
    """Looks tensors of a foreign state dict up by our names."""

    def __init__(self, tensors: Mapping[str, Tensor], root: str, layout: Layout) -> None:
        self.tensors = tensors
        self.root = root
        self.layout = layout

    def find(self, ours: str) -> Tensor | None:
        for parts in self.layout.names(ours):
            if parts[0] in self.tensors:
                return self.tensors[parts[0]]
        return None

    def rows(self, ours: str) -> int:
        """The first dimension; 1 where the tensor is missing, which loading will report."""
        found = self.find(ours)
        return 1 if found is None or found.dim() == 0 else max(1, found.shape[0])

    def count_layers(self, stack: str) -> int:
        numbers = [
            int(match[1])
            for name in self.tensors
            if (match := re.match(rf"{self.root}\.{stack}\.layers\.(\d+)\.", name))
        ]
        return max(numbers, default=-1) + 1

    def backbone(self, where: str, fallback: str | None) -> str:
        depths = tuple(self._blocks(stage) for stage in range(1, 5))
        bottleneck = self.find("backbone.body.layer1.0.conv3.weight") is not None
        stem = self.rows("backbone.body.layer1.0.conv1.weight")
        name = official.RESNETS.get((depths, "bottleneck" if bottleneck else "basic"))
        if name is not None and stem == 64:
            return name
        if fallback is None:
            known = ", ".join(official.RESNETS.values())
            raise UserError(f"{where}: the backbone is none of {known}; say which it is")
        return fallback

    def _blocks(self, stage: int) -> int:
        count = 0
        while self.find(f"backbone.body.layer{stage}.{count}.conv1.weight") is not None:
            count += 1
        return count
