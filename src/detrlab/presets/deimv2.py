"""DEIMv2 with HGNetV2 backbones: Atto, Femto, Pico and N.

Source: arXiv 2509.20787; Intellindust-AI-Lab/DEIMv2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from detrlab.config import ModelConfig, TrainConfig
from detrlab.losses.criterion import Criterion
from detrlab.losses.matching import FocalCost, HungarianMatcher, ScoreIouCost
from detrlab.losses.pairs import Weighted
from detrlab.losses.quality import MatchabilityAware
from detrlab.models.anchors import BoxPosition
from detrlab.models.attention import DeformableAttention, SelfAttention
from detrlab.models.backbones.hgnet import HGNet
from detrlab.models.decoder import keep_position
from detrlab.models.distribution import BINS, DistributionDecoder, copies
from detrlab.models.encoders.lite import LiteEncoder
from detrlab.models.heads import BoxHead, Mlp, PredictionHead
from detrlab.models.layers import DecoderLayer, RMSNorm, SwiGlu, stack
from detrlab.models.network import Network
from detrlab.models.queries.denoising import RealTimeDenoising
from detrlab.models.queries.selected import SelectedQueries
from detrlab.presets.parts import set_criterion
from detrlab.scoring import Scoring, SigmoidScoring

if TYPE_CHECKING:
    from collections.abc import Sequence


class DeimV2Femto(ModelConfig):
    """DEIMv2-Femto: two levels, three decoder layers, one head of distributions for all."""

    preset: str = "deimv2-femto"
    backbone: str = "hgnetv2_femto"
    backbone_norms: Literal["frozen", "trained"] = "trained"
    backbone_trains: Literal["late", "all", "none"] = "all"
    num_queries: int = Field(150, ge=1, le=100_000)
    width: int = Field(96, ge=8, le=8192)
    num_heads: int = Field(8, ge=1)
    ffn_width: int = Field(256, ge=2, le=65_536)
    decoder_layers: int = Field(3, ge=1, le=100)
    points: tuple[int, ...] = (4, 2)
    """Sampling points per head, for each level."""
    denoising: int = Field(100, ge=1)
    """About how many denoising queries of one kind an image gets."""
    label_noise: float = Field(0.5, ge=0, le=2)
    box_noise: float = Field(1.0, ge=0)
    expansion: ClassVar[float] = 0.34
    """Of the width, in the blocks that fuse levels."""
    fuse_blocks: ClassVar[int] = 2

    @property
    def scoring(self) -> Scoring:
        """One sigmoid per class."""
        return SigmoidScoring()

    def build_backbone(self, *, pretrained: bool) -> nn.Module:
        """HGNetV2."""
        return HGNet(self.backbone, 1)

    def build(self, backbone: nn.Module) -> Network:
        """The network around a backbone with ``channels``."""
        return Network(
            backbone=backbone,
            encoder=self.build_encoder(backbone),
            queries=self.build_queries(),
            decoder=self.build_decoder(),
        )

    def build_encoder(self, backbone: nn.Module) -> nn.Module:
        """Feature maps, padding -> ``Memory``."""
        assert isinstance(backbone, HGNet)
        hidden = round(self.expansion * self.width // 2)
        return LiteEncoder(backbone.channels[-1], self.width, hidden, self.fuse_blocks)

    def build_queries(self) -> nn.Module:
        """The cells with the best class, behind denoising queries."""
        head = PredictionHead(self.width, self.num_classes, self.scoring.initial_bias, F.silu)
        head.boxes.start_at(0.0)
        return RealTimeDenoising(
            SelectedQueries(self.num_queries, self.width, head, mixed=False, project=False),
            self.num_classes,
            self.width,
            number=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
        )

    def build_decoder(self) -> DistributionDecoder:
        """Queries, memory -> predictions of each layer."""
        once = BoxPosition((4, self.width, self.width, self.width), F.silu, bound=10.0)
        start = BoxHead(self.width, F.silu)
        start.start_at(0.0)
        classes = PredictionHead(self.width, self.num_classes, self.scoring.initial_bias).classes
        return DistributionDecoder(
            self.layers(),
            [once, *[keep_position] * (self.decoder_layers - 1)],
            copies(classes, self.decoder_layers),
            self.corner_heads(),
            start,
            F.silu,
        )

    def layers(self) -> list[DecoderLayer]:
        """The decoder's layers."""
        return stack(
            DecoderLayer(
                SelfAttention(self.width, self.num_heads, 0.0),
                self.attention(),
                SwiGlu(self.width, self.ffn_width // 2),
                self.width,
                dropout=0.0,
                norm=RMSNorm,
            ),
            self.decoder_layers,
        )

    def attention(self) -> DeformableAttention:
        """Attention over the memory."""
        levels = len(self.points)
        return DeformableAttention(self.width, self.num_heads, levels, self.points, project=False)

    def corner_heads(self) -> Sequence[Mlp]:
        """One head for all layers."""
        head = Mlp((self.width, self.width, self.width, 4 * (BINS + 1)), F.silu)
        head.start_at_zero()
        return [head]

    def criterion(self, train: TrainConfig) -> Criterion:
        """MAL, L1 and GIoU (weights 1, 5, 2; costs 2, 5, 2)."""
        return set_criterion(
            train,
            self.scoring,
            MatchabilityAware(),
            FocalCost(),
            class_weight=1.0,
            class_cost_weight=2.0,
            late=late_matcher(),
        )


def late_matcher() -> HungarianMatcher:
    """The matching of the last epochs: by score and IoU together."""
    return HungarianMatcher((Weighted("score", 1.0, ScoreIouCost()),))


class DeimV2Atto(DeimV2Femto):
    """DEIMv2-Atto."""

    preset: str = "deimv2-atto"
    backbone: str = "hgnetv2_atto"
    num_queries: int = Field(100, ge=1, le=100_000)
    width: int = Field(64, ge=8, le=8192)
    ffn_width: int = Field(160, ge=2, le=65_536)


class DeimV2Pico(DeimV2Femto):
    """DEIMv2-Pico."""

    preset: str = "deimv2-pico"
    backbone: str = "hgnetv2_pico"
    num_queries: int = Field(200, ge=1, le=100_000)
    width: int = Field(112, ge=8, le=8192)
    ffn_width: int = Field(320, ge=2, le=65_536)
