"""The layout of detrex's DINO, whose backbone is detectron2's ResNet.

Source: IDEA-Research/detrex, ``projects/dino`` and ``detrex/layers``; facebookresearch/detectron2,
``modeling/backbone/resnet.py``.
"""

from __future__ import annotations

from detrlab.checkpoints.rules import Row

SIGN = "transformer.level_embeds"
"""A tensor that other layouts do not have."""

_BLOCK = {
    "conv{j}": "conv{j}",
    "bn{j}": "conv{j}.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_ENCODER_LAYER = {
    "attention": "attentions.0",
    "attention_norm": "norms.0",
    "ffn.linear1": "ffns.0.layers.0.0",
    "ffn.linear2": "ffns.0.layers.1",
    "ffn_norm": "norms.1",
}
_DECODER_LAYER = {
    "self_attention": "attentions.0.attn",
    "self_attention_norm": "norms.0",
    "cross_attention": "attentions.1",
    "cross_attention_norm": "norms.1",
    "ffn.linear1": "ffns.0.layers.0.0",
    "ffn.linear2": "ffns.0.layers.1",
    "ffn_norm": "norms.2",
}
_MODULES = {
    "backbone.body.conv1": "backbone.stem.conv1",
    "backbone.body.bn1": "backbone.stem.conv1.norm",
    "decoder.norm": "transformer.decoder.norm",
    "decoder.position.linear1": "transformer.decoder.ref_point_head.layers.0",
    "decoder.position.linear2": "transformer.decoder.ref_point_head.layers.1",
    "queries.source.memory_proj": "transformer.enc_output",
    "queries.source.memory_norm": "transformer.enc_output_norm",
}
_REST: tuple[Row, ...] = (
    ("encoder.neck.position.level_embedding", (SIGN,)),
    ("queries.source.content", ("transformer.tgt_embed.weight",)),
    ("queries.labels", ("label_enc.weight",)),
    *(
        (
            f"{ours}.{part}.{{rest}}",
            (f"{theirs}.{{rest}}", f"transformer.decoder.{theirs}.{{rest}}"),
        )
        for part, head in (("classes", "class_embed"), ("boxes", "bbox_embed"))
        for ours, theirs in (
            ("decoder.heads.{i}", f"{head}.{{i}}"),
            ("queries.source.head", f"{head}.{{last}}"),
        )
    ),
)


def rows(levels: int, backbone_maps: int) -> tuple[Row, ...]:
    """The table for so many levels, of which the first ``backbone_maps`` read the backbone."""
    maps = min(levels, backbone_maps)
    necks = [f"convs.{level}" for level in range(maps)]
    necks += [f"extra_convs.{level}" for level in range(levels - maps)]
    stages = {f"backbone.body.layer{i}.{{i}}": f"backbone.res{i + 1}.{{i}}" for i in range(1, 5)}
    renamed = dict(_MODULES)
    for level, neck in enumerate(necks):
        renamed[f"encoder.neck.projections.{level}.0"] = f"neck.{neck}.conv"
        renamed[f"encoder.neck.projections.{level}.1"] = f"neck.{neck}.norm"
    for ours, theirs, parts in (
        *((ours, theirs, _BLOCK) for ours, theirs in stages.items()),
        ("encoder.layers.{i}", "transformer.encoder.layers.{i}", _ENCODER_LAYER),
        ("decoder.layers.{i}", "transformer.decoder.layers.{i}", _DECODER_LAYER),
    ):
        renamed |= {f"{ours}.{part}": f"{theirs}.{name}" for part, name in parts.items()}
    return (
        *((f"{ours}.{{rest}}", (f"{theirs}.{{rest}}",)) for ours, theirs in renamed.items()),
        *_REST,
    )
