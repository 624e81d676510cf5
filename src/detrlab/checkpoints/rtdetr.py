"""The layouts of lyuwenyu/RT-DETR, ``rtdetr_pytorch`` and ``rtdetrv2_pytorch``.

DEIM's RT-DETRv2 has the second one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detrlab.checkpoints.rules import Layout, Row
from detrlab.errors import UserError
from detrlab.models.queries.proposals import anchor_logits
from detrlab.presets.rtdetr import RtDetr, RtDetrV2
from detrlab.structures import Memory


def _resnet() -> tuple[Row, ...]:
    """A ResNet-D by timm's names, and by ``PResNet``'s."""
    stem = {"conv1.0": "1.conv", "conv1.1": "1.norm", "conv1.3": "2.conv", "conv1.4": "2.norm"}
    stem |= {"conv1.6": "3.conv", "bn1": "3.norm"}
    renamed = {ours: f"conv1.conv1_{theirs}" for ours, theirs in stem.items()}
    for stage in range(4):
        ours, theirs = f"layer{stage + 1}.{{i}}", f"res_layers.{stage}.blocks.{{i}}"
        for number, branch in enumerate("abc", start=1):
            renamed[f"{ours}.conv{number}"] = f"{theirs}.branch2{branch}.conv"
            renamed[f"{ours}.bn{number}"] = f"{theirs}.branch2{branch}.norm"
        short = f"{theirs}.short" if stage == 0 else f"{theirs}.short.conv"
        renamed[f"{ours}.downsample.1"] = f"{short}.conv"
        renamed[f"{ours}.downsample.2"] = f"{short}.norm"
    rows = (
        (f"backbone.body.{ours}.{{rest}}", (f"backbone.{theirs}.{{rest}}",))
        for ours, theirs in renamed.items()
    )
    # The originals do not have other backbones: they keep our names.
    return (*rows, ("backbone.body.{rest}", ("backbone.body.{rest}",)))


HYBRID_ENCODER: tuple[Row, ...] = (
    (
        "encoder.within.{l}.layers.{i}.attention.{rest}",
        ("encoder.encoder.{l}.layers.{i}.self_attn.{rest}",),
    ),
    (
        "encoder.within.{l}.layers.{i}.attention_norm.{rest}",
        ("encoder.encoder.{l}.layers.{i}.norm1.{rest}",),
    ),
    ("encoder.within.{l}.layers.{i}.ffn.{rest}", ("encoder.encoder.{l}.layers.{i}.{rest}",)),
    (
        "encoder.within.{l}.layers.{i}.ffn_norm.{rest}",
        ("encoder.encoder.{l}.layers.{i}.norm2.{rest}",),
    ),
    ("encoder.laterals.{rest}", ("encoder.lateral_convs.{rest}",)),
    ("encoder.halvings.{rest}", ("encoder.downsample_convs.{rest}",)),
)
"""What all hybrid encoders share."""

_ENCODER: tuple[Row, ...] = (
    *HYBRID_ENCODER,
    # Ours is both of their convolutions, stacked; conv2 makes the half that passes by.
    ("encoder.top_down.{i}.conv1.{rest}", ("encoder.fpn_blocks.{i}.[conv2|conv1].{rest}",)),
    ("encoder.bottom_up.{i}.conv1.{rest}", ("encoder.pan_blocks.{i}.[conv2|conv1].{rest}",)),
    *(
        (f"encoder.{ours}.{{i}}.{part}.{{rest}}", (f"encoder.{theirs}.{{i}}.{part}.{{rest}}",))
        for ours, theirs in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks"))
        for part in ("bottlenecks", "conv3")
    ),
    ("encoder.outputs.{rest}", ("decoder.input_proj.{rest}",)),
)

DECODER: tuple[Row, ...] = (
    (
        "decoder.layers.{i}.self_attention.{rest}",
        ("decoder.decoder.layers.{i}.self_attn.{rest}",),
    ),
    (
        "decoder.layers.{i}.self_attention_norm.{rest}",
        ("decoder.decoder.layers.{i}.norm1.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention.{rest}",
        ("decoder.decoder.layers.{i}.cross_attn.{rest}",),
    ),
    (
        "decoder.layers.{i}.cross_attention_norm.{rest}",
        ("decoder.decoder.layers.{i}.norm2.{rest}",),
    ),
    ("decoder.layers.{i}.ffn.{rest}", ("decoder.decoder.layers.{i}.{rest}",)),
    ("decoder.layers.{i}.ffn_norm.{rest}", ("decoder.decoder.layers.{i}.norm3.{rest}",)),
    ("decoder.heads.{i}.classes.{rest}", ("decoder.dec_score_head.{i}.{rest}",)),
    ("decoder.heads.{i}.boxes.{rest}", ("decoder.dec_bbox_head.{i}.{rest}",)),
    ("decoder.position.network.{rest}", ("decoder.query_pos_head.{rest}",)),
    ("queries.labels", ("decoder.denoising_class_embed.weight",)),
    ("queries.source.head.classes.{rest}", ("decoder.enc_score_head.{rest}",)),
    ("queries.source.head.boxes.{rest}", ("decoder.enc_bbox_head.{rest}",)),
)

V1: tuple[Row, ...] = (
    *_resnet(),
    ("encoder.projections.{l}.conv.{rest}", ("encoder.input_proj.{l}.0.{rest}",)),
    ("encoder.projections.{l}.norm.{rest}", ("encoder.input_proj.{l}.1.{rest}",)),
    *_ENCODER,
    ("queries.source.memory_proj.{rest}", ("decoder.enc_output.0.{rest}",)),
    ("queries.source.memory_norm.{rest}", ("decoder.enc_output.1.{rest}",)),
    *DECODER,
)

V2: tuple[Row, ...] = (
    *_resnet(),
    ("encoder.projections.{rest}", ("encoder.input_proj.{rest}",)),
    *_ENCODER,
    ("queries.source.memory_proj.{rest}", ("decoder.enc_output.proj.{rest}",)),
    ("queries.source.memory_norm.{rest}", ("decoder.enc_output.norm.{rest}",)),
    *DECODER,
)


def layout(config: RtDetr) -> Layout:
    """How the original repository names the tensors of this architecture."""
    if not isinstance(config, RtDetrV2):
        return Layout("official RT-DETR", V1, config.decoder_layers, counts_batches=True)
    name = "official RT-DETRv2"
    return Layout(name, V2, config.decoder_layers, counts_batches=True, derived=derived(config))


def derived(config: RtDetr) -> dict[str, Tensor]:
    """The buffers of the originals that follow from the architecture."""
    points = config.points if isinstance(config.points, tuple) else (config.points,) * config.levels
    scale = torch.cat([torch.full((count,), 1 / count) for count in points])
    found = {
        f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale": scale
        for layer in range(config.decoder_layers)
    }
    return found | derived_anchors(config.levels, (config.image_size, config.image_size))


def derived_anchors(levels: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """What the originals keep of the cells' boxes, for maps of strides up to 32."""
    strides = [32 >> level for level in reversed(range(levels))]
    shapes = tuple((size[0] // stride, size[1] // stride) for stride in strides)
    tokens = torch.zeros(1, sum(height * width for height, width in shapes), 1)
    padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    memory = Memory(tokens, tokens, padding, shapes, torch.ones(1, levels, 2))
    logits, usable = anchor_logits(memory)
    return {"decoder.anchors": logits, "decoder.valid_mask": usable[..., None]}


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is RT-DETR's; its successors have other decoder layers."""
    signs = ("enc_score_head.weight", "decoder.layers.0.cross_attn.value_proj.weight")
    return all(f"decoder.{sign}" in tensors for sign in signs)


RESNETS_D: dict[tuple[tuple[int, ...], bool], tuple[str, str | None]] = {
    ((2, 2, 2, 2), False): ("r18", "resnet18d"),
    ((3, 4, 6, 3), False): ("r34", "resnet34d"),
    ((3, 4, 6, 3), True): ("r50", "resnet50d"),
    ((3, 4, 23, 3), True): ("r101", "resnet101d"),
}
"""Blocks of each stage, whether they are bottlenecks -> end of the preset's name, timm's name."""


def side(tensors: Mapping[str, Tensor], name: str, dimension: int = 0) -> int:
    """A tensor's size; 1 where it is missing, which loading will report."""
    found = tensors.get(name)
    return 1 if found is None or found.dim() <= dimension else max(1, found.shape[dimension])


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that a pattern finds in the names."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def sizes_of(
    tensors: Mapping[str, Tensor], where: str, hints: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The preset and the settings that a state dict shows.

    Args:
        tensors: the state dict.
        where: names the file in errors.
        hints: ``num_heads``, and ``backbone`` where it is no ResNet-D of a usual depth.

    Raises:
        UserError: the backbone is unknown.
    """
    layer, attended = "decoder.decoder.layers.0", "encoder.encoder.0.layers.0"
    blocks = tuple(
        count(tensors, rf"backbone\.res_layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)
    )
    bottleneck = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in tensors
    usual = "r50" if bottleneck else "r18", hints["backbone"]
    size, backbone = RESNETS_D.get((blocks, bottleneck), usual)
    if backbone is None:
        raise UserError(f"{where}: the backbone is no usual ResNet-D; say which it is")
    encoder_width = side(tensors, "encoder.lateral_convs.0.conv.weight")
    sizes: dict[str, Any] = {
        "num_classes": side(tensors, "decoder.dec_score_head.0.weight"),
        "width": side(tensors, "decoder.dec_score_head.0.weight", 1),
        "ffn_width": side(tensors, f"{layer}.linear1.weight"),
        "encoder_width": encoder_width,
        "encoder_layers": count(tensors, r"encoder\.encoder\.0\.layers\.(\d+)\."),
        "decoder_layers": count(tensors, r"decoder\.decoder\.layers\.(\d+)\."),
        "expansion": side(tensors, "encoder.fpn_blocks.0.conv1.conv.weight") / encoder_width,
        "levels": count(tensors, r"encoder\.input_proj\.(\d+)\."),
        "backbone": backbone,
    }
    if sizes["encoder_layers"]:
        sizes["encoder_ffn_width"] = side(tensors, f"{attended}.linear1.weight")
    samples = side(tensors, f"{layer}.cross_attn.attention_weights.weight") // hints["num_heads"]
    sizes["points"] = max(1, samples // max(1, sizes["levels"]))
    scale = tensors.get(f"{layer}.cross_attn.num_points_scale")
    if scale is not None and len(set(each := points_of(scale))) > 1:
        sizes["points"] = each
    if size == "r50" and sizes["expansion"] == 0.5:
        size = "r50-m"
    version = "v2-" if "decoder.enc_output.proj.weight" in tensors else ""
    whose = "deim-" if "decoder.query_pos_head.layers.2.weight" in tensors else ""
    return f"{whose}rt-detr-{version}{size}", sizes


def points_of(scale: Tensor) -> tuple[int, ...]:
    """Points of each level from one part of each: 1/3, 1/3, 1/3, 1/2, 1/2 are 3 and 2."""
    parts = scale.flatten().tolist()
    points: list[int] = []
    while sum(points) < len(parts):
        part = parts[sum(points)]
        points.append(max(1, round(1 / part)) if part > 1e-3 else 1000)  # also where it is NaN
    return tuple(points)
