"""Gradient checkpointing: layers whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(network: nn.Module) -> int:
    """Keep only the inputs of layers for the backward pass: less memory, more time.

    Gradients stay the same, with dropout too. The network's modules and names do not change.

    Args:
        network: with ``encoder.layers``, ``decoder.layers`` and ``backbone.body``.

    Returns:
        The number of checkpointed layers.
    """
    layers = list(_layers(network))
    for layer in layers:
        # An attribute of the instance hides the class's method: no wrapper, no new names.
        layer.forward = _checkpointed(layer, layer.forward)
    return len(layers)


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    yield from network.get_submodule("encoder.layers").children()
    yield from network.get_submodule("decoder.layers").children()
    for stage in network.get_submodule("backbone.body").modules():
        # Whole stages, because layers inside may work in place on what is needed again. None with
        # norms that learn their statistics: they would see every image twice.
        if _is_stage(stage) and not any(isinstance(each, _BatchNorm) for each in stage.modules()):
            yield stage


def _is_stage(module: nn.Module) -> bool:
    """Whether a module is a sequence of blocks that have parts, and not a sequence of stages."""
    blocks = list(module.children())
    if not isinstance(module, nn.Sequential) or not blocks:
        return False
    return all(list(block.children()) and not _is_stage(block) for block in blocks)


def _checkpointed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    return run
