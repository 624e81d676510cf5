"""What passes between a network's parts during one forward pass, recorded by forward hooks.

The network is not changed: the outputs are the same bits with and without the hooks. Only the
inputs of each attention are kept, never an attention matrix; ``looks`` computes single rows of
it on request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrlab.explain.stations import Station, places, station
from detrlab.models.attention import DeformableAttention, DenseAttention
from detrlab.models.network import Network
from detrlab.structures import ImageBatch, Memory, Predictions, Queries, References, Target


class Call(NamedTuple):
    """One attention over the memory: the module and its inputs.

    ``query`` is (B, N, D), position included; N is S in the encoder, Q in the decoder. The
    references are None in dense attention.
    """

    attention: DenseAttention | DeformableAttention
    query: Tensor
    references: References | None
    memory: Memory


class Recording(NamedTuple):
    """What a network did with a batch.

    Attributes:
        layers: predictions of each decoder layer.
        first_stage: predictions of the first stage, for every cell of the memory or for the
            chosen ones; None without a first stage.
        memory: what the queries and the decoder read, after the encoder.
        queries: as they entered the decoder.
        encoder: attention of each encoder layer.
        decoder: cross-attention of each decoder layer.
        stations: maps on the two paths of a real-time encoder, empty in others.
    """

    layers: tuple[Predictions, ...]
    first_stage: Predictions | None
    memory: Memory
    queries: Queries
    encoder: tuple[Call, ...]
    decoder: tuple[Call, ...]
    stations: tuple[Station, ...] = ()


def record(network: Network, images: ImageBatch) -> Recording:
    """Run a network in evaluation mode and keep the inputs of its attentions, without gradients.

    Every ``DenseAttention`` and ``DeformableAttention`` is found by its class, wherever it is
    in the encoder and the decoder; calls are kept in the order of the forward pass. They hold
    about two (B, S, D) tensors for each encoder layer.

    Args:
        network: any detector; the training modes and hooks of its modules are as they were when
            this returns or raises.
        images: B images on the network's device.
    """
    attentions = _attentions(network.encoder), _attentions(network.decoder)
    stops = places(network.encoder)
    listened = [network.queries, *attentions[0], *attentions[1], *(each.module for each in stops)]
    with evaluating(network), _listening(listened) as calls:
        # A target without objects: the first stage predicts its proposals only for targets.
        nothing = Target(
            torch.zeros(0, dtype=torch.long, device=images.pixels.device),
            torch.zeros(0, 4, device=images.pixels.device),
        )
        output = network(images, [nothing] * len(images.pixels))
    memory, queries = next(
        (inputs[0], result[0]) for module, inputs, result in calls if module is network.queries
    )
    encoder, decoder = (
        tuple(Call(module, *inputs) for module, inputs, _ in calls if module in part)
        for part in attentions
    )
    # A decoder may predict before its first layer (``DistributionDecoder``).
    layers = output.layers[-len(decoder) :]
    given = {module: (inputs[0], result) for module, inputs, result in calls}
    stations = tuple(station(each, *given[each.module]) for each in stops)
    return Recording(layers, output.proposals, memory, queries, encoder, decoder, stations)


def _attentions(part: nn.Module) -> list[nn.Module]:
    return [
        each for each in part.modules() if isinstance(each, DenseAttention | DeformableAttention)
    ]


@contextmanager
def _listening(modules: list[nn.Module]) -> Iterator[list[Any]]:
    """Module, inputs and result of each call inside the block."""
    calls: list[Any] = []
    handles = [module.register_forward_hook(lambda *call: calls.append(call)) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in.

    Module by module, because a caller may have put single parts into evaluation mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
