"""The layouts of the original repositories, from DETR on, and of detrex's DINO."""

from __future__ import annotations

from detrlab.checkpoints import deim, detrex, rtdetr
from detrlab.checkpoints.rules import Layout, Row
from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.models.backbones import hgnet
from detrlab.presets import ORIGINALS
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrTwoStage,
)
from detrlab.presets.detr import Detr
from detrlab.presets.dino import DabDeformableDetr, DinoDetrex, DnDeformableDetr
from detrlab.presets.parts import TransformerConfig
from detrlab.presets.rtdetr import RtDetr
from detrlab.presets.rungs import UNPUBLISHED

RESNETS: dict[tuple[tuple[int, ...], str], str] = {
    ((2, 2, 2, 2), "basic"): "resnet18",
    ((3, 4, 6, 3), "basic"): "resnet34",
    ((3, 4, 6, 3), "bottleneck"): "resnet50",
    ((3, 4, 23, 3), "bottleneck"): "resnet101",
    ((3, 8, 36, 3), "bottleneck"): "resnet152",
}
"""Blocks of each stage and their kind -> timm's name."""

_SHARED: tuple[Row, ...] = (
    ("backbone.body.{rest}", ("backbone.0.body.{rest}",)),
    ("encoder.layers.{i}.attention.{rest}", ("transformer.encoder.layers.{i}.self_attn.{rest}",)),
    ("encoder.layers.{i}.attention_norm.{rest}", ("transformer.encoder.layers.{i}.norm1.{rest}",)),
    ("encoder.layers.{i}.ffn.{rest}", ("transformer.encoder.layers.{i}.{rest}",)),
    ("encoder.layers.{i}.ffn_norm.{rest}", ("transformer.encoder.layers.{i}.norm2.{rest}",)),
    (
        "decoder.layers.{i}.self_attention.{rest}",
        ("transformer.decoder.layers.{i}.self_attn.{rest}",),
    ),
    ("decoder.layers.{i}.ffn.{rest}", ("transformer.decoder.layers.{i}.{rest}",)),
    ("decoder.layers.{i}.ffn_norm.{rest}", ("transformer.decoder.layers.{i}.norm3.{rest}",)),
)

