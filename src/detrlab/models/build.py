"""``ModelConfig`` -> ``Network``: the only file that branches on configuration."""

from __future__ import annotations

import copy
from typing import TypeVar, assert_never

import torch
from torch import nn

from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.models import init
from detrlab.models.attention import DeformableAttention, DenseAttention, SelfAttention
from detrlab.models.backbone import Backbone, build_backbone
from detrlab.models.heads import PredictionHead
from detrlab.models.neck import Neck
from detrlab.models.network import Network
from detrlab.models.position import LevelPosition, SinePosition
from detrlab.models.proposals import ProposalQueries
from detrlab.models.queries import LearnedPoints, LearnedPositions, QuerySource
from detrlab.models.references import (
    cell_centers,
    keep_references,
    no_references,
    refine_references,
)
from detrlab.models.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward
from detrlab.scoring import Scoring, SigmoidScoring, SoftmaxScoring

Part = TypeVar("Part", bound=nn.Module)

BACKBONE_STAGES = 3
"""Most stages a neck reads (C3 to C5); further levels are made by strided projections."""


def build_network(
    config: ModelConfig, *, pretrained_backbone: bool = False, seed: int = 0
) -> Network:
    """A detector with the originals' initial values.

    Args:
        config: the architecture.
        pretrained_backbone: start the backbone from ImageNet weights.
        seed: of the initial values. Two detectors built with the same seed and backbone start
            with the same backbone weights, whatever else differs.

    Raises:
        UserError: the backbone is unknown, cannot serve, or has no weights to be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build_backbone(config, pretrained_backbone)
        torch.manual_seed(seed)  # whatever the backbone drew, the rest starts alike
        return Network(
            backbone=backbone,
            neck=_build_neck(config, backbone),
            encoder=_build_encoder(config),
            queries=_build_queries(config),
            decoder=_build_decoder(config),
        )


def build_scoring(config: ModelConfig) -> Scoring:
    """How the detector's class logits are read."""
    return SoftmaxScoring() if config.scoring == "softmax" else SigmoidScoring()


def _build_backbone(config: ModelConfig, pretrained: bool) -> Backbone:
    backbone = build_backbone(
        config.backbone,
        stages=min(config.levels, BACKBONE_STAGES),
        dilation=config.dilation,
        norms=config.backbone_norms,
        trains=config.backbone_trains,
        pretrained=pretrained,
    )
    if list(backbone.strides) != sorted(set(backbone.strides)) and not config.dilation:
        raise UserError(
            f"backbone {config.backbone!r} gives maps of strides {backbone.strides}; "
            "each level must be coarser than the one before: choose a hierarchical backbone"
        )
    return backbone


def _build_neck(config: ModelConfig, backbone: Backbone) -> Neck:
    sine = SinePosition(config.width, config.position_offset)
    if config.neck == "projection":
        convolution = nn.Conv2d(backbone.channels[-1], config.width, kernel_size=1)
        neck = Neck([nn.Sequential(convolution)], sine)
    elif config.neck == "pyramid":
        neck = Neck(_pyramid(config, backbone.channels), LevelPosition(sine, config.levels))
    else:
        assert_never(config.neck)
    init.init_neck(neck)
    return neck


def _pyramid(config: ModelConfig, channels: tuple[int, ...]) -> list[nn.Module]:
    """One projection per level: 1x1 on the backbone's maps, then strided 3x3."""
    convolutions = [nn.Conv2d(c, config.width, kernel_size=1) for c in channels]
    source = channels[-1]  # the first extra level reads the raw C5
    for _ in range(config.levels - len(channels)):
        convolutions.append(nn.Conv2d(source, config.width, kernel_size=3, stride=2, padding=1))
        source = config.width
    return [nn.Sequential(conv, nn.GroupNorm(32, config.width)) for conv in convolutions]


def _build_memory_attention(config: ModelConfig) -> nn.Module:
    if config.attention == "dense":
        return DenseAttention(config.width, config.num_heads, config.dropout)
    if config.attention == "deformable":
        return DeformableAttention(config.width, config.num_heads, config.levels, config.points)
    assert_never(config.attention)


def _build_feed_forward(config: ModelConfig) -> FeedForward:
    return FeedForward(config.width, config.ffn_width, config.dropout)


def _stack(layer: Part, count: int) -> list[Part]:
    """Copies of one layer, so that biases and norms start equal; matrices are drawn anew."""
    return [copy.deepcopy(layer) for _ in range(count)]


def _build_encoder(config: ModelConfig) -> Encoder:
    layer = EncoderLayer(
        _build_memory_attention(config), _build_feed_forward(config), config.width, config.dropout
    )
    references = no_references if config.attention == "dense" else cell_centers
    encoder = Encoder(_stack(layer, config.encoder_layers), references)
    init.init_transformer([encoder])
    return encoder


def _build_queries(config: ModelConfig) -> QuerySource:
    queries: QuerySource
    if config.queries == "positions":
        queries = LearnedPositions(config.num_queries, config.width)
    elif config.queries == "points":
        queries = LearnedPoints(config.num_queries, config.width)
    elif config.queries == "proposals":
        head = _build_head(config)
        init.init_box_deltas(head, size_logit=0.0)
        queries = ProposalQueries(config.num_queries, config.width, head)
    else:
        assert_never(config.queries)
    init.init_queries(queries)
    return queries


def _build_head(config: ModelConfig) -> PredictionHead:
    scoring = build_scoring(config)
    head = PredictionHead(config.width, scoring.num_logits(config.num_classes))
    init.init_class_bias(head, scoring.initial_bias)
    return head


def _build_heads(config: ModelConfig) -> list[PredictionHead]:
    """One head for all layers or, with refinement, equal copies: one per layer."""
    head = _build_head(config)
    if config.attention == "dense":
        return [head]
    # A box reference already has a size; only a point's head must bring its own.
    init.init_box_deltas(head, size_logit=0.0)
    heads = _stack(head, config.decoder_layers if config.refine else 1)
    if config.queries == "points":
        init.init_box_deltas(heads[0], size_logit=init.INITIAL_SIZE_LOGIT)
    return heads


def _build_decoder(config: ModelConfig) -> Decoder:
    layer = DecoderLayer(
        SelfAttention(config.width, config.num_heads, config.dropout),
        _build_memory_attention(config),
        _build_feed_forward(config),
        config.width,
        config.dropout,
    )
    layers = _stack(layer, config.decoder_layers)
    init.init_transformer(layers)
    return Decoder(
        layers,
        heads=_build_heads(config),
        norm=nn.LayerNorm(config.width) if config.decoder_norm else nn.Identity(),
        advance=refine_references if config.refine else keep_references,
    )
