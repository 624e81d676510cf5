"""Strided convolutions whose grid does not hang on the size of the image.

TensorFlow's "SAME" padding, which timm's ``tf_`` backbones keep, centres what a strided
convolution lacks: an even side is padded at its end, an odd one on both sides. So the grid of
cells starts half a stride earlier or later in the image, anew at every strided convolution, by
whether a side happens to be even. A classifier sees one size and does not mind. A detector that
is trained on padded batches and judged on bare images finds its boxes shifted by pixels.

``align`` pads every size as the next multiple of the stride is padded. For sides that are
multiples of the backbone's stride, such as 224, nothing changes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SamePadding:
    """TensorFlow's padding of a convolution, as if each side were a multiple of its stride.

    A class and not a closure, because those cannot be pickled.

    Args:
        conv: a convolution with strides, kernel size and dilation, of which only these are read.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        spans = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        self._rows, self._columns = zip(spans, conv.stride, strict=True)

    def __call__(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> zeros added on all sides."""
        top, bottom = _margins(maps.shape[-2], *self._rows)
        left, right = _margins(maps.shape[-1], *self._columns)
        return F.pad(maps, (left, right, top, bottom))


def _margins(side: int, span: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side for a kernel that spans so many cells."""
    before = max(0, span - stride) // 2
    whole = -(-side // stride) * stride
    return before, whole - side + max(0, span - stride) - before


class AlignedConv2d(nn.Conv2d):
    """A "SAME" convolution on a grid that starts at the same pixel whatever the image's size.

    Args:
        conv: whose parameters are taken over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # torch types its own attributes loosely
            stride=conv.stride,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.same = SamePadding(conv)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return super().forward(self.same(maps))


def align(body: nn.Module) -> nn.Module:
    """Replace timm's strided "SAME" convolutions, in place; parameters and names stay.

    Returns:
        The module that was given.
    """
    from timm.layers import Conv2dSame

    for name, module in list(body.named_modules()):
        if type(module) is Conv2dSame and max(module.stride) > 1:
            body.set_submodule(name, AlignedConv2d(module))
    return body
