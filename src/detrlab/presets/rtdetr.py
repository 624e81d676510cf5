"""RT-DETR and RT-DETRv2.

Source: arXiv 2304.08069 and 2407.17140; lyuwenyu/RT-DETR, ``rtdetr_pytorch`` and
``rtdetrv2_pytorch``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detrlab.config import DataConfig, TrainConfig, unit_square
from detrlab.errors import UserError
from detrlab.losses.matching import FocalCost
from detrlab.losses.quality import MatchabilityAware, Varifocal
from detrlab.models.anchors import BoxPosition
from detrlab.models.attention import (
    DeformableAttention,
    DenseAttention,
    DiscreteAttention,
    SelfAttention,
)
from detrlab.models.backbones.presnet import add_first_shortcut
from detrlab.models.backbones.timm import Trains
from detrlab.models.box_policies import refine_twice
from detrlab.models.decoder import Decoder
from detrlab.models.encoders.blocks import ConvNorm, Csp
from detrlab.models.encoders.hybrid import HybridEncoder, WithinLevel, concatenate
from detrlab.models.heads import PredictionHead
from detrlab.models.layers import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    equal_copies,
    xavier_matrices,
)
from detrlab.models.network import Network
from detrlab.models.queries.denoising import (
    RealTimeDenoising,
    RtDetrDenoising,
)
from detrlab.models.queries.selected import SelectedQueries
from detrlab.presets.parts import TransformerConfig, set_criterion, timm_backbone
from detrlab.scoring import Scoring, SigmoidScoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from detrlab.losses.criterion import Criterion
    from detrlab.losses.pairs import MatchedPairs
    from detrlab.models.heads import Activation


class RtDetr(TransformerConfig):
    """RT-DETR with a ResNet-50: hybrid encoder, queries selected by an IoU-aware score."""

    preset: str = "rt-detr-r50"
    backbone: str = "resnet50d"
    backbone_trains: Trains = "body"
    num_queries: int = Field(300, ge=1, le=100_000)
    encoder_width: int = Field(256, ge=8, le=8192)
    ffn_width: int = Field(1024, ge=1, le=65_536)
    encoder_ffn_width: int = Field(1024, ge=1, le=65_536)
    encoder_layers: int = Field(1, ge=0, le=100)
    """Of attention within the coarsest level."""
    expansion: float = Field(1.0, gt=0, le=4)
    """Width of the encoder's fusing blocks, in widths of the encoder."""
    evaluated_layers: int | None = Field(None, ge=1)
    """Decoder layers that run at evaluation at most; None for all."""
    levels: int = Field(3, ge=1, le=4)
    """Maps read from the backbone, counted from the coarsest."""
    points: int | tuple[int, ...] = 4
    """Sampling points per head and level, or a number for each level, finest first."""
    dropout: float = Field(0.0, ge=0, lt=1)
    denoising: int = Field(100, ge=1)
    """About how many denoising queries of one kind an image gets."""
    label_noise: float = Field(0.5, ge=0, le=2)
    box_noise: float = Field(1.0, ge=0)
    fusing_blocks: ClassVar[int] = 3
    """In each fusing block of the encoder."""
    denoising_kind: ClassVar[type[RtDetrDenoising]] = RtDetrDenoising
    image_size: ClassVar[int] = 640
    project: ClassVar[bool] = True
    """Project the memory before proposals are read from it."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.encoder_width % self.num_heads or self.encoder_width % 4:
            raise ValueError(
                f"encoder_width {self.encoder_width} must be a multiple of 4 and of num_heads "
                f"{self.num_heads}"
            )
        if isinstance(self.points, tuple) and (
            len(self.points) != self.levels or min(self.points) < 1
        ):
            raise ValueError(
                f"points {self.points} should be one number, or {self.levels} of them, one for "
                "each level"
            )
        return self

    @property
    def scoring(self) -> Scoring:
        """One sigmoid per class."""
        return SigmoidScoring()

    @property
    def activation(self) -> Activation:
        """Of the decoder and the heads."""
        return F.relu

    @property
    def class_loss(self) -> Callable[[MatchedPairs], Tensor]:
        """The loss term of the classes."""
        return Varifocal()

    def preprocessing(self) -> DataConfig:
        """Squares, values from 0 to 1."""
        return unit_square(self.image_size)

    def build_backbone(self, *, pretrained: bool) -> nn.Module:
        """A timm backbone that gives its last maps."""
        return timm_backbone(
            self, stages=self.stages, pretrained=pretrained, change=add_first_shortcut
        )

    @property
    def stages(self) -> int | tuple[int, ...]:
        """The backbone's maps that the encoder reads, see ``build_backbone``."""
        return self.levels

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
        channels: Any = backbone.channels
        if len(channels) < self.levels:
            raise UserError(
                f"backbone {self.backbone!r} gives {len(channels)} maps of strides "
                f"{backbone.strides} and {self.preset} reads {self.levels}: "
                f"--set model.levels={len(channels)}, or choose another backbone"
            )
        attended = equal_copies(self.encoder_layer(), self.encoder_layers)
        return HybridEncoder(
            projections=[ConvNorm(each, self.encoder_width) for each in channels],
            within={self.levels - 1: WithinLevel(attended, self.encoder_width)},
            combine=self.combine,
            lateral=self.lateral,
            fuse=self.fusing_block,
            halve=self.halving,
            output=self.memory_projection,
        )

    @property
    def combine(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What a fusing block reads of two maps."""
        return concatenate

    def lateral(self) -> nn.Module:
        """What a coarse map passes before it is enlarged."""
        return ConvNorm(self.encoder_width, self.encoder_width, activation=silu())

    def fusing_block(self) -> nn.Module:
        """Fuses two maps."""
        width = self.encoder_width
        return Csp(2 * width, int(width * self.expansion), width, self.fusing_blocks, silu())

    def halving(self) -> nn.Module:
        """Halves a map."""
        return ConvNorm(self.encoder_width, self.encoder_width, 3, stride=2, activation=silu())

    def encoder_layer(self) -> EncoderLayer:
        """A layer of attention within a level."""
        width = self.encoder_width
        attention = DenseAttention(width, self.num_heads, self.dropout)
        attention.reset_as_pytorch()
        ffn = FeedForward(width, self.encoder_ffn_width, self.dropout, F.gelu)
        return EncoderLayer(attention, ffn, width, self.dropout)

    def memory_projection(self) -> nn.Module:
        """From the encoder's width to the decoder's."""
        return ConvNorm(self.encoder_width, self.width)

    def build_queries(self) -> nn.Module:
        """The cells with the best class, behind denoising queries."""
        head = self.box_head()
        return self.denoising_kind(
            SelectedQueries(self.num_queries, self.width, head, mixed=False, project=self.project),
            self.num_classes,
            self.width,
            number=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
        )

    def head(self) -> PredictionHead:
        """A prediction head."""
        bias = self.scoring.initial_bias
        return PredictionHead(self.width, self.num_classes, bias, self.activation)

    def box_head(self) -> PredictionHead:
        """A head whose boxes start as the references."""
        head = self.head()
        head.boxes.start_at_zero()
        return head

    def build_decoder(self) -> nn.Module:
        """Queries, memory -> predictions of each layer."""
        return Decoder(
            equal_copies(self.decoder_layer(), self.decoder_layers),
            [self.box_head() for _ in range(self.decoder_layers)],
            norm=nn.Identity(),
            boxes=refine_twice,
            position=self.query_position(),
            evaluated=self.evaluated_layers,
        )

    def query_position(self) -> BoxPosition:
        """What gives the queries their position before each layer."""
        return BoxPosition((4, 2 * self.width, self.width), self.activation)

    def feed_forward(self) -> FeedForward:
        """The feed-forward network of a decoder layer."""
        return FeedForward(self.width, self.ffn_width, self.dropout, self.activation)

    def decoder_layer(self) -> DecoderLayer:
        """A decoder layer; its feed-forward network keeps PyTorch's initial values."""
        among = SelfAttention(self.width, self.num_heads, self.dropout)
        among.reset_as_pytorch()
        attention = self.attention()
        attention.reset_parameters()
        return DecoderLayer(among, attention, self.feed_forward(), self.width, self.dropout)

    def attention(self) -> DeformableAttention:
        """Attention over the memory."""
        return DeformableAttention(self.width, self.num_heads, self.levels, self.points)

    def criterion(self, train: TrainConfig) -> Criterion:
        """The class loss, L1 and GIoU (weights 1, 5, 2; costs 2 of the focal loss, 5, 2)."""
        return set_criterion(
            train,
            self.scoring,
            self.class_loss,
            FocalCost(),
            class_weight=1.0,
            class_cost_weight=2.0,
        )


class RtDetrR18(RtDetr):
    """RT-DETR with a ResNet-18, narrower fusing blocks and three decoder layers."""

    preset: str = "rt-detr-r18"
    backbone: str = "resnet18d"
    backbone_norms: Literal["frozen", "trained"] = "trained"
    backbone_trains: Trains = "all"
    expansion: float = Field(0.5, gt=0, le=4)
    decoder_layers: int = Field(3, ge=1, le=100)


class RtDetrR34(RtDetrR18):
    """RT-DETR with a ResNet-34 and four decoder layers."""

    preset: str = "rt-detr-r34"
    backbone: str = "resnet34d"
    decoder_layers: int = Field(4, ge=1, le=100)


class RtDetrR50M(RtDetr):
    """RT-DETR with a ResNet-50, narrower fusing blocks and half of the layers at evaluation."""

    preset: str = "rt-detr-r50-m"
    expansion: float = Field(0.5, gt=0, le=4)
    evaluated_layers: int | None = Field(3, ge=1)


class RtDetrR101(RtDetr):
    """RT-DETR with a ResNet-101 and a wider encoder."""

    preset: str = "rt-detr-r101"
    backbone: str = "resnet101d"
    encoder_width: int = Field(384, ge=8, le=8192)
    encoder_ffn_width: int = Field(2048, ge=1, le=65_536)


class RtDetrV2(RtDetr):
    """RT-DETRv2 with a ResNet-50: a number of points for each level, other initial values."""

    preset: str = "rt-detr-v2-r50"

    def memory_projection(self) -> nn.Module:
        """From the encoder's width to the decoder's."""
        projection = ConvNorm(self.encoder_width, self.width)
        nn.init.xavier_uniform_(projection.conv.weight)
        return projection

    def decoder_layer(self) -> DecoderLayer:
        """A decoder layer."""
        layer = super().decoder_layer()
        xavier_matrices(layer.ffn)
        return layer


class RtDetrV2R18(RtDetrR18, RtDetrV2):
    """RT-DETRv2 with a ResNet-18."""

    preset: str = "rt-detr-v2-r18"


class DeimRtDetrV2R18(RtDetrV2R18):
    """DEIM on RT-DETRv2: the matchability-aware loss, and SiLU in the decoder.

    Source: arXiv 2412.04234; Intellindust-AI-Lab/DEIM, ``configs/base/rt_deim.yml``.
    """

    preset: str = "deim-rt-detr-v2-r18"
    denoising_kind: ClassVar[type[RtDetrDenoising]] = RealTimeDenoising

    @property
    def activation(self) -> Activation:
        """Of the decoder and the heads."""
        return F.silu

    @property
    def class_loss(self) -> Callable[[MatchedPairs], Tensor]:
        """The loss term of the classes."""
        return MatchabilityAware()

    def query_position(self) -> BoxPosition:
        """What gives the queries their position before each layer."""
        position = BoxPosition((4, self.width, self.width, self.width), self.activation)
        last = position.network.layers[-1]
        assert isinstance(last, nn.Linear)
        last.reset_parameters()  # the original draws only the others anew
        return position


class RtDetrV2R18Discrete(RtDetrV2R18):
    """RT-DETRv2 with a ResNet-18 that samples single cells, to be tuned from ``rt-detr-v2-r18``.

    The sampling offsets do not train.
    """

    preset: str = "rt-detr-v2-r18-dsp"

    def attention(self) -> DeformableAttention:
        """Attention over the memory, without interpolation."""
        return DiscreteAttention(self.width, self.num_heads, self.levels, self.points)


class RtDetrV2R34(RtDetrR34, RtDetrV2):
    """RT-DETRv2 with a ResNet-34."""

    preset: str = "rt-detr-v2-r34"


class RtDetrV2R50M(RtDetrR50M, RtDetrV2):
    """RT-DETRv2 with a ResNet-50, narrower fusing blocks and half of the layers at evaluation."""

    preset: str = "rt-detr-v2-r50-m"


class RtDetrV2R101(RtDetrR101, RtDetrV2):
    """RT-DETRv2 with a ResNet-101."""

    preset: str = "rt-detr-v2-r101"


def silu() -> nn.Module:
    """The activation of the encoder's convolutions."""
    return nn.SiLU(inplace=True)
