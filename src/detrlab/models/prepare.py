"""Optimise a network for execution: the same function, computed faster.

``build_network`` gives the network whose numbers equal the originals'. The changes here reorder
the computation, so results differ by rounding. Parameters, buffers and their names stay the
same, so a prepared network saves and loads like any other.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from detrlab.models.backbones.folding import (
    FoldedBatchNorm2d,
    FoldedConv2d,
    FoldedNorm,
    fold_norms,
)
from detrlab.models.backbones.hgnet import BoundedConv, HGNet, shorten
from detrlab.models.encoders.blocks import MergedRepBlock, fold_blocks
from detrlab.models.network import Network


def prepare(network: Network) -> Network:
    """Fold norms, merge RepVGG blocks, and run convolutions channels last on a CPU; in place.

    A norm that trains is folded in evaluation mode only.

    Returns:
        The network that was given.
    """
    backbone = network.backbone
    fold_norms(backbone)
    if isinstance(backbone, HGNet):
        shorten(backbone)
    fold_blocks(network.encoder)
    if _channels_last not in backbone._forward_pre_hooks.values():
        backbone.register_forward_pre_hook(_channels_last)
    return network


def plain(network: Network) -> Network:
    """A copy for inference only, of ordinary parts: norms folded in, RepVGG blocks merged.

    Its parameters have other names and shapes: it is for exporting and counting.
    """
    twin = prepare(copy.deepcopy(network)).eval()
    twin.backbone._forward_pre_hooks.clear()
    for kinds in ((BoundedConv, MergedRepBlock), (FoldedConv2d,)):
        for name, part in list(twin.named_modules()):
            if isinstance(part, kinds):
                twin.set_submodule(name, part.plain())
    for name, part in list(twin.named_modules()):
        if isinstance(part, FoldedBatchNorm2d | FoldedNorm):
            twin.set_submodule(name, getattr(part, "act", nn.Identity()))
    return twin


def _channels_last(_module: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """Convolutions on a CPU are faster channels last, and so is flattening their maps to tokens."""
    (pixels,) = inputs
    if pixels.device.type != "cpu":
        return None
    return (pixels.contiguous(memory_format=torch.channels_last),)
