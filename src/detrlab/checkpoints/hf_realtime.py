"""RT-DETR, RT-DETRv2 and D-FINE in transformers: names of the tensors, and ``config.json``.

DEIM and DEIMv2 are not here: transformers 5.24 has ReLU in their heads where the originals have
SiLU, and its DEIMv2 projects the memory before it selects queries, which the originals do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.checkpoints.rtdetr import RESNETS_D
from detrlab.checkpoints.rules import Layout, Row
from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.models.backbones.hgnet import NAMES, stages_of, stem_of
from detrlab.presets import PRESETS, model_config
from detrlab.presets.deimv2 import DeimV2N
from detrlab.presets.dfine import DFine
from detrlab.presets.rtdetr import RtDetr, RtDetrV2, RtDetrV2R18Discrete

KINDS = {
    "rt_detr": "RTDetrForObjectDetection",
    "rt_detr_v2": "RTDetrV2ForObjectDetection",
    "d_fine": "DFineForObjectDetection",
}

_WIDTHS = {False: (64, 128, 256, 512), True: (256, 512, 1024, 2048)}
"""Channels of a ResNet's stages, by whether its blocks are bottlenecks."""

_BACKBONE = "model.backbone.model"


def layout(config: RtDetr, *, in_memory: bool) -> Layout:
    """How transformers names the tensors: since 5.0 in memory, or on disk."""
    fine = isinstance(config, DFine)
    rows = [*(_hgnet() if fine else _resnet()), *_encoder(fine, in_memory), *_decoder(config)]
    rows += _layers(config, in_memory)
    kind = kind_of(config)
    return Layout(
        f"transformers {KINDS[kind].removesuffix('ForObjectDetection')}",
        tuple(rows),
        config.decoder_layers,
        needs_all_aliases=False,
        counts_batches=True,
        derived=_derived(config),
    )


def kind_of(config: ModelConfig) -> str:
    """The ``model_type`` in transformers.

    Raises:
        UserError: transformers has no such detector.
    """
    if not isinstance(config, RtDetr):
        raise UserError(f"transformers has no detector like {config.preset!r}")
    if isinstance(config, DeimV2N) or config.activation is not F.relu:
        raise UserError(
            f"transformers does not compute what {config.preset} does: there the heads have ReLU "
            "where DEIM's have SiLU"
            + ", and the memory is projected first" * isinstance(config, DeimV2N)
            + "; such a detector cannot be exported there"
        )
    if isinstance(config, DFine):
        return "d_fine"
    return "rt_detr_v2" if isinstance(config, RtDetrV2) else "rt_detr"


def _pairs(ours: str, theirs: str, **parts: str) -> list[Row]:
    return [(f"{ours}.{a}.{{rest}}", (f"{theirs}.{b}.{{rest}}",)) for a, b in parts.items()]


def _resnet() -> list[Row]:
    ours, theirs = "backbone.body", f"{_BACKBONE}.embedder.embedder"
    stem = {"conv1.0": "0.convolution", "conv1.1": "0.normalization", "conv1.3": "1.convolution"}
    stem |= {"conv1.4": "1.normalization", "conv1.6": "2.convolution", "bn1": "2.normalization"}
    rows = _pairs(ours, theirs, **stem)
    for stage in range(4):
        here = f"{ours}.layer{stage + 1}.{{i}}"
        there = f"{_BACKBONE}.encoder.stages.{stage}.layers.{{i}}"
        for unit in range(3):
            layer = f"{there}.layer.{unit}"
            rows.append((f"{here}.conv{unit + 1}.{{rest}}", (f"{layer}.convolution.{{rest}}",)))
            rows.append((f"{here}.bn{unit + 1}.{{rest}}", (f"{layer}.normalization.{{rest}}",)))
        short = f"{there}.shortcut" if stage == 0 else f"{there}.shortcut.1"
        downsample = {"1": "convolution", "2": "normalization"}
        rows += _pairs(f"{here}.downsample", short, **downsample)
    return rows


