"""From two-stage Deformable DETR to DINO, one change at a time.

Source: arXiv 2203.03605; IDEA-Research/DINO.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import nn

from detrlab.config import TrainConfig
from detrlab.losses.matching import FocalCost
from detrlab.losses.terms import Focal
from detrlab.models.anchors import AnchorPosition, look_forward_twice, refine_anchors
from detrlab.models.decoder import Decoder
from detrlab.models.heads import PredictionHead
from detrlab.models.position import TEMPERATURE, SinePosition
from detrlab.models.queries.denoising import DenoisingQueries
from detrlab.models.queries.selected import SelectedQueries
from detrlab.presets.deformable import DeformableDetr
from detrlab.presets.parts import set_criterion

if TYPE_CHECKING:
    from detrlab.losses.criterion import Criterion
    from detrlab.models.box_policies import BoxPolicy


class DabDeformableDetr(DeformableDetr):
    """Two-stage with anchor boxes: the position of a query is embedded anew in every layer.

    The query's content is the feature of its proposal. As in DINO's code the proposals have
    classes, one head serves all decoder layers, and the states it reads are normalised.
    """

    preset: str = "dab-deformable-detr"
    num_queries: int = Field(900, ge=1, le=100_000)
    ffn_width: int = Field(2048, ge=1, le=65_536)
    dropout: float = Field(0.0, ge=0, lt=1)
    position_offset: ClassVar[float] = 0.0
    temperature: ClassVar[float] = 20.0

    def sine_position(self) -> SinePosition:
        """Position of the memory's cells."""
        return SinePosition(self.width, self.position_offset, self.temperature)

    def build_queries(self) -> nn.Module:
        """The proposals with the best class."""
        return SelectedQueries(self.num_queries, self.width, self.box_head(), mixed=False)

    def build_decoder(self) -> Decoder:
        """Queries, memory -> predictions of each layer."""
        return Decoder(
            self.decoder_stack(self.attention()),
            self.build_heads(),
            norm=nn.LayerNorm(self.width),
            boxes=self.box_policy(),
            position=AnchorPosition(self.width),
        )

    def build_heads(self) -> list[PredictionHead]:
        """One head for all layers."""
        return [self.box_head()]

    def box_head(self) -> PredictionHead:
        """A head whose boxes start as the references."""
        head = self.head()
        head.boxes.start_at(0.0)
        return head

    def box_policy(self) -> BoxPolicy:
        """How deltas become boxes and the next references."""
        return refine_anchors

    def criterion(self, train: TrainConfig) -> Criterion:
        """Focal, L1 and GIoU (weights 1, 5, 2; costs 2, 5, 2)."""
        return set_criterion(
            train,
            self.scoring,
            Focal(),
            FocalCost(),
            class_weight=1.0,
            class_cost_weight=2.0,
            giou_eps=1e-6,
        )


class DnDeformableDetr(DabDeformableDetr):
    """+ denoising: noisy objects are added as queries in training, to be restored."""

    preset: str = "dn-deformable-detr"
    denoising: int = Field(100, ge=1)
    """About how many denoising queries of one kind an image gets."""
    label_noise: float = Field(0.5, ge=0, le=2)
    box_noise: float = Field(0.4, ge=0)
    contrastive: ClassVar[bool] = False
    unused_labels: ClassVar[int] = 1
    """Rows of the label embedding that no class reads."""

    def build_queries(self) -> nn.Module:
        """The proposals with the best class, behind denoising queries."""
        return DenoisingQueries(
            self.selected_queries(),
            self.num_classes,
            self.width,
            number=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
            contrastive=self.contrastive,
            unused_labels=self.unused_labels,
        )

    def selected_queries(self) -> nn.Module:
        """The queries that are matched."""
        return super().build_queries()


class CdnDeformableDetr(DnDeformableDetr):
    """+ contrastive denoising: objects with more noise are to be rejected."""

    preset: str = "cdn-deformable-detr"
    contrastive: ClassVar[bool] = True


class MixedDeformableDetr(CdnDeformableDetr):
    """+ mixed query selection: the place comes from the proposal, the content is learned."""

    preset: str = "mixed-deformable-detr"

    def selected_queries(self) -> nn.Module:
        """The queries that are matched."""
        return SelectedQueries(self.num_queries, self.width, self.box_head(), mixed=True)


class Dino(MixedDeformableDetr):
    """+ look forward twice: the boxes of a layer also train the layer before it."""

    preset: str = "dino-4scale"

    def box_policy(self) -> BoxPolicy:
        """How deltas become boxes and the next references."""
        return look_forward_twice


class Dino5Scale(Dino):
    """DINO with the backbone's finest map (stride 4) as a fifth level."""

    preset: str = "dino-5scale"
    levels: int = Field(5, ge=1, le=6)
    backbone_maps: ClassVar[int] = 4


class DinoDetrex(Dino):
    """DINO as detrex trains it: a head for each layer, cell positions of Deformable DETR.

    Source: IDEA-Research/detrex, ``projects/dino``.
    """

    preset: str = "dino-4scale-detrex"
    label_noise: float = Field(0.2, ge=0, le=2)
    box_noise: float = Field(1.0, ge=0)
    position_offset: ClassVar[float] = -0.5
    temperature: ClassVar[float] = TEMPERATURE
    unused_labels: ClassVar[int] = 0

    def build_heads(self) -> list[PredictionHead]:
        """One head for each layer, equal at the start."""
        head = self.box_head()
        return [copy.deepcopy(head) for _ in range(self.decoder_layers)]
