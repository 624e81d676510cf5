"""The layouts of DEIMv2, DEIM and D-FINE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detrlab.checkpoints.rtdetr import DECODER, HYBRID_ENCODER, count, derived, points_of, side
from detrlab.checkpoints.rules import Layout, Row
from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.models.backbones.hgnet import NAMES, stages_of
from detrlab.presets.deimv2 import DeimV2Femto, DeimV2N
from detrlab.presets.dfine import Distributions

LITE: tuple[Row, ...] = (
    ("encoder.projection.{rest}", ("encoder.input_proj.0.{rest}",)),
    ("encoder.down1.{rest}", ("encoder.down_sample1.{rest}",)),
    ("encoder.down2.{rest}", ("encoder.down_sample2.{rest}",)),
    ("encoder.mix.{rest}", ("encoder.bi_fusion.cv.{rest}",)),
    ("encoder.top_down.{rest}", ("encoder.fpn_block.{rest}",)),
    ("encoder.bottom_up.{rest}", ("encoder.pan_block.{rest}",)),
)

_DISTRIBUTIONS: tuple[Row, ...] = (
    ("backbone.{rest}", ("backbone.{rest}",)),
    ("decoder.start.{rest}", ("decoder.pre_bbox_head.{rest}",)),
    ("decoder.classes.{i}.{rest}", ("decoder.dec_score_head.{i}.{rest}",)),
    ("decoder.quality.{i}.network.{rest}", ("decoder.decoder.lqe_layers.{i}.reg_conf.{rest}",)),
    ("decoder.edges.reach", ("decoder.up", "decoder.decoder.up")),
    ("decoder.edges.scale", ("decoder.reg_scale", "decoder.decoder.reg_scale")),
)

GATED: tuple[Row, ...] = (
    ("decoder.layers.{i}.gate.{rest}", ("decoder.decoder.layers.{i}.gateway.gate.{rest}",)),
    (
        "decoder.layers.{i}.cross_attention_norm.{rest}",
        ("decoder.decoder.layers.{i}.gateway.norm.{rest}",),
    ),
)

SWIGLU: tuple[Row, ...] = (
    ("decoder.layers.{i}.ffn.linear1.{rest}", ("decoder.decoder.layers.{i}.swish_ffn.w12.{rest}",)),
    ("decoder.layers.{i}.ffn.linear2.{rest}", ("decoder.decoder.layers.{i}.swish_ffn.w3.{rest}",)),
)

SHARED_CORNERS: tuple[Row, ...] = (
    ("decoder.corners.0.{rest}", ("decoder.dec_bbox_head.{every}.{rest}",)),
)

OWN_CORNERS: tuple[Row, ...] = (
    ("decoder.corners.{i}.{rest}", ("decoder.dec_bbox_head.{i}.{rest}",)),
)

PROJECTED: tuple[Row, ...] = (
    ("queries.source.memory_proj.{rest}", ("decoder.enc_output.proj.{rest}",)),
    ("queries.source.memory_norm.{rest}", ("decoder.enc_output.norm.{rest}",)),
)

_HYBRID: tuple[Row, ...] = (
    ("encoder.projections.{rest}", ("encoder.input_proj.{rest}",)),
    ("encoder.halvings.{i}.0.{rest}", ("encoder.downsample_convs.{i}.0.cv1.{rest}",)),
    ("encoder.halvings.{i}.1.{rest}", ("encoder.downsample_convs.{i}.0.cv2.{rest}",)),
    *HYBRID_ENCODER,
)

_BLOCKS: tuple[Row, ...] = (
    ("encoder.outputs.{i}.{rest}", ("decoder.input_proj.{i}.{rest}",)),
    ("encoder.top_down.{i}.{rest}", ("encoder.fpn_blocks.{i}.{rest}",)),
    ("encoder.bottom_up.{i}.{rest}", ("encoder.pan_blocks.{i}.{rest}",)),
)

_TWO_CONVOLUTIONS: tuple[Row, ...] = tuple(
    (
        f"encoder.{ours}.{{i}}.cv{{j}}.0.conv1.{{rest}}",
        (f"encoder.{theirs}.{{i}}.cv{{j}}.0.[conv2|conv1].{{rest}}",),
    )
    for ours, theirs in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks"))
)
"""DEIMv2 has one first convolution where D-FINE and DEIM have two."""

# The first row that fits counts.
_COMMON = (*_DISTRIBUTIONS, *DECODER)
_FUSED = (*_HYBRID, *_BLOCKS, *GATED, *OWN_CORNERS)
D_FINE = (*_TWO_CONVOLUTIONS, *_FUSED, *PROJECTED, *_COMMON)
DEIM_V2 = (*_FUSED, *SWIGLU, *_COMMON)
DEIM_V2_LITE = (*LITE, *SWIGLU, *SHARED_CORNERS, *_COMMON)


def layout(config: ModelConfig) -> Layout | None:
    """How the originals name the tensors of such a detector; None if it is another."""
    for kind, name, rows in (
        (DeimV2Femto, "official DEIMv2", DEIM_V2_LITE),
        (DeimV2N, "official DEIMv2", DEIM_V2),
        (Distributions, "official D-FINE", D_FINE),
    ):
        if isinstance(config, kind):
            layers, others = config.decoder_layers, derived(config)
            return Layout(name, rows, layers, counts_batches=True, derived=others)
    return None


_LAYER = "decoder.decoder.layers.0"
_POINTS = f"{_LAYER}.cross_attn.num_points_scale"


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of D-FINE, DEIM or DEIMv2."""
    signs = ("enc_score_head.weight", "pre_bbox_head.layers.0.weight", "up")
    return {_POINTS, *(f"decoder.{sign}" for sign in signs)} <= tensors.keys()