def _hgnet() -> list[Row]:
    block = "stages.{s}.blocks.{b}"
    places = {f"stem.stem{name}": f"embedder.stem{name}" for name in ("1", "2a", "2b", "3", "4")}
    inner = ("layers.{l}", "layers.{l}.conv1", "layers.{l}.conv2", "aggregation.{l}")
    places |= {f"{block}.{name}": f"encoder.{block}.{name}" for name in inner}
    places |= {"stages.{s}.downsample": "encoder.stages.{s}.downsample"}
    names = {"conv": "convolution", "bn": "normalization", "lab": "lab"}
    return [
        row
        for ours, theirs in places.items()
        for row in _pairs(f"backbone.{ours}", f"{_BACKBONE}.{theirs}", **names)
    ]


def _encoder(fine: bool, in_memory: bool) -> list[Row]:
    conv_norm = {"conv": "0", "norm": "1"}
    rows = [
        *_pairs("encoder.projections.{l}", "model.encoder_input_proj.{l}", **conv_norm),
        *_pairs("encoder.outputs.{l}", "model.decoder_input_proj.{l}", **conv_norm),
        ("encoder.laterals.{rest}", ("model.encoder.lateral_convs.{rest}",)),
    ]
    down = "model.encoder.downsample_convs"
    if fine:
        for number in (0, 1):
            there = f"{down}.{{i}}.conv{number + 1}.{{rest}}"
            rows.append((f"encoder.halvings.{{i}}.{number}.{{rest}}", (there,)))
    else:
        rows.append(("encoder.halvings.{rest}", (f"{down}.{{rest}}",)))
    for name, blocks in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks")):
        ours, theirs = f"encoder.{name}.{{i}}", f"model.encoder.{blocks}.{{i}}"
        branches = {ours: theirs}
        if fine:
            branches = {
                f"{ours}.cv2.0": f"{theirs}.csp_rep1",
                f"{ours}.cv3.0": f"{theirs}.csp_rep2",
            }
            parts = {"cv1": "conv1", "cv2.1": "conv2", "cv3.1": "conv3", "cv4": "conv4"}
            rows += _pairs(ours, theirs, **parts)
        for here, there in branches.items():
            # Ours is both of their convolutions, stacked; conv2 makes the half that passes by.
            rows.append((f"{here}.conv1.{{rest}}", (f"{there}.[conv2|conv1].{{rest}}",)))
            rows += _pairs(here, there, bottlenecks="bottlenecks", conv3="conv3")
    layer = f"model.encoder.{'aifi' if in_memory else 'encoder'}.{{l}}.layers.{{i}}"
    ours = "encoder.within.{l}.layers.{i}"
    return [
        *rows,
        *_attention(f"{ours}.attention", f"{layer}.self_attn", in_memory),
        (f"{ours}.attention_norm.{{rest}}", (f"{layer}.self_attn_layer_norm.{{rest}}",)),
        *_feed_forward(ours, layer, fine, in_memory),
    ]


def _decoder(config: RtDetr) -> list[Row]:
    heads = {
        "classes": "class_embed",
        "corners" if isinstance(config, DFine) else "boxes": "bbox_embed",
    }
    rows: list[Row] = [
        ("queries.source.memory_proj.{rest}", ("model.enc_output.0.{rest}",)),
        ("queries.source.memory_norm.{rest}", ("model.enc_output.1.{rest}",)),
        ("queries.source.head.classes.{rest}", ("model.enc_score_head.{rest}",)),
        ("queries.source.head.boxes.{rest}", ("model.enc_bbox_head.{rest}",)),
        ("queries.labels", ("model.denoising_class_embed.weight",)),
        ("decoder.position.network.{rest}", ("model.decoder.query_pos_head.{rest}",)),
        ("decoder.start.{rest}", ("model.decoder.pre_bbox_head.{rest}",)),
        (
            "decoder.quality.{i}.network.{rest}",
            ("model.decoder.lqe_layers.{i}.reg_conf.{rest}",),
        ),
        ("decoder.edges.reach", ("model.decoder.up",)),
        ("decoder.edges.scale", ("model.decoder.reg_scale",)),
    ]
    for ours, theirs in heads.items():
        name = (
            f"decoder.{ours}.{{i}}" if isinstance(config, DFine) else f"decoder.heads.{{i}}.{ours}"
        )
        aliases = (f"model.decoder.{theirs}.{{i}}.{{rest}}", f"{theirs}.{{i}}.{{rest}}")
        rows.append((f"{name}.{{rest}}", aliases))
    return rows


