"""Encoder and decoder: the same layers for dense and deformable attention (post-norm)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from detrlab.models.references import Advance, decode_boxes, keep_references
from detrlab.ops.dropout import dropout
from detrlab.structures import Memory, Predictions, Queries, References


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

    def forward(self, memory: Memory, references: References | None) -> Memory:
        """Transform the tokens of the memory."""
        tokens = memory.tokens
        attended = self.attention(tokens + memory.position, references, memory)
        tokens = self.attention_norm(self.add(tokens, attended))
        tokens = self.ffn_norm(self.add(tokens, self.ffn(tokens)))
        return memory._replace(tokens=tokens)


class Encoder(nn.Module):
    """A stack of encoder layers; no final norm.

    Args:
        layers: the stack.
        references: memory -> where each of its cells looks from; made once for all layers.
    """

    def __init__(
        self,
        layers: Sequence[EncoderLayer],
        references: Callable[[Memory], References | None],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.references = references

    def forward(self, memory: Memory) -> Memory:
        """Transform the tokens of the memory, layer after layer."""
        references = self.references(memory)
        for layer in self.layers:
            memory = layer(memory, references)
        return memory


class DecoderLayer(nn.Module):
    """Attention among the queries, then to the memory, then a feed-forward network.

    Args:
        self_attention: ``(content, position) -> tensor``.
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

    def forward(self, queries: Queries, memory: Memory) -> Queries:
        """Transform the content of the queries."""
        content, position, references = queries
        mixed = self.self_attention(content, position)
        content = self.self_attention_norm(self.add(content, mixed))
        attended = self.cross_attention(content + position, references, memory)
        content = self.cross_attention_norm(self.add(content, attended))
        content = self.ffn_norm(self.add(content, self.ffn(content)))
        return queries._replace(content=content)


class Decoder(nn.Module):
    """A stack of decoder layers that predicts after each.

    Args:
        layers: the stack.
        heads: one for each layer, or a single one that all layers share.
        norm: applied to the states the heads read, not to those the next layer reads.
        advance: how a layer's boxes change where the next one looks.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        heads: Sequence[nn.Module],
        norm: nn.Module,
        advance: Advance,
    ) -> None:
        super().__init__()
        assert len(heads) in (1, len(layers)), (len(heads), len(layers))
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.norm = norm
        self.advance = advance

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Predictions of every layer, the first first."""
        predictions = []
        for index, layer in enumerate(self.layers):
            queries = layer(queries, memory)
            predictions.append(self._predict(index, queries))
            queries = self._advance(queries, predictions[-1].boxes)
        return tuple(predictions)

    def final(self, queries: Queries, memory: Memory) -> Predictions:
        """Only the last layer's predictions: what ``forward(...)[-1]`` is.

        Earlier heads run only where their boxes decide where the next layer looks.
        """
        *earlier, last = self.layers
        for index, layer in enumerate(earlier):
            queries = layer(queries, memory)
            if self.advance is not keep_references:
                queries = self._advance(queries, self._predict(index, queries).boxes)
        return self._predict(len(earlier), last(queries, memory))

    def _predict(self, index: int, queries: Queries) -> Predictions:
        """What the head of a layer says about the queries that leave it."""
        head = self.heads[index % len(self.heads)]
        logits, deltas = head(self.norm(queries.content))
        return Predictions(logits, decode_boxes(deltas, queries.references))

    def _advance(self, queries: Queries, boxes: Tensor) -> Queries:
        return queries._replace(references=self.advance(queries.references, boxes))
