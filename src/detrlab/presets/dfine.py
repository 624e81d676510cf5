"""D-FINE, and DEIM on it: boxes as distributions that every layer refines.

Source: arXiv 2410.13842, Peterande/D-FINE; arXiv 2412.04234, Intellindust-AI-Lab/DEIM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detrlab.boxes import BINS
from detrlab.losses.distribution import FineGrained, self_distillation
from detrlab.losses.pairs import MatchedPairs, Weighted
from detrlab.losses.quality import MatchabilityAware
from detrlab.models.anchors import BoxPosition
from detrlab.models.attention import DeformableAttention, SelfAttention
from detrlab.models.backbones.hgnet import NAMES, HGNet, freeze
from detrlab.models.backbones.timm import Trains
from detrlab.models.distribution import DistributionDecoder
from detrlab.models.encoders.blocks import ConvNorm, Elan, halve_by_channel
from detrlab.models.encoders.hybrid import concatenate
from detrlab.models.heads import Activation, BoxHead, Mlp
from detrlab.models.layers import GatedDecoderLayer, equal_copies
from detrlab.models.queries.denoising import RealTimeDenoising, RtDetrDenoising
from detrlab.presets.rtdetr import RtDetr, silu

if TYPE_CHECKING:
    from detrlab.config import TrainConfig
    from detrlab.losses.criterion import Criterion
    from detrlab.models.decoder import QueryPosition
    from detrlab.models.layers import DecoderLayer

Norms = Literal["frozen", "trained"]


class OnHGNet(RtDetr):
    """RT-DETR on HGNetV2, whose norms train."""

    backbone: str = "hgnetv2_b0"
    backbone_norms: Norms = "trained"
    backbone_trains: Trains = "all"
    affine: ClassVar[bool] = True
    """A learned scale and shift after each activation of HGNetV2."""

    def build_backbone(self, *, pretrained: bool) -> nn.Module:
        """HGNetV2, or any timm backbone that gives maps.

        Raises:
            UserError: the backbone is unknown, or its weights cannot be had.
        """
        if self.backbone not in NAMES:
            return super().build_backbone(pretrained=pretrained)
        backbone = HGNet(self.backbone, self.maps, affine=self.affine)
        if pretrained:
            backbone.load_imagenet(self.backbone)
        return freeze(backbone, norms=self.backbone_norms, trains=self.backbone_trains)

    @property
    def maps(self) -> int:
        """Maps read from HGNetV2, counted from the coarsest."""
        return self.levels


class Lighter(OnHGNet):
    """RT-DETR with a lighter encoder, and gates instead of projections in the decoder.

    It is D-FINE-S without distributions. The gates weigh what a query keeps and takes.
    """

    preset: str = "d-fine-s-light"
    decoder_layers: int = Field(3, ge=1, le=100)
    points: int | tuple[int, ...] = (3, 6, 3)
    expansion: float = Field(0.5, gt=0, le=4)
    fusing_blocks: ClassVar[int] = 1
    denoising_kind: ClassVar[type[RtDetrDenoising]] = RealTimeDenoising

    @property
    def fuse_width(self) -> int:
        """Channels inside the blocks that fuse levels."""
        return round(self.expansion * self.encoder_width // 2)

    def lateral(self) -> nn.Module:
        """What a coarse map passes before it is enlarged."""
        return ConvNorm(self.encoder_width, self.encoder_width)

    def fusing_block(self) -> nn.Module:
        """Fuses two maps."""
        width = self.encoder_width
        channels = 2 * width if self.combine is concatenate else width
        return Elan(channels, self.fuse_width, width, self.fusing_blocks, silu())

    def halving(self) -> nn.Module:
        """Halves a map."""
        return halve_by_channel(self.encoder_width)

    def memory_projection(self) -> nn.Module:
        """From the encoder's width to the decoder's."""
        if self.encoder_width == self.width:
            return nn.Identity()
        return ConvNorm(self.encoder_width, self.width)

    def query_position(self) -> BoxPosition:
        """What makes a query's position from its box."""
        return BoxPosition((4, 2 * self.width, self.width), self.activation, bound=10.0)

    def decoder_layer(self) -> DecoderLayer:
        """A layer of the decoder."""
        return initialised(
            GatedDecoderLayer(
                SelfAttention(self.width, self.num_heads, self.dropout),
                self.attention(),
                self.feed_forward(),
                width=self.width,
                dropout=self.dropout,
            )
        )

    def attention(self) -> DeformableAttention:
        """Attention over the memory, without projections."""
        return DeformableAttention(
            self.width, self.num_heads, self.levels, self.points, project=False
        )