def _layers(config: RtDetr, in_memory: bool) -> list[Row]:
    ours, theirs = "decoder.layers.{i}", "model.decoder.layers.{i}"
    fine = isinstance(config, DFine)
    norm = "gateway.norm" if fine else "encoder_attn_layer_norm"
    return [
        *_attention(f"{ours}.self_attention", f"{theirs}.self_attn", in_memory),
        (f"{ours}.self_attention_norm.{{rest}}", (f"{theirs}.self_attn_layer_norm.{{rest}}",)),
        (f"{ours}.cross_attention.{{rest}}", (f"{theirs}.encoder_attn.{{rest}}",)),
        (f"{ours}.cross_attention_norm.{{rest}}", (f"{theirs}.{norm}.{{rest}}",)),
        (f"{ours}.gate.{{rest}}", (f"{theirs}.gateway.gate.{{rest}}",)),
        *_feed_forward(ours, theirs, fine, in_memory),
    ]


def _attention(ours: str, theirs: str, in_memory: bool) -> list[Row]:
    out = "o_proj" if in_memory else "out_proj"
    return [
        (f"{ours}.in_proj_weight", (f"{theirs}.[q|k|v]_proj.weight",)),
        (f"{ours}.in_proj_bias", (f"{theirs}.[q|k|v]_proj.bias",)),
        (f"{ours}.out_proj.{{rest}}", (f"{theirs}.{out}.{{rest}}",)),
    ]


def _feed_forward(ours: str, theirs: str, fine: bool, in_memory: bool) -> list[Row]:
    names = ("fc1", "fc2")
    if in_memory:
        names = ("mlp.layers.0", "mlp.layers.1") if fine else ("mlp.fc1", "mlp.fc2")
    return [
        (f"{ours}.ffn.linear1.{{rest}}", (f"{theirs}.{names[0]}.{{rest}}",)),
        (f"{ours}.ffn.linear2.{{rest}}", (f"{theirs}.{names[1]}.{{rest}}",)),
        (f"{ours}.ffn_norm.{{rest}}", (f"{theirs}.final_layer_norm.{{rest}}",)),
    ]


def _points(config: RtDetr) -> tuple[int, ...]:
    return config.points if isinstance(config.points, tuple) else (config.points,) * config.levels


def _derived(config: RtDetr) -> dict[str, Tensor]:
    """Buffers that follow from the architecture."""
    name = {"d_fine": "num_points_scale", "rt_detr_v2": "n_points_scale"}.get(kind_of(config))
    if name is None:
        return {}
    scale = torch.cat([torch.full((count,), 1 / count) for count in _points(config)])
    layers = range(config.decoder_layers)
    return {f"model.decoder.layers.{i}.encoder_attn.{name}": scale for i in layers}


def without_unused_layers(
    config: RtDetr, state: Mapping[str, Tensor]
) -> tuple[RtDetr, dict[str, Tensor]]:
    """The decoder layers that run at evaluation only: transformers always runs all of them."""
    layers = config.evaluated_layers
    if layers is None or layers >= config.decoder_layers:
        return config, dict(state)
    fewer = config.change(decoder_layers=layers)
    assert isinstance(fewer, RtDetr)
    past = re.compile(r"decoder\.(?:layers|heads|classes|corners|quality)\.(\d+)\.")
    kept = {
        name: tensor
        for name, tensor in state.items()
        if (match := past.match(name)) is None or int(match[1]) < layers
    }
    return fewer, kept


