"""The hybrid encoder of RT-DETR, D-FINE and DEIM: attention within levels, convolutions across.

Source: arXiv 2304.08069, section 4.2; the originals' ``hybrid_encoder.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.models.encoders.transformer import flatten_maps
from detrlab.models.layers import EncoderLayer
from detrlab.models.position import GridPosition
from detrlab.structures import Memory

Builder = Callable[[], nn.Module]


class WithinLevel(nn.Module):
    """Attention among the cells of one feature map (intra-scale interaction).

    Padded cells are not attended to.

    Args:
        layers: the stack, with attention that looks everywhere.
        width: D.
    """

    def __init__(self, layers: Sequence[EncoderLayer], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.position = GridPosition(width)

    def forward(self, level: Tensor, padding: Tensor) -> Tensor:
        """(B, D, H, W) map, (B, H', W') padding of the whole image -> (B, D, H, W)."""
        memory = flatten_maps([level], padding, self.position)
        for layer in self.layers:
            memory = layer(memory, None)
        return memory.tokens.transpose(1, 2).unflatten(-1, memory.level_shapes[0])


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """Two (B, D, H, W) maps -> (B, 2 D, H, W)."""
    return torch.cat([first, second], dim=1)


class HybridEncoder(nn.Module):
    """Attention within chosen levels; then maps are fused from coarse to fine and back.

    Args:
        projections: one for each level, (B, C_l, H_l, W_l) -> (B, D, H_l, W_l).
        within: attention within a level by its number, 0 being the finest.
        combine: two maps of one size -> what a fusing block reads: ``concatenate`` or
            ``torch.add``.
        lateral: builds what a coarse map passes before it is enlarged.
        fuse: builds a fusing block, (B, D or 2 D, H, W) -> (B, D, H, W).
        halve: builds what halves a map.
        output: builds what each level passes at last; it belongs to the originals' decoder.
    """

    def __init__(
        self,
        projections: Sequence[nn.Module],
        within: Mapping[int, nn.Module],
        combine: Callable[[Tensor, Tensor], Tensor],
        lateral: Builder,
        fuse: Builder,
        halve: Builder,
        output: Builder = nn.Identity,
    ) -> None:
        super().__init__()
        steps = range(len(projections) - 1)
        self.projections = nn.ModuleList(projections)
        self.attended = tuple(within)
        self.within = nn.ModuleList(within.values())
        self.combine = combine
        self.laterals = nn.ModuleList(lateral() for _ in steps)  # the first for the coarsest
        self.top_down = nn.ModuleList(fuse() for _ in steps)
        self.halvings = nn.ModuleList(halve() for _ in steps)
        self.bottom_up = nn.ModuleList(fuse() for _ in steps)
        self.outputs = nn.ModuleList(output() for _ in projections)

    def forward(self, features: Sequence[Tensor], padding: Tensor) -> Memory:
        """Encode the feature maps.

        Args:
            features: (B, C_l, H_l, W_l), finest first.
            padding: (B, H, W) bool of the whole image, True where padded.
        """
        maps = [project(each) for project, each in zip(self.projections, features, strict=True)]
        for level, attend in zip(self.attended, self.within, strict=True):
            maps[level] = attend(maps[level], padding)
        coarse, passed = maps[-1], []
        for lateral, fuse, fine in zip(self.laterals, self.top_down, maps[-2::-1], strict=True):
            coarse = lateral(coarse)
            passed.append(coarse)
            # As the originals' doubling, where the fine map's sides are even.
            enlarged = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
            coarse = fuse(self.combine(enlarged, fine))
        fused = [coarse]
        for halve, fuse, coarse in zip(self.halvings, self.bottom_up, passed[::-1], strict=True):
            fused.append(fuse(self.combine(halve(fused[-1]), coarse)))
        fused = [output(each) for output, each in zip(self.outputs, fused, strict=True)]
        return flatten_maps(fused, padding)