class Distributions(Lighter):
    """+ fine-grained distribution refinement (FDR): every layer refines a distribution per edge."""

    preset: str = "d-fine-s-fdr"
    edge_scale: ClassVar[float] = 4.0
    """``reg_scale`` of the original: how the steps of an edge's distribution grow."""

    def build_decoder(self) -> nn.Module:
        """Queries, memory -> predictions of each layer."""
        start = BoxHead(self.width, self.activation)
        start.start_at_zero()
        return DistributionDecoder(
            equal_copies(self.decoder_layer(), self.decoder_layers),
            self.positions(self.query_position()),
            equal_copies(self.head().classes, self.decoder_layers),
            self.corner_heads(),
            start,
            self.activation,
            self.edge_scale,
            self.evaluated_layers,
        )

    def positions(self, position: BoxPosition) -> Sequence[QueryPosition]:
        """What gives queries their position before each layer."""
        return [position] * self.decoder_layers

    def corner_heads(self) -> Sequence[nn.Module]:
        """A head of distributions for each layer, equal at the start."""
        head = Mlp((self.width, self.width, self.width, 4 * (BINS + 1)), self.activation)
        head.start_at_zero()
        return equal_copies(head, self.decoder_layers)

    def criterion(self, train: TrainConfig) -> Criterion:
        """VFL, L1, GIoU and FGL (weights 1, 5, 2, 0.15; costs 2, 5, 2)."""
        usual = super().criterion(train)
        fine = Weighted("fine", 0.15, FineGrained(self.edge_scale))
        return dataclasses.replace(usual, terms=(*usual.terms, fine))


class DFine(Distributions):
    """D-FINE-S: GO-LSD, layers learn the last one's distributions, on pairs that all agree on.

    The other sizes differ in numbers only.
    """

    preset: str = "d-fine-s"

    def criterion(self, train: TrainConfig) -> Criterion:
        """VFL, L1, GIoU, FGL and DDF (weights 1, 5, 2, 0.15, 1.5; costs 2, 5, 2)."""
        usual = super().criterion(train)
        scores, *others = usual.terms
        terms = (
            scores,
            *(term._replace(union=True) for term in others),
            Weighted("distil", 1.5, self_distillation, union=True),
        )
        return dataclasses.replace(usual, terms=terms)


def initialised(layer: DecoderLayer) -> DecoderLayer:
    """With the originals' initial values."""
    layer.reset_parameters()
    among: Any = layer.self_attention
    among.reset_as_pytorch()
    return layer


class SizeN(OnHGNet):
    """RT-DETRv2 at the size of D-FINE-N: HGNetV2-B0, two levels, 128 wide, three layers."""

    decoder_layers: int = Field(3, ge=1, le=100)
    width: int = Field(128, ge=8, le=8192)
    encoder_width: int = Field(128, ge=8, le=8192)
    encoder_ffn_width: int = Field(512, ge=1, le=65_536)
    ffn_width: int = Field(512, ge=2, le=65_536)
    levels: int = Field(2, ge=1, le=4)
    expansion: float = Field(0.34, gt=0, le=4)
    fusing_blocks: ClassVar[int] = 2


class DFineN(SizeN, DFine):
    """D-FINE-N: GO-LSD, layers learn the last one's distributions, on pairs that all agree on."""

    preset: str = "d-fine-n"
    points: int | tuple[int, ...] = (6, 6)


class DFineM(DFine):
    """D-FINE-M."""

    preset: str = "d-fine-m"
    backbone: str = "hgnetv2_b2"
    decoder_layers: int = Field(4, ge=1, le=100)
    expansion: float = Field(1.0, gt=0, le=4)
    fusing_blocks: ClassVar[int] = 2


class DFineL(DFineM):
    """D-FINE-L."""

    preset: str = "d-fine-l"
    backbone: str = "hgnetv2_b4"
    backbone_norms: Norms = "frozen"
    backbone_trains: Trains = "body"
    decoder_layers: int = Field(6, ge=1, le=100)
    fusing_blocks: ClassVar[int] = 3
    affine: ClassVar[bool] = False


class DFineX(DFineL):
    """D-FINE-X."""

    preset: str = "d-fine-x"
    backbone: str = "hgnetv2_b5"
    encoder_width: int = Field(384, ge=8, le=8192)
    encoder_ffn_width: int = Field(2048, ge=1, le=65_536)
    edge_scale: ClassVar[float] = 8.0


class Matchability:
    """The class loss is MAL."""

    @property
    def class_loss(self) -> Callable[[MatchedPairs], Tensor]:
        """The loss term of the classes."""
        return MatchabilityAware()


class _Deim(Matchability):
    """What DEIM changes on D-FINE: MAL, and SiLU in the decoder; all norms train."""

    @property
    def activation(self) -> Activation:
        """Of the decoder and the heads."""
        return F.silu


class DeimS(_Deim, DFine):
    """DEIM-D-FINE-S: the matchability-aware loss, and SiLU in the decoder."""

    preset: str = "deim-d-fine-s"


class DeimN(_Deim, DFineN):
    """+ SiLU in the decoder: DEIM-D-FINE-N, whose class loss is MAL."""

    preset: str = "deim-d-fine-n"


class DeimM(_Deim, DFineM):
    """DEIM-D-FINE-M: the matchability-aware loss, and SiLU in the decoder."""

    preset: str = "deim-d-fine-m"


class DeimL(_Deim, DFineL):
    """DEIM-D-FINE-L: the matchability-aware loss, and SiLU in the decoder."""

    preset: str = "deim-d-fine-l"
    backbone_norms: Norms = "trained"
    backbone_trains: Trains = "all"


class DeimX(_Deim, DFineX):
    """DEIM-D-FINE-X: the matchability-aware loss, and SiLU in the decoder."""

    preset: str = "deim-d-fine-x"
    backbone_norms: Norms = "trained"
    backbone_trains: Trains = "all"
