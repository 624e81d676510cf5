"""Transformer layers: the same for dense and deformable attention (post-norm).

Layers, attention and feed-forward networks draw their initial values in ``reset_parameters``,
which ``stack`` calls: the matrices of each layer are drawn anew, while biases and norms of all
layers start equal.

Source: ``Transformer._reset_parameters`` and ``_get_clones`` of both original repositories.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from detrlab.ops.dropout import dropout
from detrlab.structures import Memory, Queries, References

Layer = TypeVar("Layer", bound=nn.Module)


def stack(layer: Layer, count: int) -> list[Layer]:
    """``count`` copies of one layer, each with initial values of its own."""
    copies: list[Any] = [copy.deepcopy(layer) for _ in range(count)]
    for each in copies:
        each.reset_parameters()
    return copies


def _reset(*parts: Any) -> None:
    for part in parts:
        part.reset_parameters()


def xavier_matrices(module: nn.Module) -> None:
    """Draw all weight matrices of a module from Xavier's uniform distribution."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class ReluDropout(nn.Module):
    """ReLU, then dropout with probability ``p`` in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (...)."""
        return dropout(tokens.relu(), self.p if self.training else 0.0)


class AddDropout(nn.Module):
    """The sum of a residual and a branch, which drops out with probability ``p`` in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, residual: Tensor, branch: Tensor) -> Tensor:
        """(...), (...) -> (...)."""
        return residual + dropout(branch, self.p if self.training else 0.0)


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between."""

    def __init__(self, width: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.activation = ReluDropout(dropout)

    def reset_parameters(self) -> None:
        """Xavier for the matrices; biases keep PyTorch's default."""
        xavier_matrices(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.linear2(self.activation(self.linear1(tokens)))


class EncoderLayer(nn.Module):
    """Attention of the memory to itself, then a feed-forward network.

    Position is added to what is compared, in every layer, and never to what is mixed.

    Args:
        attention: follows the protocol ``(query, references, memory) -> tensor``.
        ffn: the feed-forward network.
        width: D.
        dropout: of each residual branch.
    """

    def __init__(self, attention: nn.Module, ffn: FeedForward, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(width)
        self.add = AddDropout(dropout)

    def reset_parameters(self) -> None:
        """Initial values of the parts."""
        _reset(self.attention, self.ffn)

    def forward(self, memory: Memory, references: References | None) -> Memory:
        """Transform the tokens of the memory."""
        tokens = memory.tokens
        attended = self.attention(tokens + memory.position, references, memory)
        tokens = self.attention_norm(self.add(tokens, attended))
        tokens = self.ffn_norm(self.add(tokens, self.ffn(tokens)))
        return memory._replace(tokens=tokens)


class DecoderLayer(nn.Module):
    """Attention among the queries, then to the memory, then a feed-forward network.

    Args:
        self_attention: ``(content, position, blocked) -> tensor``.
        cross_attention: follows the protocol ``(query, references, memory) -> tensor``.
        ffn: the feed-forward network.
        width: D.
        dropout: of each residual branch.
    """

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        ffn: FeedForward,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(width)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(width)
        self.add = AddDropout(dropout)

    def reset_parameters(self) -> None:
        """Initial values of the parts."""
        _reset(self.self_attention, self.cross_attention, self.ffn)

    def forward(self, queries: Queries, memory: Memory) -> Queries:
        """Transform the content of the queries."""
        content, position, references = queries.content, queries.position, queries.references
        mixed = self.self_attention(content, position, queries.blocked)
        content = self.self_attention_norm(self.add(content, mixed))
        attended = self.cross_attention(content + position, references, memory)
        content = self.cross_attention_norm(self.add(content, attended))
        content = self.ffn_norm(self.add(content, self.ffn(content)))
        return queries._replace(content=content)
