"""Transformer layers: the same for dense and deformable attention (post-norm).

Layers, attention and feed-forward networks draw their initial values in ``reset_parameters``,
which ``stack`` calls: the matrices of each layer are drawn anew, while biases and norms of all
layers start equal.

Source: ``Transformer._reset_parameters`` and ``_get_clones`` of both original repositories.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from detrlab.ops.dropout import dropout, relu_dropout
from detrlab.structures import Memory, Queries, References

Layer = TypeVar("Layer", bound=nn.Module)


def stack(layer: Layer, count: int) -> list[Layer]:
    """``count`` copies of one layer, each with initial values of its own."""
    copies: list[Any] = [copy.deepcopy(layer) for _ in range(count)]
    for each in copies:
        each.reset_parameters()
    return copies


def equal_copies(layer: Layer, count: int) -> list[Layer]:
    """``count`` copies of one layer with the same initial values, as in the real-time originals."""
    return [copy.deepcopy(layer) for _ in range(count)]


def _reset(*parts: Any) -> None:
    for part in parts:
        part.reset_parameters()


def xavier_matrices(module: nn.Module) -> None:
    """Draw all weight matrices of a module from Xavier's uniform distribution."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class ActivationDropout(nn.Module):
    """An activation, then dropout with probability ``p`` in training."""

    def __init__(self, activation: Callable[[Tensor], Tensor], p: float) -> None:
        super().__init__()
        self.activation = activation
        self.p = p

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (...)."""
        p = self.p if self.training else 0.0
        if self.activation is torch.relu:
            return relu_dropout(tokens, p)
        return dropout(self.activation(tokens), p)


class AddDropout(nn.Module):
    """The sum of a residual and a branch, which drops out with probability ``p`` in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, residual: Tensor, branch: Tensor) -> Tensor:
        """(...), (...) -> (...)."""
        return residual + dropout(branch, self.p if self.training else 0.0)


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout between."""

    def __init__(
        self,
        width: int,
        ffn_width: int,
        dropout: float,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.activation = ActivationDropout(activation, dropout)

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
        norm: width -> the norm after each part.
    """

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        ffn: nn.Module,
        width: int,
        dropout: float,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = norm(width)
        self.cross_attention = cross_attention
        self.cross_attention_norm = norm(width)
        self.ffn = ffn
        self.ffn_norm = norm(width)
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
        content = self.take(content, attended)
        content = self.ffn_norm(self.add(content, self.ffn(content)))
        return queries._replace(content=content)

    def take(self, content: Tensor, attended: Tensor) -> Tensor:
        """What a query keeps of itself and takes from the memory; both (B, Q, D)."""
        return self.cross_attention_norm(self.add(content, attended))


class GatedDecoderLayer(DecoderLayer):
    """A learned gate for each number says how much a query keeps and how much it takes.

    Source: arXiv 2410.13842 (D-FINE), section 5.1 ("target gating layer").
    """

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        width = options["width"]
        self.gate = nn.Linear(2 * width, 2 * width)
        nn.init.zeros_(self.gate.weight)  # both gates start at one half
        nn.init.zeros_(self.gate.bias)

    def take(self, content: Tensor, attended: Tensor) -> Tensor:
        """The sum of both, each times its gate, normalised."""
        gates = self.gate(torch.cat([content, attended], dim=-1)).sigmoid()
        keep, take = gates.chunk(2, dim=-1)
        return self.cross_attention_norm(keep * content + take * attended)


class RMSNorm(nn.Module):
    """Divided by the root of the mean square, in float32 at least; then scaled.

    Source: arXiv 1910.07467; DEIMv2, ``deim_utils.py``.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        values = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        normed = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(tokens.dtype) * self.scale


class SwiGlu(nn.Module):
    """A feed-forward network whose hidden numbers are gated: ``(silu(a x) * b x) c``.

    Source: arXiv 2002.05202; DEIMv2, ``deim_utils.py``. Biases start at 0.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * hidden)
        self.linear2 = nn.Linear(hidden, width)

    def reset_parameters(self) -> None:
        """Xavier for the matrices, zero for the biases."""
        xavier_matrices(self)
        nn.init.zeros_(self.linear1.bias)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        gate, value = self.linear1(tokens).chunk(2, dim=-1)
        return self.linear2(nn.functional.silu(gate) * value)
