"""The layouts of lyuwenyu/RT-DETR, ``rtdetr_pytorch`` and ``rtdetrv2_pytorch``.

DEIM's RT-DETRv2 has the second one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detrlab.checkpoints.rules import Layout, Row
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
    return tuple(
        (f"backbone.body.{ours}.{{rest}}", (f"backbone.{theirs}.{{rest}}",))
        for ours, theirs in renamed.items()
    )


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

_DECODER: tuple[Row, ...] = (
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
    *_DECODER,
)

V2: tuple[Row, ...] = (
    *_resnet(),
    ("encoder.projections.{rest}", ("encoder.input_proj.{rest}",)),
    *_ENCODER,
    ("queries.source.memory_proj.{rest}", ("decoder.enc_output.proj.{rest}",)),
    ("queries.source.memory_norm.{rest}", ("decoder.enc_output.norm.{rest}",)),
    *_DECODER,
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


SIGN = "decoder.dec_score_head.0.weight"
"""A tensor that RT-DETR and its successors have."""

_BACKBONES = {
    ((2, 2, 2, 2), False): "r18",
    ((3, 4, 6, 3), False): "r34",
    ((3, 4, 6, 3), True): "r50",
    ((3, 4, 23, 3), True): "r101",
}
"""Blocks of each stage, whether they are bottlenecks -> the end of a preset's name."""
