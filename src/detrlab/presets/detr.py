"""DETR, DETR-DC5, and DETR with sigmoid scoring.

Source: arXiv 2005.12872; facebookresearch/detr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import nn

from detrlab.config import TrainConfig
from detrlab.models.attention import DenseAttention
from detrlab.models.backbones.hgnet import HGNet
from detrlab.models.backbones.timm import Backbone
from detrlab.models.box_policies import absolute
from detrlab.models.decoder import Decoder
from detrlab.models.encoders.transformer import TransformerEncoder, projection_neck
from detrlab.models.network import Network
from detrlab.models.queries.learned import LearnedPositions
from detrlab.presets.parts import (
    TransformerConfig,
    focal_criterion,
    softmax_criterion,
    timm_backbone,
)
from detrlab.scoring import Scoring, SigmoidScoring, SoftmaxScoring

if TYPE_CHECKING:
    from detrlab.losses.criterion import Criterion


class Detr(TransformerConfig):
    """DETR: dense attention on the coarsest feature map, learned queries, softmax."""

    preset: str = "detr"
    position_offset: ClassVar[float] = 0.0

    @property
    def scoring(self) -> Scoring:
        """Softmax with a no-object class."""
        return SoftmaxScoring()

    def build_backbone(self, *, pretrained: bool) -> Backbone | HGNet:
        """A timm backbone that gives C5."""
        return timm_backbone(self, stages=1, pretrained=pretrained)

    def build(self, backbone: nn.Module) -> Network:
        """The network around a backbone with ``channels``."""
        assert isinstance(backbone, Backbone | HGNet)
        return Network(
            backbone=backbone,
            encoder=TransformerEncoder(
                projection_neck(backbone.channels, self.width, self.position_offset),
                self.encoder_stack(self.attention()),
            ),
            queries=LearnedPositions(self.num_queries, self.width),
            decoder=Decoder(
                self.decoder_stack(self.attention()),
                heads=[self.head()],
                norm=nn.LayerNorm(self.width),
                boxes=absolute,
            ),
        )

    def attention(self) -> DenseAttention:
        """Attention over the memory."""
        return DenseAttention(self.width, self.num_heads, self.dropout)

    def criterion(self, train: TrainConfig) -> Criterion:
        """Cross entropy, L1 and GIoU."""
        return softmax_criterion(train)


class DetrDC5(Detr):
    """DETR with a dilated last stage: a feature map of twice the resolution."""

    preset: str = "detr-dc5"
    dilation: bool = True


class DetrSigmoid(Detr):
    """DETR with Deformable DETR's scoring, loss and number of queries.

    A step of the ladder between the two, not a published detector.
    """

    preset: str = "detr-sigmoid"
    num_queries: int = Field(300, ge=1, le=100_000)

    @property
    def scoring(self) -> Scoring:
        """One sigmoid per class."""
        return SigmoidScoring()

    def criterion(self, train: TrainConfig) -> Criterion:
        """Focal, L1 and GIoU."""
        return focal_criterion(train)
