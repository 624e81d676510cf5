"""The layouts of Hugging Face transformers.

One layout, three spellings: in memory since 5.0; on disk, which is that of 4.x and of the files
on the Hub; and, with either, transformers' own ResNet instead of timm's (the "no_timm"
revisions). A file on disk keeps one name of a tensor that has several.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from detrlab.checkpoints import hf_realtime
from detrlab.checkpoints.official import rows_for
from detrlab.checkpoints.rules import Layout, Row
from detrlab.config import ModelConfig
from detrlab.presets.detr import Detr
from detrlab.presets.parts import TransformerConfig
from detrlab.presets.rtdetr import RtDetr


class Spelling(NamedTuple):
    """What differs between the spellings.

    Attributes:
        backbone: prefix of the backbone's tensors.
        out_proj: the output projection of dense attention.
        fc: prefix of the feed-forward layers.
        own_resnet: transformers' own ResNet, instead of timm's.
    """

    backbone: str
    out_proj: str
    fc: str
    own_resnet: bool = False


IN_MEMORY = Spelling("model.backbone.model", "o_proj", "mlp.fc")
ON_DISK = Spelling("model.backbone.conv_encoder.model", "out_proj", "fc")


def spelling_of(names: Iterable[str]) -> Spelling:
    """The spelling a state dict is written in."""
    names = list(names)
    on_disk = any(name.startswith(ON_DISK.backbone) or ".out_proj." in name for name in names)
    own_resnet = any(".embedder.embedder.convolution." in name for name in names)
    return (ON_DISK if on_disk else IN_MEMORY)._replace(own_resnet=own_resnet)


def layout(config: ModelConfig, spelling: Spelling) -> Layout:
    """How transformers names the tensors of this architecture.

    The first of several aliases is the one that transformers keeps on disk.
    """
    if isinstance(config, RtDetr):
        return hf_realtime.layout(config, in_memory=spelling.out_proj == IN_MEMORY.out_proj)
    heads = rows_for(
        config, "transformers", _DETR_HEADS, _PLAIN_HEADS, _REFINE_HEADS, _TWO_STAGE_HEADS
    )
    assert isinstance(config, TransformerConfig)
    fallbacks: tuple[Row, ...] = ()
    if heads is _REFINE_HEADS:
        # Built by transformers 5 from a configuration, the class heads are tied to the first.
        fallbacks = (("decoder.heads.{i}.classes.{rest}", ("class_embed.0.{rest}",)),)
    return Layout(
        "transformers DETR" if isinstance(config, Detr) else "transformers Deformable DETR",
        (*_backbone_rows(spelling), *_transformer_rows(config, spelling), *heads),
        config.decoder_layers,
        needs_all_aliases=False,
        fallbacks=fallbacks,
    )


def _backbone_rows(spelling: Spelling) -> tuple[Row, ...]:
    ours, theirs = "backbone.body", spelling.backbone
    if not spelling.own_resnet:
        return ((f"{ours}.{{rest}}", (f"{theirs}.{{rest}}",)),)
    stem = f"{theirs}.embedder.embedder"
    rows: list[Row] = [
        (f"{ours}.conv1.{{rest}}", (f"{stem}.convolution.{{rest}}",)),
        (f"{ours}.bn1.{{rest}}", (f"{stem}.normalization.{{rest}}",)),
    ]
    for stage in range(4):
        here = f"{ours}.layer{stage + 1}.{{b}}"
        there = f"{theirs}.encoder.stages.{stage}.layers.{{b}}"
        for unit in range(3):
            layer = f"{there}.layer.{unit}"
            rows.append((f"{here}.conv{unit + 1}.{{rest}}", (f"{layer}.convolution.{{rest}}",)))
            rows.append((f"{here}.bn{unit + 1}.{{rest}}", (f"{layer}.normalization.{{rest}}",)))
        shortcut = f"{there}.shortcut"
        rows.append((f"{here}.downsample.0.{{rest}}", (f"{shortcut}.convolution.{{rest}}",)))
        rows.append((f"{here}.downsample.1.{{rest}}", (f"{shortcut}.normalization.{{rest}}",)))
    return tuple(rows)


def _transformer_rows(config: ModelConfig, spelling: Spelling) -> list[Row]:
    rows: list[Row] = []
    for stack in ("encoder", "decoder"):
        ours, theirs = f"{stack}.layers.{{i}}", f"model.{stack}.layers.{{i}}"
        ffn = f"{theirs}.{spelling.fc}"
        rows += [
            (f"{ours}.ffn.linear1.{{rest}}", (f"{ffn}1.{{rest}}",)),
            (f"{ours}.ffn.linear2.{{rest}}", (f"{ffn}2.{{rest}}",)),
            (f"{ours}.ffn_norm.{{rest}}", (f"{theirs}.final_layer_norm.{{rest}}",)),
        ]
    ours, theirs = "encoder.layers.{i}.attention", "model.encoder.layers.{i}.self_attn"
    rows += _attention_rows(ours, theirs, spelling, dense=isinstance(config, Detr))
    rows.append((f"{ours}_norm.{{rest}}", (f"{theirs}_layer_norm.{{rest}}",)))
    ours, theirs = "decoder.layers.{i}.self_attention", "model.decoder.layers.{i}.self_attn"
    rows += _attention_rows(ours, theirs, spelling, dense=True)
    rows.append((f"{ours}_norm.{{rest}}", (f"{theirs}_layer_norm.{{rest}}",)))
    ours, theirs = "decoder.layers.{i}.cross_attention", "model.decoder.layers.{i}.encoder_attn"
    rows += _attention_rows(ours, theirs, spelling, dense=isinstance(config, Detr))
    rows.append((f"{ours}_norm.{{rest}}", (f"{theirs}_layer_norm.{{rest}}",)))
    return rows


def _attention_rows(ours: str, theirs: str, spelling: Spelling, *, dense: bool) -> list[Row]:
    if not dense:
        return [(f"{ours}.{{rest}}", (f"{theirs}.{{rest}}",))]
    return [
        (f"{ours}.in_proj_weight", (f"{theirs}.[q|k|v]_proj.weight",)),
        (f"{ours}.in_proj_bias", (f"{theirs}.[q|k|v]_proj.bias",)),
        (f"{ours}.out_proj.{{rest}}", (f"{theirs}.{spelling.out_proj}.{{rest}}",)),
    ]


_DETR_HEADS: tuple[Row, ...] = (
    ("encoder.neck.projections.0.0.{rest}", ("model.input_projection.{rest}",)),
    ("queries.position", ("model.query_position_embeddings.weight",)),
    ("decoder.norm.{rest}", ("model.decoder.layernorm.{rest}",)),
    ("decoder.heads.0.classes.{rest}", ("class_labels_classifier.{rest}",)),
    ("decoder.heads.0.boxes.{rest}", ("bbox_predictor.{rest}",)),
)

_PYRAMID: tuple[Row, ...] = (
    ("encoder.neck.projections.{l}.{j}.{rest}", ("model.input_proj.{l}.{j}.{rest}",)),
    ("encoder.neck.position.level_embedding", ("model.level_embed",)),
)

_POINTS: tuple[Row, ...] = (
    *_PYRAMID,
    ("queries.embedding", ("model.query_position_embeddings.weight",)),
    ("queries.reference_points.{rest}", ("model.reference_points.{rest}",)),
)

_PLAIN_HEADS: tuple[Row, ...] = (
    *_POINTS,
    ("decoder.heads.0.classes.{rest}", ("class_embed.{every}.{rest}",)),
    ("decoder.heads.0.boxes.{rest}", ("bbox_embed.{every}.{rest}",)),
)

_REFINED_BOXES: Row = (
    "decoder.heads.{i}.boxes.{rest}",
    ("model.decoder.bbox_embed.{i}.{rest}", "bbox_embed.{i}.{rest}"),
)

_REFINE_HEADS: tuple[Row, ...] = (
    *_POINTS,
    ("decoder.heads.{i}.classes.{rest}", ("class_embed.{i}.{rest}",)),
    _REFINED_BOXES,
)

_TWO_STAGE_HEADS: tuple[Row, ...] = (
    *_PYRAMID,
    (
        "decoder.heads.{i}.classes.{rest}",
        ("model.decoder.class_embed.{i}.{rest}", "class_embed.{i}.{rest}"),
    ),
    _REFINED_BOXES,
    (
        "queries.head.classes.{rest}",
        ("model.decoder.class_embed.{last}.{rest}", "class_embed.{last}.{rest}"),
    ),
    (
        "queries.head.boxes.{rest}",
        ("model.decoder.bbox_embed.{last}.{rest}", "bbox_embed.{last}.{rest}"),
    ),
    ("queries.memory_proj.{rest}", ("model.enc_output.{rest}",)),
    ("queries.memory_norm.{rest}", ("model.enc_output_norm.{rest}",)),
    ("queries.embedding_proj.{rest}", ("model.pos_trans.{rest}",)),
    ("queries.embedding_norm.{rest}", ("model.pos_trans_norm.{rest}",)),
)
