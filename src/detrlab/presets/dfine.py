"""D-FINE, and DEIM on it: boxes as distributions that every layer refines.

Source: arXiv 2410.13842, Peterande/D-FINE; arXiv 2412.04234, Intellindust-AI-Lab/DEIM.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from detrlab.config import DataConfig, ModelConfig, TrainConfig, unit_square
from detrlab.losses.distribution import FineGrained, self_distillation
from detrlab.losses.matching import FocalCost
from detrlab.losses.pairs import Weighted
from detrlab.losses.quality import MatchabilityAware, Varifocal
from detrlab.models.anchors import BoxPosition
from detrlab.models.attention import DeformableAttention, DenseAttention, SelfAttention
from detrlab.models.backbones.hgnet import HGNet, freeze
from detrlab.models.distribution import BINS, DistributionDecoder, copies
from detrlab.models.encoders.blocks import ConvNorm, Elan, halve_by_channel
from detrlab.models.encoders.hybrid import HybridEncoder, WithinLevel, concatenate
from detrlab.models.heads import BoxHead, Mlp, PredictionHead
from detrlab.models.layers import EncoderLayer, FeedForward, GatedDecoderLayer, stack
from detrlab.models.network import Network
from detrlab.models.queries.denoising import RealTimeDenoising
from detrlab.models.queries.selected import SelectedQueries
from detrlab.presets.parts import set_criterion
from detrlab.scoring import SigmoidScoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from detrlab.losses.criterion import Criterion
    from detrlab.models.decoder import QueryPosition
    from detrlab.models.heads import Activation
    from detrlab.models.layers import DecoderLayer
    from detrlab.scoring import Scoring


class DFine(ModelConfig):
    """D-FINE-S. The other sizes differ in numbers only."""

    preset: str = "d-fine-s"
    backbone: str = "hgnetv2_b0"
    backbone_norms: Literal["frozen", "trained"] = "trained"
    backbone_trains: Literal["late", "all", "none"] = "all"
    num_queries: int = Field(300, ge=1, le=100_000)
    width: int = Field(256, ge=8, le=8192)
    num_heads: int = Field(8, ge=1)
    encoder_width: int | None = Field(None, ge=8, le=8192)
    """Where it is not the decoder's."""
    encoder_ffn_width: int = Field(1024, ge=1, le=65_536)
    ffn_width: int = Field(1024, ge=2, le=65_536)
    decoder_layers: int = Field(3, ge=1, le=100)
    points: tuple[int, ...] = (3, 6, 3)
    """Sampling points per head, for each level."""
    denoising: int = Field(100, ge=1)
    """About how many denoising queries of one kind an image gets."""
    label_noise: float = Field(0.5, ge=0, le=2)
    box_noise: float = Field(1.0, ge=0)
    image_size: ClassVar[int] = 640
    edge_scale: ClassVar[float] = 4.0
    """``reg_scale`` of the original: how the steps of an edge's distribution grow."""
    expansion: ClassVar[float] = 0.5
    """Of the width, in the blocks that fuse levels."""
    fuse_blocks: ClassVar[int] = 1
    backbone_maps: ClassVar[int] = 0
    """Maps read from the backbone; 0: as many as levels."""
    affine: ClassVar[bool] = True
    """A learned scale and shift after each activation of the backbone."""
    activation: ClassVar[Activation] = staticmethod(F.relu)
    project: ClassVar[bool] = True
    """Project the memory before proposals are read from it."""

    @property
    def scoring(self) -> Scoring:
        """One sigmoid per class."""
        return SigmoidScoring()

    def preprocessing(self) -> DataConfig:
        """Squares, values from 0 to 1."""
        return unit_square(self.image_size)

    @property
    def fused(self) -> int:
        """Channels of the encoder's levels."""
        return self.encoder_width or self.width

    @property
    def fuse_width(self) -> int:
        """Channels inside the blocks that fuse levels."""
        return round(self.expansion * self.fused // 2)

    def build_backbone(self, *, pretrained: bool) -> nn.Module:
        """HGNetV2.

        Raises:
            UserError: ImageNet weights are asked for.
        """
        maps = self.backbone_maps or len(self.points)
        backbone = HGNet(self.backbone, maps, affine=self.affine)
        if pretrained:
            backbone.load_imagenet(self.backbone)
        return freeze(backbone, norms=self.backbone_norms, trains=self.backbone_trains)

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
        attention = DenseAttention(self.fused, self.num_heads, 0.0)
        ffn = FeedForward(self.fused, self.encoder_ffn_width, 0.0, F.gelu)
        layer = EncoderLayer(attention, ffn, self.fused, 0.0)
        return HybridEncoder(
            [ConvNorm(channels, self.fused) for channels in backbone.channels],
            {len(backbone.channels) - 1: WithinLevel(stack(layer, 1), self.fused)},
            self.combine(),
            partial(ConvNorm, self.fused, self.fused),
            self.fusing_block,
            partial(halve_by_channel, self.fused),
            nn.Identity if self.fused == self.width else partial(ConvNorm, self.fused, self.width),
        )

    def combine(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What a fusing block reads of two maps."""
        return concatenate

    def fusing_block(self) -> nn.Module:
        """Fuses two maps."""
        channels = 2 * self.fused if self.combine() is concatenate else self.fused
        activation = nn.SiLU(inplace=True)
        return Elan(channels, self.fuse_width, self.fused, self.fuse_blocks, activation)

    def build_queries(self) -> nn.Module:
        """The cells with the best class, behind denoising queries."""
        bias = self.scoring.initial_bias
        head = PredictionHead(self.width, self.num_classes, bias, self.activation)
        head.boxes.start_at(0.0)
        return RealTimeDenoising(
            SelectedQueries(self.num_queries, self.width, head, mixed=False, project=self.project),
            self.num_classes,
            self.width,
            number=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
        )

    def build_decoder(self) -> DistributionDecoder:
        """Queries, memory -> predictions of each layer."""
        start = BoxHead(self.width, self.activation)
        start.start_at(0.0)
        classes = PredictionHead(self.width, self.num_classes, self.scoring.initial_bias).classes
        return DistributionDecoder(
            stack(self.decoder_layer(), self.decoder_layers),
            self.positions(BoxPosition(self.position_widths(), self.activation, bound=10.0)),
            copies(classes, self.decoder_layers),
            self.corner_heads(),
            start,
            self.activation,
            self.edge_scale,
        )

    def position_widths(self) -> tuple[int, ...]:
        """Of the network that makes a query's position from its box."""
        return (4, 2 * self.width, self.width)

    def positions(self, position: BoxPosition) -> Sequence[QueryPosition]:
        """What gives queries their position before each layer."""
        return [position] * self.decoder_layers

    def decoder_layer(self) -> DecoderLayer:
        """A layer of the decoder."""
        return GatedDecoderLayer(
            SelfAttention(self.width, self.num_heads, 0.0),
            self.attention(),
            FeedForward(self.width, self.ffn_width, 0.0, self.activation),
            width=self.width,
            dropout=0.0,
        )

    def attention(self) -> DeformableAttention:
        """Attention over the memory."""
        levels = len(self.points)
        return DeformableAttention(self.width, self.num_heads, levels, self.points, project=False)

    def corner_heads(self) -> Sequence[nn.Module]:
        """A head of distributions for each layer, equal at the start."""
        head = Mlp((self.width, self.width, self.width, 4 * (BINS + 1)), self.activation)
        head.start_at_zero()
        return copies(head, self.decoder_layers)

    def class_loss(self) -> Callable[..., Tensor]:
        """The class loss."""
        return Varifocal()

    def criterion(self, train: TrainConfig) -> Criterion:
        """VFL, L1, GIoU, FGL and DDF (weights 1, 5, 2, 0.15, 1.5; costs 2, 5, 2)."""
        return set_criterion(
            train,
            self.scoring,
            self.class_loss(),
            FocalCost(),
            class_weight=1.0,
            class_cost_weight=2.0,
            union=True,
            more=(
                Weighted("fine", 0.15, FineGrained(self.edge_scale), union=True),
                Weighted("distil", 1.5, self_distillation, union=True),
            ),
        )


class DFineN(DFine):
    """D-FINE-N: two levels."""

    preset: str = "d-fine-n"
    width: int = Field(128, ge=8, le=8192)
    encoder_ffn_width: int = Field(512, ge=1, le=65_536)
    ffn_width: int = Field(512, ge=2, le=65_536)
    points: tuple[int, ...] = (6, 6)
    expansion: ClassVar[float] = 0.34
    fuse_blocks: ClassVar[int] = 2


class DFineM(DFine):
    """D-FINE-M."""

    preset: str = "d-fine-m"
    backbone: str = "hgnetv2_b2"
    decoder_layers: int = Field(4, ge=1, le=100)
    expansion: ClassVar[float] = 1.0
    fuse_blocks: ClassVar[int] = 2


class DFineL(DFineM):
    """D-FINE-L."""

    preset: str = "d-fine-l"
    backbone: str = "hgnetv2_b4"
    backbone_norms: Literal["frozen", "trained"] = "frozen"
    backbone_trains: Literal["late", "all", "none"] = "late"
    decoder_layers: int = Field(6, ge=1, le=100)
    fuse_blocks: ClassVar[int] = 3
    affine: ClassVar[bool] = False


class DFineX(DFineL):
    """D-FINE-X."""

    preset: str = "d-fine-x"
    backbone: str = "hgnetv2_b5"
    encoder_width: int | None = Field(384, ge=8, le=8192)
    encoder_ffn_width: int = Field(2048, ge=1, le=65_536)
    edge_scale: ClassVar[float] = 8.0


class _Deim:
    """What DEIM changes on D-FINE: the class loss is MAL; SiLU in the decoder; all norms train."""

    activation: ClassVar[Activation] = staticmethod(F.silu)

    def class_loss(self) -> Callable[..., Tensor]:
        """The class loss."""
        return MatchabilityAware()


class DeimS(_Deim, DFine):
    """DEIM-D-FINE-S."""

    preset: str = "deim-d-fine-s"


class DeimN(_Deim, DFineN):
    """DEIM-D-FINE-N."""

    preset: str = "deim-d-fine-n"


class DeimM(_Deim, DFineM):
    """DEIM-D-FINE-M."""

    preset: str = "deim-d-fine-m"


class DeimL(_Deim, DFineL):
    """DEIM-D-FINE-L."""

    preset: str = "deim-d-fine-l"
    backbone_norms: Literal["frozen", "trained"] = "trained"
    backbone_trains: Literal["late", "all", "none"] = "all"


class DeimX(_Deim, DFineX):
    """DEIM-D-FINE-X."""

    preset: str = "deim-d-fine-x"
    backbone_norms: Literal["frozen", "trained"] = "trained"
    backbone_trains: Literal["late", "all", "none"] = "all"
