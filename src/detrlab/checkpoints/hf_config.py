"""transformers' ``config.json`` and ``preprocessor_config.json``, to our records and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detrlab.checkpoints import hf_realtime
from detrlab.checkpoints.official import RESNETS
from detrlab.checkpoints.recognise import is_original, variant_of
from detrlab.config import DataConfig, ModelConfig
from detrlab.errors import UserError
from detrlab.presets import model_config
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrTwoStage,
)
from detrlab.presets.parts import TransformerConfig
from detrlab.presets.rtdetr import RtDetr

_ARCHITECTURES = {
    "detr": "DetrForObjectDetection",
    "deformable_detr": "DeformableDetrForObjectDetection",
}

_RESNET_WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}


class Described(NamedTuple):
    """What a ``config.json`` says.

    Attributes:
        config: the architecture.
        classes: the name of each class, by class index.
    """

    config: ModelConfig
    classes: tuple[str, ...]


def from_transformers(
    values: Mapping[str, Any], where: str, backbone: str | None = None
) -> Described:
    """Read the contents of a ``config.json``.

    Args:
        values: as parsed from JSON.
        where: names the file in errors.
        backbone: timm's name of the backbone, for a ResNet of transformers' own whose sizes
            have no name.

    Raises:
        UserError: it is another model, or has a part that detrlab does not have.
    """
    kind = values.get("model_type")
    if kind in hf_realtime.KINDS:
        names = _classes(values)
        try:
            return Described(hf_realtime.from_config(values, len(names), where), names)
        except (TypeError, AttributeError) as error:
            raise UserError(f"{where} cannot be understood: {error}") from None
    if kind not in _ARCHITECTURES:
        known = ", ".join([*_ARCHITECTURES, *hf_realtime.KINDS])
        raise UserError(f"{where} describes a {kind!r} model; detrlab reads {known}")
    deformable = kind == "deformable_detr"
    for name, wanted in {"activation_function": "relu", "position_embedding_type": "sine"}.items():
        if values.get(name, wanted) != wanted:
            raise UserError(
                f"{where}: {name} is {values[name]!r}, and detrlab's models have {wanted!r} only"
            )
    widths = {"ffn_dim": 1024 if deformable else 2048, "attention_heads": 8}
    if deformable:
        widths["n_points"] = 4
    both = {name: _same_in_both(values, name, default, where) for name, default in widths.items()}
    names = _classes(values)
    changes = {
        "backbone": _backbone(values, where, backbone),
        "width": values.get("d_model", 256),
        "ffn_width": both["ffn_dim"],
        "num_heads": both["attention_heads"],
        "encoder_layers": values.get("encoder_layers", 6),
        "decoder_layers": values.get("decoder_layers", 6),
        "dropout": values.get("dropout", 0.1),
        "dilation": _dilated(values),
    }
    if deformable:
        two_stage = values.get("two_stage", False)
        queries = "two_stage_num_proposals" if two_stage else "num_queries"
        changes["num_queries"] = values.get(queries, 300)
        changes["points"] = both["n_points"]
        changes["levels"] = values.get("num_feature_levels", 4)
        refine = values.get("with_box_refine", False)
        preset = "deformable-detr" + ("-refine" if refine else "")
        preset = "deformable-detr-two-stage" if two_stage else preset
    else:
        changes["num_queries"] = values.get("num_queries", 100)
        preset = "detr"
    variant = variant_of(preset, dilation=changes["dilation"], levels=changes.get("levels", 1))
    return Described(model_config(variant, len(names), **changes), names)


def to_transformers(config: ModelConfig, classes: Sequence[str]) -> dict[str, Any]:
    """The contents of a ``config.json`` that transformers 4 and 5 both read.

    Raises:
        UserError: transformers has no such model.
    """
    if isinstance(config, RtDetr):
        return hf_realtime.to_config(config, classes)
    if "resnet" not in config.backbone:
        # transformers puts its own frozen norm in place of every batch norm: without its
        # activation, and with another epsilon, which only suits ResNets.
        raise UserError(
            f"transformers' DETR models do not compute what detrlab's do with backbone "
            f"{config.backbone!r}, only with ResNets: such a detector cannot be exported there"
        )
    if not is_original(config):
        raise UserError(
            "transformers has DETR and Deformable DETR as published; this architecture "
            f"({config.preset}) is not one of them"
        )
    assert isinstance(config, TransformerConfig)
    deformable = isinstance(config, DeformableDetr)
    kind = "deformable_detr" if deformable else "detr"
    labels = {str(index): name for index, name in enumerate(classes)}
    values: dict[str, Any] = {
        "model_type": kind,
        "architectures": [_ARCHITECTURES[kind]],
        "backbone": config.backbone,
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "dilation": config.dilation,
        "d_model": config.width,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ffn_width,
        "decoder_ffn_dim": config.ffn_width,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        # Its defaults would leave out the dropout of attention weights and inside the FFN.
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "auxiliary_loss": False,
        "class_cost": 2 if deformable else 1,
        "bbox_cost": 5,
        "giou_cost": 2,
        "bbox_loss_coefficient": 5,
        "giou_loss_coefficient": 2,
        "eos_coefficient": 0.1,
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
    }
    if isinstance(config, DeformableDetr):
        values |= {
            "num_feature_levels": config.levels,
            "encoder_n_points": config.points,
            "decoder_n_points": config.points,
            "with_box_refine": isinstance(config, DeformableDetrRefine),
            "two_stage": isinstance(config, DeformableDetrTwoStage),
            "two_stage_num_proposals": config.num_queries,
            "focal_alpha": 0.25,
        }
    return values


def preprocessing_from_transformers(values: Mapping[str, Any]) -> DataConfig:
    """Read the contents of a ``preprocessor_config.json``.

    Raises:
        UserError: the sizes make no sense.
    """
    ours = DataConfig()
    size = values.get("size", {})
    if isinstance(size, int):  # before 4.26
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", ours.max_size)}
    resize = "short_side"
    if "height" in size:
        if size["height"] != size.get("width"):
            raise UserError(
                f"size {size['height']} x {size.get('width')}: only square images can be resized "
                "without their aspect ratio"
            )
        resize, size = "square", {"shortest_edge": size["height"]}
    normalised = values.get("do_normalize", True)
    return ours.change(
        resize=resize,
        image_size=size.get("shortest_edge", ours.image_size),
        max_size=size.get("longest_edge", ours.max_size),
        mean=tuple(values.get("image_mean", ours.mean)) if normalised else (0.0, 0.0, 0.0),
        std=tuple(values.get("image_std", ours.std)) if normalised else (1.0, 1.0, 1.0),
    )


def preprocessing_to_transformers(config: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """The contents of a ``preprocessor_config.json``."""
    name = "DeformableDetr" if isinstance(config, DeformableDetr) else "Detr"
    name = "RTDetr" if isinstance(config, RtDetr) else name
    size = {"shortest_edge": data.image_size, "longest_edge": data.max_size}
    if data.resize == "square":
        size = {"height": data.image_size, "width": data.image_size}
    return {
        "image_processor_type": f"{name}ImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": data.mean != (0, 0, 0) or data.std != (1, 1, 1),
        "image_mean": list(data.mean),
        "image_std": list(data.std),
        "do_pad": not isinstance(config, RtDetr),
        "format": "coco_detection",
    }


def _same_in_both(values: Mapping[str, Any], name: str, default: int, where: str) -> int:
    encoder = values.get(f"encoder_{name}", default)
    decoder = values.get(f"decoder_{name}", default)
    if encoder != decoder:
        raise UserError(
            f"{where}: encoder_{name} is {encoder} and decoder_{name} {decoder}; in detrlab's "
            "models they are the same"
        )
    return int(encoder)


def _classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    labels = values.get("id2label")
    if not labels:
        labels = {str(index): f"LABEL_{index}" for index in range(values.get("num_labels", 2))}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    if names == [f"LABEL_{index}" for index in range(len(names))]:  # nobody named them
        return tuple(f"class {index}" for index in range(len(names)))
    return tuple(names)


def _dilated(values: Mapping[str, Any]) -> bool:
    inner = values.get("backbone_config") or {}
    return bool(values.get("dilation") or inner.get("output_stride") == 16)


def _backbone(values: Mapping[str, Any], where: str, fallback: str | None) -> str:
    inner = values.get("backbone_config")
    if not inner:
        return values.get("backbone") or "resnet50"
    if inner.get("model_type") == "timm_backbone":
        return inner["backbone"]
    if inner.get("model_type") != "resnet":
        raise UserError(
            f"{where}: the backbone is a {inner.get('model_type')!r}; detrlab reads timm's "
            "backbones and transformers' own ResNet"
        )
    block = inner.get("layer_type", "bottleneck")
    depths, widths = tuple(inner.get("depths", ())), tuple(inner.get("hidden_sizes", ()))
    name = RESNETS.get((depths, block))
    plain = inner.get("embedding_size", 64) == 64 and not inner.get("downsample_in_bottleneck")
    if name is not None and widths == _RESNET_WIDTHS[block] and plain:
        return name
    if fallback is None or not plain:
        raise UserError(
            f"{where}: a ResNet of depths {depths}, widths {widths} ({block}) is none that timm "
            "has: say which backbone it is"
        )
    return fallback
