"""Convolution blocks of the real-time encoders.

Source: arXiv 2304.08069 (RT-DETR), figure 4; arXiv 2410.13842 (D-FINE), section 5.1; the
originals' ``hybrid_encoder.py``. Convolutions keep PyTorch's initial values.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.models.backbones.folding import FoldedConv2d, Kept, Kernel, fold


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm and an activation.

    Args:
        channels: in.
        out: channels out.
        kernel: side, odd.
        stride: of the convolution.
        groups: of the convolution.
        activation: a module; None for none.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out)
        self.act = nn.Identity() if activation is None else activation

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / stride, W / stride)."""
        return self.act(self.norm(self.conv(maps)))


class RepBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, which can be merged into one 3x3 (RepVGG)."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = activation

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.act(self.conv1(maps) + self.conv2(maps))


class MergedRepBlock(RepBlock):
    """A RepVGG block whose two convolutions are one in evaluation mode.

    Args:
        block: whose parts, folded, are taken over.
    """

    def __init__(self, block: RepBlock) -> None:
        nn.Module.__init__(self)
        self.conv1, self.conv2, self.act = block.conv1, block.conv2, block.act
        self._kept = Kept[Kernel]()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not all(part.norm.fixed for part in self.parts()):
            return super().forward(maps)
        return self.act(F.conv2d(maps, *self.kernel(), padding=1))

    def parts(self) -> tuple[FoldedConv2d, FoldedConv2d]:
        """The 3x3 convolution and the 1x1 convolution."""
        wide, narrow = self.conv1.conv, self.conv2.conv
        assert isinstance(wide, FoldedConv2d)
        assert isinstance(narrow, FoldedConv2d)
        return wide, narrow

    def plain(self) -> nn.Sequential:
        """The same in evaluation mode, of ordinary parts."""
        return nn.Sequential(self.parts()[0].plain(self.kernel()), self.act)

    def kernel(self) -> Kernel:
        """The sum of both kernels."""
        wide, narrow = self.parts()
        sources = [*wide.sources(), *narrow.sources()]
        return self._kept.get(sources, lambda: _sum(wide.kernel(), narrow.kernel()))


def _sum(wide: Kernel, narrow: Kernel) -> Kernel:
    """A 3x3 kernel and a 1x1 kernel as one."""
    weight = wide.weight + F.pad(narrow.weight, [1, 1, 1, 1])
    return Kernel(weight, wide.bias + narrow.bias)


def fold_blocks(encoder: nn.Module) -> None:
    """Fold the norms of an encoder into its convolutions and merge RepVGG blocks, in place."""
    for block in list(encoder.modules()):
        names = list(dict(block.named_children())) if isinstance(block, nn.Sequential) else []
        pairs = list(pairwise(names))
        if isinstance(block, ConvNorm):
            pairs = [("conv", "norm")]
        for conv, norm in pairs:
            kinds = (type(block.get_submodule(conv)), type(block.get_submodule(norm)))
            if kinds == (nn.Conv2d, nn.BatchNorm2d):
                fold(block, conv, norm)
    for name, block in list(encoder.named_modules()):
        if type(block) is RepBlock:
            encoder.set_submodule(name, MergedRepBlock(block))


class Csp(nn.Module):
    """Half of the channels pass through blocks, half pass by; their sum, projected if needed.

    RT-DETR, D-FINE and DEIM have two first convolutions instead of one (``conv2`` for what passes
    by, ``conv1``): stacked they are ours, so checkpoints of both load.
    """

    def __init__(
        self, channels: int, hidden: int, out: int, blocks: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, 2 * hidden, activation=activation)
        self.bottlenecks = nn.Sequential(*(RepBlock(hidden, activation) for _ in range(blocks)))
        same = hidden == out
        self.conv3 = nn.Identity() if same else ConvNorm(hidden, out, activation=activation)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        by, through = self.conv1(maps).chunk(2, dim=1)
        return self.conv3(by + self.bottlenecks(through))


class Elan(nn.Module):
    """Two CSP blocks in a row; their outputs and both halves of the input are combined.

    Args:
        channels: in.
        hidden: of the two blocks.
        out: channels out; the halves of the input have ``out`` channels each.
        blocks: in each CSP block.
        activation: of all convolutions.
        smooth: a 3x3 convolution after each CSP block (D-FINE's RepNCSPELAN4); without, DEIM's
            RepNCSPELAN5.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int,
        blocks: int,
        activation: nn.Module,
        *,
        smooth: bool = True,
    ) -> None:
        super().__init__()

        def branch(inputs: int) -> nn.Sequential:
            parts: list[nn.Module] = [Csp(inputs, hidden, hidden, blocks, activation)]
            if smooth:
                parts.append(ConvNorm(hidden, hidden, 3, activation=activation))
            return nn.Sequential(*parts)

        self.cv1 = ConvNorm(channels, 2 * out, activation=activation)
        self.cv2 = branch(out)
        self.cv3 = branch(hidden)
        self.cv4 = ConvNorm(2 * out + 2 * hidden, out, activation=activation)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        first, second = self.cv1(maps).chunk(2, dim=1)
        third = self.cv2(second)
        fourth = self.cv3(third)
        return self.cv4(torch.cat([first, second, third, fourth], dim=1))


def halve_by_channel(width: int) -> nn.Sequential:
    """Half the height and width: a 1x1 convolution, then a strided 3x3 of each channel (SCDown).

    Source: arXiv 2410.13842, section 5.1; arXiv 2405.14458 (YOLOv10), section 3.2.
    """
    return nn.Sequential(ConvNorm(width, width), ConvNorm(width, width, 3, 2, groups=width))
