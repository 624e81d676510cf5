"""What passes between a network's parts during one forward, caught by forward hooks.

The network is not touched: no flag, no changed module, and the same bits come out with and
without hooks. Only what the parts are given is kept, never an attention matrix: a row of it is
recomputed when somebody asks for it (``attention``, ``sampling``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrlab.models.network import Network
from detrlab.structures import ImageBatch, Memory, ModelOutput, Queries, References


class MemoryAttention(NamedTuple):
    """One attention over the memory: the module and what it was given.

    Attributes:
        attention: a ``DenseAttention`` or ``DeformableAttention``.
        query: (B, N, D), position included; N is S in the encoder, Q in the decoder.
        references: where each query looks from; None in dense attention.
        memory: what is attended to.
    """

    attention: nn.Module
    query: Tensor
    references: References | None
    memory: Memory


class QueryAttention(NamedTuple):
    """One attention among the object queries: the module and what it was given.

    Attributes:
        attention: a ``SelfAttention``.
        content: (B, Q, D).
        position: (B, Q, D).
    """

    attention: nn.Module
    content: Tensor
    position: Tensor


@dataclass(frozen=True)
class Recording:
    """What a network did with a batch.

    Attributes:
        output: what it said.
        memory: what the queries and the decoder read, after the encoder.
        queries: as they entered the decoder.
        encoder: attention of each encoder layer.
        decoder: cross-attention of each decoder layer.
        among_queries: self-attention of each decoder layer.
    """

    output: ModelOutput
    memory: Memory
    queries: Queries
    encoder: tuple[MemoryAttention, ...]
    decoder: tuple[MemoryAttention, ...]
    among_queries: tuple[QueryAttention, ...]


def record(network: Network, images: ImageBatch) -> Recording:
    """Run a network in evaluation mode and keep what its parts were given.

    Args:
        network: any detector of the family; its modules' training modes and hooks are as they
            were when this returns or raises.
        images: B images on the network's device.

    Returns:
        A recording without gradients. It holds references to tensors of the forward pass: about
        two (B, S, D) tensors for each encoder layer.
    """
    encoder = _of_each_layer(network.encoder, "attention")
    crossing = _of_each_layer(network.decoder, "cross_attention")
    among = _of_each_layer(network.decoder, "self_attention")
    with _evaluating(network), _listening([network.queries, *encoder, *crossing, *among]) as heard:
        output = network(images)
    (memory,), (queries, _) = heard[network.queries]
    return Recording(
        output=output,
        memory=memory,
        queries=queries,
        encoder=tuple(MemoryAttention(module, *heard[module][0]) for module in encoder),
        decoder=tuple(MemoryAttention(module, *heard[module][0]) for module in crossing),
        among_queries=tuple(QueryAttention(module, *heard[module][0]) for module in among),
    )


def _of_each_layer(stack: nn.Module, name: str) -> list[nn.Module]:
    """The submodule of that name in each layer of an encoder or decoder."""
    return [layer.get_submodule(name) for layer in stack.get_submodule("layers").children()]


@contextmanager
def _listening(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[Any, Any]]]:
    """Arguments and result of each module's last call inside the block."""
    heard: dict[nn.Module, tuple[Any, Any]] = {}

    def listen(module: nn.Module, arguments: Any, result: Any) -> None:
        heard[module] = (arguments, result)

    handles = [module.register_forward_hook(listen) for module in modules]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in.

    Module by module, because a part may have been set to evaluation by itself.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
