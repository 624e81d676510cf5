"""Prediction heads: class logits and box deltas."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BoxHead(nn.Module):
    """Three linear layers with ReLU between, (..., D) -> (..., 4) box deltas in logit space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)]
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., 4)."""
        for layer in self.layers[:-1]:
            tokens = F.relu(layer(tokens))
        return self.layers[-1](tokens)


class PredictionHead(nn.Module):
    """Class logits and box deltas of each token.

    Source: arXiv 2005.12872, section 3.2 (prediction feed-forward networks).
    """

    def __init__(self, width: int, num_logits: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, num_logits)
        self.boxes = BoxHead(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> logits (..., K'), deltas (..., 4)."""
        return self.classes(tokens), self.boxes(tokens)
