"""The layouts of DEIMv2, DEIM and D-FINE."""

from __future__ import annotations

from detrlab.checkpoints.rules import Row

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

DEIM_V2_LITE = (*LITE, *DECODER, *PLAIN, *SWIGLU, *SHARED_CORNERS)
