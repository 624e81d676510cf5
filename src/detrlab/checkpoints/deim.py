"""The layouts of DEIMv2, DEIM and D-FINE."""

from __future__ import annotations

from detrlab.checkpoints.rtdetr import HYBRID_ENCODER, derived
from detrlab.checkpoints.rules import Layout, Row
from detrlab.config import ModelConfig
from detrlab.presets.deimv2 import DeimV2Femto, DeimV2N
from detrlab.presets.dfine import DFine

LITE: tuple[Row, ...] = (
    ("encoder.projection.{rest}", ("encoder.input_proj.0.{rest}",)),
    ("encoder.down1.{rest}", ("encoder.down_sample1.{rest}",)),
    ("encoder.down2.{rest}", ("encoder.down_sample2.{rest}",)),
    ("encoder.mix.{rest}", ("encoder.bi_fusion.cv.{rest}",)),
    ("encoder.top_down.{rest}", ("encoder.fpn_block.{rest}",)),
    ("encoder.bottom_up.{rest}", ("encoder.pan_block.{rest}",)),
)

DECODER: tuple[Row, ...] = (
    ("backbone.{rest}", ("backbone.{rest}",)),
    ("queries.labels", ("decoder.denoising_class_embed.weight",)),
    ("queries.source.head.classes.{rest}", ("decoder.enc_score_head.{rest}",)),
    ("queries.source.head.boxes.{rest}", ("decoder.enc_bbox_head.{rest}",)),
    ("decoder.position.network.{rest}", ("decoder.query_pos_head.{rest}",)),
    ("decoder.start.{rest}", ("decoder.pre_bbox_head.{rest}",)),
    ("decoder.classes.{i}.{rest}", ("decoder.dec_score_head.{i}.{rest}",)),
    ("decoder.quality.{i}.network.{rest}", ("decoder.decoder.lqe_layers.{i}.reg_conf.{rest}",)),
    ("decoder.edges.reach", ("decoder.up", "decoder.decoder.up")),
    ("decoder.edges.scale", ("decoder.reg_scale", "decoder.decoder.reg_scale")),
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
    ("decoder.layers.{i}.ffn_norm.{rest}", ("decoder.decoder.layers.{i}.norm3.{rest}",)),
)

PLAIN: tuple[Row, ...] = (
    (
        "decoder.layers.{i}.cross_attention_norm.{rest}",
        ("decoder.decoder.layers.{i}.norm2.{rest}",),
    ),
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

FEED_FORWARD: tuple[Row, ...] = (
    ("decoder.layers.{i}.ffn.{rest}", ("decoder.decoder.layers.{i}.{rest}",)),
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

D_FINE = (
    *_HYBRID,
    *_TWO_CONVOLUTIONS,
    *_BLOCKS,
    *DECODER,
    *GATED,
    *PROJECTED,
    *OWN_CORNERS,
    *FEED_FORWARD,
)
DEIM_V2 = (*_HYBRID, *_BLOCKS, *DECODER, *GATED, *SWIGLU, *OWN_CORNERS)
DEIM_V2_LITE = (*LITE, *DECODER, *PLAIN, *SWIGLU, *SHARED_CORNERS)


def layout(config: ModelConfig) -> Layout | None:
    """How the originals name the tensors of such a detector; None if it is another."""
    for kind, name, rows in (
        (DeimV2Femto, "official DEIMv2", DEIM_V2_LITE),
        (DeimV2N, "official DEIMv2", DEIM_V2),
        (DFine, "official D-FINE", D_FINE),
    ):
        if isinstance(config, kind):
            layers, others = config.decoder_layers, derived(config)
            return Layout(name, rows, layers, counts_batches=True, derived=others)
    return None
