"""Steps between the published families: each adds one change to the detector before it.

Nobody published these detectors; where a paper has an ablation, it is of such a step. They hand
other parts in, and have no weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field
from torch import nn

from detrlab.losses.terms import Focal
from detrlab.presets.dfine import DFineN, Distributions, Lighter, Matchability, SizeN
from detrlab.presets.dino import Dino
from detrlab.presets.rtdetr import RtDetr, RtDetrV2

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.losses.pairs import MatchedPairs


class DinoHybrid(Dino):
    """+ hybrid encoder: attention within the coarsest of three levels, convolutions across them.

    Source: arXiv 2304.08069 (RT-DETR), table 3.
    """

    preset: str = "dino-hybrid"
    encoder_width: int = Field(256, ge=8, le=8192)
    encoder_ffn_width: int = Field(1024, ge=1, le=65_536)
    encoder_layers: int = Field(1, ge=0, le=100)
    expansion: float = Field(1.0, gt=0, le=4)
    levels: int = Field(3, ge=1, le=3)

    def build_encoder(self, backbone: nn.Module) -> nn.Module:
        """RT-DETR's."""
        shared = self.model_dump(include=set(RtDetr.model_fields))
        return RtDetr.parse(shared).build_encoder(backbone)


class RtDetrFocal(RtDetr):
    """RT-DETR's backbone, queries and decoder: not separated in the paper.

    A ResNet-D. Three hundred queries whose content is the feature of their cell. In the decoder a
    head for each layer, a position that is a small network of the box, and a narrower
    feed-forward network. The class loss is DINO's.
    """

    preset: str = "rt-detr-r50-focal"

    @property
    def class_loss(self) -> Callable[[MatchedPairs], Tensor]:
        """The loss term of the classes."""
        return Focal()


class RtDetrV2N(SizeN, RtDetrV2):
    """RT-DETRv2 at the size of D-FINE-N: HGNetV2-B0, two levels, 128 wide, three layers."""

    preset: str = "rt-detr-v2-n"


class DFineNLight(SizeN, Lighter):
    """RT-DETR with a lighter encoder, and gates instead of projections in the decoder."""

    preset: str = "d-fine-n-light"
    points: int | tuple[int, ...] = (6, 6)


class DFineNFdr(SizeN, Distributions):
    """+ fine-grained distribution refinement (FDR): every layer refines a distribution per edge."""

    preset: str = "d-fine-n-fdr"
    points: int | tuple[int, ...] = (6, 6)


class DFineNMal(Matchability, DFineN):
    """+ matchability-aware loss (MAL): poor matches train with full weight."""

    preset: str = "d-fine-n-mal"


UNPUBLISHED = ("dino-hybrid", "rt-detr-v2-n", "d-fine-n-light")
"""Those whose tensors no original repository names."""