def to_config(config: RtDetr, classes: Sequence[str]) -> dict[str, Any]:
    """The contents of a ``config.json``.

    Raises:
        UserError: transformers has no such model.
    """
    kind, points = kind_of(config), _points(config)
    backbone, channels = _backbone_config(config)
    if kind != "d_fine" and len(set(points)) > 1:
        raise UserError(f"transformers has one number of points for all levels, not {points}")
    labels = {str(index): name for index, name in enumerate(classes)}
    values: dict[str, Any] = {
        "model_type": kind,
        "architectures": [KINDS[kind]],
        "backbone_config": backbone,
        "freeze_backbone_batch_norms": config.backbone_norms == "frozen",
        "d_model": config.width,
        "encoder_hidden_dim": config.encoder_width,
        "encoder_in_channels": list(channels),
        "feat_strides": [32 >> level for level in reversed(range(config.levels))],
        "encode_proj_layers": [config.levels - 1],
        "encoder_layers": config.encoder_layers,
        "encoder_ffn_dim": config.encoder_ffn_width,
        "encoder_attention_heads": config.num_heads,
        "encoder_activation_function": "gelu",
        "activation_function": "silu",
        "hidden_expansion": config.expansion,
        "num_queries": config.num_queries,
        "num_feature_levels": config.levels,
        "decoder_in_channels": [config.encoder_width] * config.levels,
        "decoder_layers": config.decoder_layers,
        "decoder_ffn_dim": config.ffn_width,
        "decoder_attention_heads": config.num_heads,
        "decoder_activation_function": "relu",
        "decoder_n_points": list(points) if kind == "d_fine" else points[0],
        "dropout": config.dropout,
        "num_denoising": config.denoising,
        "label_noise_ratio": config.label_noise,
        "box_noise_scale": config.box_noise,
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
    }
    if isinstance(config, DFine):
        values |= {
            "depth_mult": config.fusing_blocks / 3,
            "reg_scale": config.edge_scale,
            "up": 0.5,
            "eval_idx": -1,
        }
    elif config.fusing_blocks != 3:
        raise UserError(f"transformers has three fusing blocks, not {config.fusing_blocks}")
    if kind == "rt_detr_v2":
        method = "discrete" if isinstance(config, RtDetrV2R18Discrete) else "default"
        values |= {"decoder_n_levels": config.levels, "decoder_method": method}
    return values


def _backbone_config(config: RtDetr) -> tuple[dict[str, Any], Sequence[int]]:
    """Its description, and the channels of the maps that are read."""
    features = [f"stage{number}" for number in range(5 - config.levels, 5)]
    if isinstance(config, DFine) and config.backbone in NAMES:
        rows = stages_of(config.backbone)
        keys = (
            "in_channels", "mid_channels", "out_channels", "num_blocks", "downsample",
            "light_block", "kernel_size", "numb_of_layers",
        )  # fmt: skip
        columns = dict(zip(keys, map(list, zip(*rows, strict=True)), strict=True))
        widths = columns["out_channels"]
        values = {
            "model_type": "hgnet_v2",
            "stem_channels": [3, *stem_of(config.backbone)],
            **{f"stage_{key}": column for key, column in columns.items()},
            "hidden_sizes": widths,
            "depths": columns["numb_of_layers"],
            "use_learnable_affine_block": config.affine,
            "out_features": features,
        }
        return values, widths[-config.levels :]
    for (depths, bottleneck), (_, name) in RESNETS_D.items():
        if name == config.backbone and not isinstance(config, DFine):
            widths = list(_WIDTHS[bottleneck])
            values = {
                "model_type": "rt_detr_resnet",
                "depths": list(depths),
                "hidden_sizes": widths,
                "layer_type": "bottleneck" if bottleneck else "basic",
                "out_features": features,
            }
            return values, widths[-config.levels :]
    raise UserError(
        f"transformers' {KINDS[kind_of(config)]} has no backbone like {config.backbone!r}: such a "
        "detector cannot be exported there"
    )