DETR: tuple[Row, ...] = (
    *_SHARED,
    ("encoder.neck.projections.0.0.{rest}", ("input_proj.{rest}",)),
    (
        "decoder.layers.{i}.self_attention_norm.{rest}",
        ("transformer.decoder.layers.{i}.norm1.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention.{rest}",
        ("transformer.decoder.layers.{i}.multihead_attn.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention_norm.{rest}",
        ("transformer.decoder.layers.{i}.norm2.{rest}",),
    ),
    ("decoder.norm.{rest}", ("transformer.decoder.norm.{rest}",)),
    ("decoder.heads.0.classes.{rest}", ("class_embed.{rest}",)),
    ("decoder.heads.0.boxes.{rest}", ("bbox_embed.{rest}",)),
    ("queries.position", ("query_embed.weight",)),
)

# The norms are numbered by age, not by order: norm1 follows the cross-attention.
_DEFORMABLE: tuple[Row, ...] = (
    *_SHARED,
    ("encoder.neck.projections.{l}.{j}.{rest}", ("input_proj.{l}.{j}.{rest}",)),
    ("encoder.neck.position.level_embedding", ("transformer.level_embed",)),
    (
        "decoder.layers.{i}.self_attention_norm.{rest}",
        ("transformer.decoder.layers.{i}.norm2.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention.{rest}",
        ("transformer.decoder.layers.{i}.cross_attn.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention_norm.{rest}",
        ("transformer.decoder.layers.{i}.norm1.{rest}",),
    ),
)

_POINTS: tuple[Row, ...] = (
    ("queries.embedding", ("query_embed.weight",)),
    ("queries.reference_points.{rest}", ("transformer.reference_points.{rest}",)),
)

PLAIN: tuple[Row, ...] = (
    *_DEFORMABLE,
    *_POINTS,
    ("decoder.heads.0.classes.{rest}", ("class_embed.{every}.{rest}",)),
    ("decoder.heads.0.boxes.{rest}", ("bbox_embed.{every}.{rest}",)),
)

_REFINED_BOXES: Row = (
    "decoder.heads.{i}.boxes.{rest}",
    ("bbox_embed.{i}.{rest}", "transformer.decoder.bbox_embed.{i}.{rest}"),
)

REFINE: tuple[Row, ...] = (
    *_DEFORMABLE,
    *_POINTS,
    ("decoder.heads.{i}.classes.{rest}", ("class_embed.{i}.{rest}",)),
    _REFINED_BOXES,
)

TWO_STAGE: tuple[Row, ...] = (
    *_DEFORMABLE,
    (
        "decoder.heads.{i}.classes.{rest}",
        ("class_embed.{i}.{rest}", "transformer.decoder.class_embed.{i}.{rest}"),
    ),
    _REFINED_BOXES,
    (
        "queries.head.classes.{rest}",
        ("class_embed.{last}.{rest}", "transformer.decoder.class_embed.{last}.{rest}"),
    ),
    (
        "queries.head.boxes.{rest}",
        ("bbox_embed.{last}.{rest}", "transformer.decoder.bbox_embed.{last}.{rest}"),
    ),
    ("queries.memory_proj.{rest}", ("transformer.enc_output.{rest}",)),
    ("queries.memory_norm.{rest}", ("transformer.enc_output_norm.{rest}",)),
    ("queries.embedding_proj.{rest}", ("transformer.pos_trans.{rest}",)),
    ("queries.embedding_norm.{rest}", ("transformer.pos_trans_norm.{rest}",)),
)


_DINO_HEADS: tuple[Row, ...] = (
    *_DEFORMABLE,
    ("decoder.norm.{rest}", ("transformer.decoder.norm.{rest}",)),
    ("decoder.position.linear1.{rest}", ("transformer.decoder.ref_point_head.layers.0.{rest}",)),
    ("decoder.position.linear2.{rest}", ("transformer.decoder.ref_point_head.layers.1.{rest}",)),
    (
        "decoder.heads.0.classes.{rest}",
        ("class_embed.{every}.{rest}", "transformer.decoder.class_embed.{every}.{rest}"),
    ),
    (
        "decoder.heads.0.boxes.{rest}",
        ("bbox_embed.{every}.{rest}", "transformer.decoder.bbox_embed.{every}.{rest}"),
    ),
)

_DINO_PROPOSALS: tuple[Row, ...] = (
    ("queries{s}.head.classes.{rest}", ("transformer.enc_out_class_embed.{rest}",)),
    ("queries{s}.head.boxes.{rest}", ("transformer.enc_out_bbox_embed.{rest}",)),
    ("queries{s}.memory_proj.{rest}", ("transformer.enc_output.{rest}",)),
    ("queries{s}.memory_norm.{rest}", ("transformer.enc_output_norm.{rest}",)),
    ("queries{s}.content", ("transformer.tgt_embed.weight",)),
    ("queries.labels", ("label_enc.weight",)),
)


def _dino(source: str) -> tuple[Row, ...]:
    """DINO's rows; ``source`` is where the proposals lie behind denoising queries."""
    rows = ((ours.replace("{s}", source), theirs) for ours, theirs in _DINO_PROPOSALS)
    return (*_DINO_HEADS, *rows)


def holds(config: ModelConfig) -> bool:
    """Whether one of the original repositories has this detector, at some size."""
    return config.preset in ORIGINALS or (
        isinstance(config, DabDeformableDetr | RtDetr) and config.preset not in UNPUBLISHED
    )


def layout(config: ModelConfig) -> Layout:
    """How the original repositories name the tensors of this architecture.

    Raises:
        UserError: they have no such detector.
    """
    if config.preset in UNPUBLISHED:
        raise UserError(f"the original repositories have no detector like {config.preset!r}")
    if (found := deim.layout(config)) is not None:
        return found
    assert isinstance(config, TransformerConfig)
    if isinstance(config, RtDetr):
        return rtdetr.layout(config)
    if isinstance(config, DinoDetrex):
        rows = detrex.rows(config.levels, config.backbone_maps)
        return Layout("detrex", rows, config.decoder_layers)
    if isinstance(config, DabDeformableDetr):
        source = ".source" if isinstance(config, DnDeformableDetr) else ""
        return Layout("official DINO", _dino(source), config.decoder_layers)
    rows = rows_for(config, "the original repositories", DETR, PLAIN, REFINE, TWO_STAGE)
    name = "official DETR" if isinstance(config, Detr) else "official Deformable DETR"
    return Layout(name, rows, config.decoder_layers)


def remarks(config: ModelConfig) -> list[str]:
    """What a person should know who uses our weights in the originals' code."""
    real_time = isinstance(config, RtDetr)
    lines = []
    known = [f"{name}d" if real_time else name for name in RESNETS.values()]
    if config.backbone not in (*known, *hgnet.NAMES):
        which = "its ResNets" if real_time else "torchvision's ResNets"
        lines.append(f"the originals' code has only {which}: {config.backbone} must be added to it")
    if isinstance(config, RtDetr):
        side = config.image_size
        lines.append(f"it evaluates images of {side} x {side}, as the published settings say")
    elif config.backbone_norms == "trained":
        lines.append("the originals freeze batch norms: further training would not change them")
    return lines


def rows_for(
    config: ModelConfig,
    whose: str,
    detr: tuple[Row, ...],
    plain: tuple[Row, ...],
    refine: tuple[Row, ...],
    two_stage: tuple[Row, ...],
) -> tuple[Row, ...]:
    """The rows of the kind of detector that a configuration is.

    Raises:
        UserError: it is none of the four.
    """
    for kind, rows in (
        (DeformableDetrTwoStage, two_stage),
        (DeformableDetrRefine, refine),
        (DeformableDetr, plain),
        (Detr, detr),
    ):
        if isinstance(config, kind):
            return rows
    raise UserError(f"{whose} have no detector like {config.preset!r}")
