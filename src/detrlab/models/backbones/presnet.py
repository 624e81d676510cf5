"""RT-DETR's ResNets ("vd", from PaddleDetection), made from timm's ResNet-D."""

from __future__ import annotations

from torch import nn


def add_first_shortcut(body: nn.Module) -> None:
    """Give the first block of a ResNet-18-D or 34-D a projected shortcut, as theirs has.

    It is all in which they differ from timm's. It starts as the identity, so that with timm's
    ImageNet weights the network computes what timm's does.

    Args:
        body: a feature extractor of timm; others than these two are left as they are.

    Source: ``PResNet`` of lyuwenyu/RT-DETR.
    """
    from timm.models.resnet import BasicBlock, downsample_avg

    stage = getattr(body, "layer1", None)
    block = stage[0] if isinstance(stage, nn.Sequential) else None
    if not isinstance(block, BasicBlock) or block.downsample is not None:
        return
    channels = block.conv1.in_channels
    shortcut = downsample_avg(channels, channels, kernel_size=1)
    for each in shortcut.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.dirac_(each.weight)
    block.downsample = shortcut
