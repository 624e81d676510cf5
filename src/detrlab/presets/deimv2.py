"""DEIMv2 with HGNetV2 backbones: Atto, Femto, Pico and N.

Source: arXiv 2509.20787; Intellindust-AI-Lab/DEIMv2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detrlab.losses.matching import HungarianMatcher, ScoreIouCost
from detrlab.losses.pairs import Weighted
from detrlab.models.anchors import BoxPosition
from detrlab.models.attention import SelfAttention
from detrlab.models.decoder import keep_position
from detrlab.models.encoders.lite import LiteEncoder
from detrlab.models.layers import DecoderLayer, GatedDecoderLayer, RMSNorm, SwiGlu
from detrlab.presets.dfine import DeimN, initialised

if TYPE_CHECKING:
    from detrlab.config import TrainConfig
    from detrlab.losses.criterion import Criterion
    from detrlab.models.decoder import QueryPosition


class DeimV2N(DeimN):
    """DEIMv2-N: RMS norms, SwiGLU, one query position, sums in the encoder, a late matching."""

    preset: str = "deimv2-n"
    project: ClassVar[bool] = False
    layer_kind: ClassVar[type[DecoderLayer]] = GatedDecoderLayer

    @property
    def combine(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What a fusing block reads of two maps."""
        return torch.add

    def query_position(self) -> BoxPosition:
        """What makes a query's position from its box."""
        widths = (4, self.width, self.width, self.width)
        return BoxPosition(widths, self.activation, bound=10.0)

    def positions(self, position: BoxPosition) -> Sequence[QueryPosition]:
        """The position of the first boxes serves all layers."""
        return [position, *[keep_position] * (self.decoder_layers - 1)]

    def decoder_layer(self) -> DecoderLayer:
        """A layer of the decoder."""
        return initialised(
            self.layer_kind(
                SelfAttention(self.width, self.num_heads, self.dropout),
                self.attention(),
                SwiGlu(self.width, self.ffn_width // 2),
                width=self.width,
                dropout=self.dropout,
                norm=RMSNorm,
            )
        )

    def criterion(self, train: TrainConfig) -> Criterion:
        """As DEIM; in the last epochs queries are matched by score and IoU together."""
        return dataclasses.replace(super().criterion(train), late=late_matcher())


class DeimV2Femto(DeimV2N):
    """DEIMv2-Femto: one map of the backbone, one head of distributions, no gates, no FGL."""

    preset: str = "deimv2-femto"
    backbone: str = "hgnetv2_femto"
    num_queries: int = Field(150, ge=1, le=100_000)
    width: int = Field(96, ge=8, le=8192)
    encoder_width: int = Field(96, ge=8, le=8192)
    ffn_width: int = Field(256, ge=2, le=65_536)
    points: int | tuple[int, ...] = (4, 2)
    image_size: ClassVar[int] = 416
    layer_kind: ClassVar[type[DecoderLayer]] = DecoderLayer

    @property
    def maps(self) -> int:
        """The smallest HGNetV2 end with the one map that is read."""
        return 1

    @property
    def stages(self) -> tuple[int, ...]:
        """The map of stride 16 of another backbone."""
        return (-2,)

    def build_encoder(self, backbone: nn.Module) -> nn.Module:
        """Feature maps, padding -> ``Memory``."""
        channels: Any = backbone.channels
        return LiteEncoder(channels[0], self.width, self.fuse_width, self.fusing_blocks)

    def corner_heads(self) -> Sequence[nn.Module]:
        """One head of distributions for all layers."""
        return super().corner_heads()[:1]

    def criterion(self, train: TrainConfig) -> Criterion:
        """MAL, L1 and GIoU (weights 1, 5, 2; costs 2, 5, 2)."""
        usual = super().criterion(train)
        terms = [term._replace(union=False) for term in usual.terms[:3]]
        return dataclasses.replace(usual, terms=tuple(terms))


class DeimV2Atto(DeimV2Femto):
    """DEIMv2-Atto."""

    preset: str = "deimv2-atto"
    backbone: str = "hgnetv2_atto"
    num_queries: int = Field(100, ge=1, le=100_000)
    width: int = Field(64, ge=8, le=8192)
    encoder_width: int = Field(64, ge=8, le=8192)
    ffn_width: int = Field(160, ge=2, le=65_536)
    image_size: ClassVar[int] = 320


class DeimV2Pico(DeimV2Femto):
    """DEIMv2-Pico."""

    preset: str = "deimv2-pico"
    backbone: str = "hgnetv2_pico"
    num_queries: int = Field(200, ge=1, le=100_000)
    width: int = Field(112, ge=8, le=8192)
    encoder_width: int = Field(112, ge=8, le=8192)
    ffn_width: int = Field(320, ge=2, le=65_536)
    image_size: ClassVar[int] = 640


def late_matcher() -> HungarianMatcher:
    """The matching of the last epochs: by score and IoU together."""
    return HungarianMatcher((Weighted("score", 1.0, ScoreIouCost()),))
