"""A network made ready to run: the same function with less work.

``build_network`` gives the network as the papers write it, number for number the originals'.
What is done here changes the order of computing, so results differ by rounding; parameters,
buffers and all names stay, so a prepared network saves and loads like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detrlab.models.backbones.folding import fold_frozen_norms
from detrlab.models.network import Network


def prepare(network: Network) -> Network:
    """Fold frozen norms and let convolutions run channels last on a CPU; in place, once.

    Returns:
        The network that was given.
    """
    backbone = network.backbone
    fold_frozen_norms(backbone)
    if _channels_last not in backbone._forward_pre_hooks.values():
        backbone.register_forward_pre_hook(_channels_last)
    return network


def _channels_last(_module: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """Convolutions on a CPU want the channels together, and so do the tokens made of them."""
    (pixels,) = inputs
    if pixels.device.type != "cpu":
        return None
    return (pixels.contiguous(memory_format=torch.channels_last),)
