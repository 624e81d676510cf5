"""Less memory for more time: layers whose insides are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(network: nn.Module) -> int:
    """Keep only the inputs of layers for the backward pass, not what happens inside them.

    Gradients stay the same, dropout included. The network's modules and names do not change.

    Args:
        network: with ``encoder.layers``, ``decoder.layers`` and ``backbone.body``.

    Returns:
        How many layers it was done to.
    """
    parts = list(_layers(network))
    for part in parts:
        # The module's own attribute goes before its class's: nothing else needs to know.
        part.forward = _recomputed(part, part.forward)
    return len(parts)


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    yield from network.get_submodule("encoder.layers").children()
    yield from network.get_submodule("decoder.layers").children()
    for stage in network.get_submodule("backbone.body").modules():
        # Stages only: single layers may work in place on what is needed again. And a norm that
        # learns its statistics would learn from every image twice.
        if _is_stage(stage) and not any(isinstance(each, _BatchNorm) for each in stage.modules()):
            yield stage


def _is_stage(module: nn.Module) -> bool:
    """Whether a module is a row of blocks that themselves have parts, and not of stages."""
    blocks = list(module.children())
    if not isinstance(module, nn.Sequential) or not blocks:
        return False
    return all(list(block.children()) and not _is_stage(block) for block in blocks)


def _recomputed(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_and_forget(*inputs: Any) -> Any:
        if part.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    return forward_and_forget
