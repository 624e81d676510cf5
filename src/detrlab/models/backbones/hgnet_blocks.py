"""The blocks of PP-HGNetV2, with the names and numbers of timm's.

They are built here because importing timm takes as long as importing torch.

Source: PaddleClas, ``pp_hgnet_v2.py``; timm, ``models/hgnet.py`` (Apache-2.0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stage(NamedTuple):
    """The sizes of a stage."""

    channels_in: int
    inside: int
    channels_out: int
    blocks: int
    strided: bool
    light: bool
    kernel: int
    layers: int


class LearnableAffineBlock(nn.Module):
    """A learned scale and shift of all numbers ("LAB")."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """(...) -> (...)."""
        return self.scale * maps + self.bias


class ConvBNAct(nn.Module):
    """A convolution, its norm and, if ``act``, a ReLU with, if ``affine``, scale and shift."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        affine: bool,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU() if act else nn.Identity()
        self.lab = LearnableAffineBlock() if act and affine else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.lab(self.act(self.bn(self.conv(maps))))


class LightConvBNAct(nn.Module):
    """A convolution over the channels, then one over the cells."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, affine: bool) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(channels_in, channels_out, 1, affine=affine, act=False)
        self.conv2 = ConvBNAct(
            channels_out, channels_out, kernel, affine=affine, groups=channels_out
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.conv2(self.conv1(maps))


class Stem(nn.Module):
    """Pixels to maps of stride 4."""

    def __init__(self, inside: int, channels_out: int, *, affine: bool) -> None:
        super().__init__()
        self.stem1 = ConvBNAct(3, inside, 3, stride=2, affine=affine)
        self.stem2a = ConvBNAct(inside, inside // 2, 2, affine=affine)
        self.stem2b = ConvBNAct(inside // 2, inside, 2, affine=affine)
        self.stem3 = ConvBNAct(2 * inside, inside, 3, stride=2, affine=affine)
        self.stem4 = ConvBNAct(inside, channels_out, 1, affine=affine)
        self.pool: nn.Module = nn.MaxPool2d(2, 1, ceil_mode=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4))."""
        maps = _one_more(self.stem1(pixels))
        convolved = self.stem2b(_one_more(self.stem2a(maps)))
        return self.stem4(self.stem3(torch.cat([self.pool(maps), convolved], 1)))


def _one_more(maps: Tensor) -> Tensor:
    """A row below and a column to the right, of zeros."""
    return F.pad(maps, (0, 1, 0, 1))


class Block(nn.Module):
    """Layers one after the other; the outputs of all of them are read together."""

    def __init__(self, sizes: Stage, *, first: bool, affine: bool) -> None:
        super().__init__()
        channels = sizes.channels_in if first else sizes.channels_out
        layer = LightConvBNAct if sizes.light else ConvBNAct
        read = [channels, *[sizes.inside] * (sizes.layers - 1)]
        self.layers = nn.ModuleList(
            layer(each, sizes.inside, sizes.kernel, affine=affine) for each in read
        )
        every, half = channels + sizes.layers * sizes.inside, sizes.channels_out // 2
        self.aggregation = nn.Sequential(
            ConvBNAct(every, half, 1, affine=affine),
            ConvBNAct(half, sizes.channels_out, 1, affine=affine),
        )
        self.residual = not first

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        found = [maps]
        for layer in self.layers:
            found.append(layer(found[-1]))
        together = self.aggregation(torch.cat(found, 1))
        return together + maps if self.residual else together


class HGStage(nn.Module):
    """Blocks at one stride."""

    def __init__(self, sizes: Stage, *, affine: bool) -> None:
        super().__init__()
        channels = sizes.channels_in
        self.downsample = (
            ConvBNAct(channels, channels, 3, affine=affine, stride=2, groups=channels, act=False)
            if sizes.strided
            else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(Block(sizes, first=index == 0, affine=affine) for index in range(sizes.blocks))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.blocks(self.downsample(maps))


def initialise(network: nn.Module) -> None:
    """He initialisation of all convolutions, as timm's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