_SIZES = {"hgnetv2_b0": "s", "hgnetv2_b2": "m", "hgnetv2_b4": "l", "hgnetv2_b5": "x"}


def sizes_of(
    tensors: Mapping[str, Tensor], where: str, hints: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The preset and the settings that a state dict shows, as ``rtdetr.sizes_of``.

    D-FINE and DEIM have the same tensors: a file is taken for D-FINE's, unless ``preset`` in the
    hints names a detector of DEIM.
    """
    backbone = _backbone(tensors, where)
    levels = len(points := points_of(tensors[_POINTS]))
    if f"{_LAYER}.swish_ffn.w12.weight" in tensors:
        lite = "encoder.fpn_block.cv1.conv.weight" in tensors
        preset = f"deimv2-{backbone.removeprefix('hgnetv2_')}" if lite else "deimv2-n"
        ffn_width = side(tensors, f"{_LAYER}.swish_ffn.w12.weight")
    else:
        family = "deim-d-fine" if str(hints.get("preset")).startswith("deim-") else "d-fine"
        size = "n" if levels == 2 else _SIZES.get(backbone, "s")
        preset, ffn_width = f"{family}-{size}", side(tensors, f"{_LAYER}.linear1.weight")
    sizes = {
        "num_classes": side(tensors, "decoder.dec_score_head.0.weight"),
        "width": side(tensors, "decoder.dec_score_head.0.weight", 1),
        "encoder_width": side(tensors, "encoder.input_proj.0.conv.weight"),
        "ffn_width": ffn_width,
        "decoder_layers": count(tensors, r"decoder\.decoder\.layers\.(\d+)\."),
        "points": points,
        "levels": levels,
        "backbone": backbone,
    }
    attended = "encoder.encoder.0.layers.0.linear1.weight"
    if attended in tensors:
        sizes["encoder_ffn_width"] = side(tensors, attended)
    return preset, sizes


def _backbone(tensors: Mapping[str, Tensor], where: str) -> str:
    """The HGNetV2 whose stages have these widths and blocks.

    Raises:
        UserError: there is none.
    """

    def shape(stages: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
        return tuple((row[1], row[2], row[3]) for row in stages)

    found = tuple(
        (
            side(tensors, f"backbone.stages.{stage}.blocks.0.layers.1.{inner}.weight"),
            side(tensors, f"backbone.stages.{stage}.blocks.0.aggregation.1.conv.weight"),
            count(tensors, rf"backbone\.stages\.{stage}\.blocks\.(\d+)\."),
        )
        for stage, inner in enumerate(("conv", "conv", "conv2.conv", "conv2.conv"))
        if f"backbone.stages.{stage}.blocks.0.aggregation.1.conv.weight" in tensors
    )
    for name in NAMES:
        if shape(stages_of(name)) == found:
            return name
    raise UserError(f"{where}: the backbone is no HGNetV2 that detrlab knows: {', '.join(NAMES)}")
