"""DEIMv2's encoder for the smallest detectors: one map of the backbone becomes two levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.models.encoders.blocks import ConvNorm, Elan
from detrlab.models.encoders.transformer import flatten_maps
from detrlab.structures import Memory


class LiteEncoder(nn.Module):
    """Two levels without attention: the mean of the image is added to the coarse one.

    Args:
        channels: of the map of stride 16.
        width: D.
        hidden: of the fusing blocks.
        blocks: in each part of a fusing block.

    Source: DEIMv2, ``lite_encoder.py`` (arXiv 2509.20787, section 3).
    """

    def __init__(self, channels: int, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.projection = ConvNorm(channels, width)
        self.down1 = _halve(width)
        self.mix = ConvNorm(width, width, activation=nn.SiLU(inplace=True))
        self.top_down = Elan(width, hidden, width, blocks, nn.SiLU(inplace=True))
        self.down2 = _halve(width)
        self.bottom_up = Elan(width, hidden, width, blocks, nn.SiLU(inplace=True))

    def forward(self, features: Sequence[Tensor], padding: Tensor) -> Memory:
        """Encode one feature map.

        Args:
            features: (B, C, H, W) of stride 16 first; coarser ones are not read.
            padding: (B, H', W') bool of the whole image, True where padded.
        """
        fine = self.projection(features[0])
        coarse = self.down1(fine)
        coarse = self.mix(coarse + F.adaptive_avg_pool2d(coarse, 1))
        # As doubling, where the fine map's sides are even.
        fine = self.top_down(fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"))
        coarse = self.bottom_up(coarse + self.down2(fine))
        return flatten_maps([fine, coarse], padding)


def _halve(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(kernel_size=3, stride=2, padding=1),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.SiLU(inplace=True),
    )
