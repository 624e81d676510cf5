"""Feature maps to memory: projection to one width, position, flattening."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.structures import Memory


class Neck(nn.Module):
    """Projects each level to the transformer's width and flattens all levels into one memory.

    Levels beyond the backbone's maps are made by strided projections: the first of them reads
    the backbone's coarsest map as it is (not its projection), each further one the level before.

    Args:
        projections: one module per level, (B, C_l, H, W) -> (B, D, H_l, W_l).
        position: paddings, dtype -> position embedding of each level.

    Source: arXiv 2010.04159, appendix A.2.
    """

    def __init__(self, projections: Sequence[nn.Module], position: nn.Module) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.position = position

    def forward(self, features: Sequence[Tensor], padding: Tensor) -> Memory:
        """Build the memory.

        Args:
            features: (B, C_l, H_l, W_l), finest first.
            padding: (B, H, W) bool of the whole image.
        """
        maps: list[Tensor] = []
        for level, project in enumerate(self.projections):
            if level < len(features):
                source = features[level]
            else:
                source = features[-1] if level == len(features) else maps[-1]
            maps.append(project(source))
        paddings = [resize_padding(padding, level.shape[-2:]) for level in maps]
        dtype = maps[0].dtype
        return Memory(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            position=torch.cat(self.position(paddings, dtype), dim=1),
            padding=torch.cat([level.flatten(1) for level in paddings], dim=1),
            level_shapes=tuple((level.shape[-2], level.shape[-1]) for level in maps),
            valid_ratios=torch.stack([valid_ratio(level, dtype) for level in paddings], dim=1),
        )


def resize_padding(padding: Tensor, size: Sequence[int]) -> Tensor:
    """The image's padding at a level's size: (B, H, W) bool -> (B, H_l, W_l) bool.

    Every level reads the full-resolution padding, by the nearest cell at or before it.
    """
    return F.interpolate(padding[:, None].float(), size=tuple(size), mode="nearest")[:, 0].bool()


def valid_ratio(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """The unpadded share of width and height: (B, H_l, W_l) bool -> (B, 2), (w, h).

    At least float32, whatever ``dtype`` asks: sampling locations are built from it.
    """
    _, height, width = padding.shape
    valid = ~padding
    counts = torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], dim=-1)
    counts = counts.to(torch.promote_types(dtype, torch.float32))
    return counts / counts.new_tensor([width, height])
