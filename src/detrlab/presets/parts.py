"""What the presets have in common: settings, and small functions that build one part each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn

from detrlab.config import ModelConfig, TrainConfig
from detrlab.errors import UserError
from detrlab.losses.criterion import Criterion
from detrlab.losses.matching import FocalCost, GIoUCost, HungarianMatcher, l1_cost, softmax_cost
from detrlab.losses.pairs import Weighted
from detrlab.losses.terms import CrossEntropy, Focal, GIoU, box_l1
from detrlab.models.attention import SelfAttention
from detrlab.models.backbones.hgnet import SMALL, HGNet, no_imagenet, small_hgnet
from detrlab.models.backbones.timm import Backbone, build_backbone
from detrlab.models.heads import PredictionHead
from detrlab.models.layers import DecoderLayer, EncoderLayer, FeedForward, stack
from detrlab.scoring import SigmoidScoring, SoftmaxScoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from detrlab.scoring import Scoring


class TransformerConfig(ModelConfig):
    """Settings of a detector with a post-norm transformer on a timm backbone."""

    width: int = Field(256, ge=8, le=8192)
    num_heads: int = Field(8, ge=1)
    ffn_width: int = Field(2048, ge=1, le=65_536)
    encoder_layers: int = Field(6, ge=0, le=100)
    decoder_layers: int = Field(6, ge=1, le=100)
    dropout: float = Field(0.1, ge=0, lt=1)

    position_offset: ClassVar[float]
    """Added to the cell counts of the sine embedding: 0 in DETR, -0.5 in Deformable DETR."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}: "
                f"choose a multiple, such as {self.num_heads * (self.width // self.num_heads + 1)}"
            )
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 (sine embedding)")
        return self

    def feed_forward(self) -> FeedForward:
        """The feed-forward network of a layer."""
        return FeedForward(self.width, self.ffn_width, self.dropout)

    def encoder_stack(self, attention: nn.Module) -> list[EncoderLayer]:
        """Encoder layers with copies of an attention."""
        layer = EncoderLayer(attention, self.feed_forward(), self.width, self.dropout)
        return stack(layer, self.encoder_layers)

    def decoder_stack(self, attention: nn.Module) -> list[DecoderLayer]:
        """Decoder layers with copies of a cross-attention."""
        among = SelfAttention(self.width, self.num_heads, self.dropout)
        layer = DecoderLayer(among, attention, self.feed_forward(), self.width, self.dropout)
        return stack(layer, self.decoder_layers)

    def head(self) -> PredictionHead:
        """A prediction head whose class bias suits the scoring."""
        num_logits = self.scoring.num_logits(self.num_classes)
        return PredictionHead(self.width, num_logits, self.scoring.initial_bias)


def timm_backbone(
    config: ModelConfig,
    *,
    stages: int | tuple[int, ...],
    pretrained: bool,
    change: Callable[[nn.Module], None] | None = None,
) -> Backbone | HGNet:
    """A timm backbone that gives its last ``stages`` feature maps, see ``build_backbone``.

    Also the backbones of DEIMv2's smallest sizes, see ``small_hgnet``.

    Raises:
        UserError: the backbone is unknown, has no such maps, or no weights can be found.
    """
    if config.backbone in SMALL:
        if pretrained:
            raise UserError(no_imagenet(config.backbone))
        return small_hgnet(
            config.backbone,
            stages=stages if isinstance(stages, int) else -min(stages),
            dilation=config.dilation,
            norms=config.backbone_norms,
            trains=config.backbone_trains,
        )
    backbone = build_backbone(
        config.backbone,
        stages=stages,
        dilation=config.dilation,
        norms=config.backbone_norms,
        trains=config.backbone_trains,
        pretrained=pretrained,
        change=change,
    )
    if list(backbone.strides) != sorted(set(backbone.strides)) and not config.dilation:
        raise UserError(
            f"backbone {config.backbone!r} gives maps of strides {backbone.strides}; "
            "each level must be coarser than the one before: choose a hierarchical backbone"
        )
    return backbone


def softmax_criterion(train: TrainConfig) -> Criterion:
    """DETR's losses: cross entropy, L1 and GIoU (weights 1, 5, 2).

    Source: arXiv 2005.12872, section 3.1 and appendix A.4.
    """
    return set_criterion(train, SoftmaxScoring(), CrossEntropy(), softmax_cost, class_weight=1.0)


def focal_criterion(train: TrainConfig) -> Criterion:
    """Deformable DETR's losses: focal, L1 and GIoU (weights 2, 5, 2).

    Source: arXiv 2010.04159, appendix A.4.
    """
    return set_criterion(train, SigmoidScoring(), Focal(), FocalCost(), class_weight=2.0)


def set_criterion(
    train: TrainConfig,
    scoring: Scoring,
    class_loss: Callable[..., Tensor],
    class_cost: Callable[..., Tensor],
    *,
    class_weight: float,
    class_cost_weight: float | None = None,
    giou_eps: float = 0.0,
) -> Criterion:
    """A class loss, L1 and GIoU, and a matching by the same three.

    Args:
        train: the weights that the user chose; a cost's weight is by default its loss's.
        scoring: how logits are read.
        class_loss: a loss term.
        class_cost: a matching cost.
        class_weight: of the class loss, where the user chose none.
        class_cost_weight: of the class cost, likewise; None follows the loss.
        giou_eps: see ``boxes.generalized_box_iou``.
    """
    weight = class_weight if train.class_weight is None else train.class_weight

    def cost(*choices: float | None) -> float:
        return next(choice for choice in choices if choice is not None)

    class_cost_weight = cost(train.class_cost, class_cost_weight, weight)
    box_cost = cost(train.box_cost, train.box_weight)
    giou_cost = cost(train.giou_cost, train.giou_weight)
    return Criterion(
        terms=(
            Weighted("class", weight, class_loss),
            Weighted("box", train.box_weight, box_l1),
            Weighted("giou", train.giou_weight, GIoU(giou_eps)),
        ),
        matcher=HungarianMatcher(
            (
                Weighted("box", box_cost, l1_cost),
                Weighted("class", class_cost_weight, class_cost),
                Weighted("giou", giou_cost, GIoUCost(giou_eps)),
            )
        ),
        scoring=scoring,
        auxiliary=train.auxiliary_losses,
    )
