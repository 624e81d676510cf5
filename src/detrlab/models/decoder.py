"""The decoder: layers that predict after each, for every detector of the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from detrlab.models.box_policies import BoxPolicy
from detrlab.models.heads import PredictionHead
from detrlab.structures import Memory, Predictions, Queries

QueryPosition = Callable[[Queries, Memory], Queries]
"""Gives the queries their position before each layer; a function or a module."""


def keep_position(queries: Queries, memory: Memory) -> Queries:  # noqa: ARG001
    """The position that the queries were made with serves all layers."""
    return queries


class Decoder(nn.Module):
    """A stack of decoder layers.

    Args:
        layers: the stack, each ``(Queries, Memory) -> Queries``.
        heads: one for each layer, or a single one that all layers share.
        norm: applied to the states that the heads read, not to those the next layer reads.
        boxes: how deltas become boxes and the next references, see ``box_policies``.
        position: what gives the queries their position before each layer.
        evaluated: how many layers run in evaluation mode at most; None for all.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        heads: Sequence[PredictionHead],
        norm: nn.Module,
        boxes: BoxPolicy,
        position: QueryPosition = keep_position,
        evaluated: int | None = None,
    ) -> None:
        super().__init__()
        assert len(heads) in (1, len(layers)), (len(heads), len(layers))
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.norm = norm
        self.boxes = boxes
        self.position = position
        self.evaluated = evaluated

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Predictions of every layer, the first first."""
        predictions: list[Predictions] = []
        previous = None
        layers = self.layers if self.training else self.layers[: self.evaluated]
        for index, layer in enumerate(layers):
            queries = layer(self.position(queries, memory), memory)
            head: Any = self.heads[index % len(self.heads)]
            previous, queries = self.boxes(head, self.norm(queries.content), queries, previous)
            predictions.append(previous)
        return tuple(predictions)