_SETTINGS: dict[str, tuple[str, Any]] = {
    "width": ("d_model", 256),
    "encoder_width": ("encoder_hidden_dim", 256),
    "encoder_layers": ("encoder_layers", 1),
    "encoder_ffn_width": ("encoder_ffn_dim", 1024),
    "expansion": ("hidden_expansion", 1.0),
    "levels": ("num_feature_levels", 3),
    "num_queries": ("num_queries", 300),
    "decoder_layers": ("decoder_layers", 6),
    "ffn_width": ("decoder_ffn_dim", 1024),
    "num_heads": ("decoder_attention_heads", 8),
    "dropout": ("dropout", 0.0),
    "denoising": ("num_denoising", 100),
    "label_noise": ("label_noise_ratio", 0.5),
    "box_noise": ("box_noise_scale", 1.0),
}
"""Ours: theirs, and their default."""

_FIXED: dict[str, Any] = {
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "learn_initial_query": False,
    "normalize_before": False,
    "layer_scale": 1,
    "max_num_bins": 32,
}
"""What no detector of ours has otherwise."""


def from_config(values: Mapping[str, Any], num_classes: int, where: str) -> RtDetr:
    """The architecture that a ``config.json`` describes.

    Raises:
        UserError: it has a part that detrlab does not have.
    """
    preset, backbone = _preset_of(values, where)
    kind, fixed = PRESETS[preset], dict(_FIXED)
    if issubclass(kind, DFine):
        fixed["reg_scale"] = kind.edge_scale
        blocks = round(3 * values.get("depth_mult", 1.0))
        if blocks != kind.fusing_blocks:
            raise UserError(f"{where}: depth_mult {values['depth_mult']} is none of a {preset}")
    for key, wanted in fixed.items():
        if (given := values.get(key, wanted)) != wanted:
            raise UserError(f"{where}: {key} is {given!r}; a {preset} of detrlab has {wanted!r}")
    points = values.get("decoder_n_points", 4)
    config = model_config(
        preset,
        num_classes,
        backbone=backbone,
        points=tuple(points) if isinstance(points, list | tuple) else points,
        backbone_norms="frozen" if values.get("freeze_backbone_batch_norms", True) else "trained",
        **{ours: values.get(theirs, usual) for ours, (theirs, usual) in _SETTINGS.items()},
    )
    assert isinstance(config, RtDetr)
    return config


def _preset_of(values: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The preset, and its backbone."""
    backbone = values.get("backbone_config") or {}
    if values["model_type"] == "d_fine":
        name = _hgnet_of(backbone, where)
        sizes = {"b0": "s", "b2": "m", "b4": "l", "b5": "x"}
        small = values.get("num_feature_levels") == 2
        return f"d-fine-{'n' if small else sizes.get(name[-2:], 's')}", name
    bottleneck = backbone.get("layer_type", "bottleneck") == "bottleneck"
    depths = tuple(backbone.get("depths", (3, 4, 6, 3)))
    size, found = RESNETS_D.get((depths, bottleneck), ("", None))
    if found is None or backbone.get("model_type", "rt_detr_resnet") != "rt_detr_resnet":
        raise UserError(f"{where}: the backbone, of depths {depths}, is no usual ResNet-D")
    if values.get("decoder_method") == "discrete":
        return "rt-detr-v2-r18-dsp", found
    if size == "r50" and values.get("hidden_expansion") == 0.5:
        size = "r50-m"
    return f"rt-detr-{'v2-' * (values['model_type'] == 'rt_detr_v2')}{size}", found


def _hgnet_of(values: Mapping[str, Any], where: str) -> str:
    wanted = (values.get("stage_mid_channels"), values.get("stage_out_channels"))
    for name in NAMES:
        _, inside, out, *_ = map(list, zip(*stages_of(name), strict=True))
        if wanted == (inside, out) and values.get("stage_num_blocks") == [
            r[3] for r in stages_of(name)
        ]:
            return name
    raise UserError(f"{where}: the backbone is no HGNetV2 that detrlab knows: {', '.join(NAMES)}")
