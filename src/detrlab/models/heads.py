"""Prediction heads: class logits and box deltas."""

from __future__ import annotations

import torch
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

    @torch.no_grad()
    def start_at(self, size_logit: float) -> None:
        """Make all deltas zero but those of width and height, which become ``size_logit``.

        Source: ``DeformableDETR.__init__`` of the original code.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        last.bias[2:].fill_(size_logit)


class PredictionHead(nn.Module):
    """Class logits and box deltas of each token.

    Args:
        width: D.
        num_logits: K'.
        class_bias: initial bias of the class logits; None leaves PyTorch's default.

    Source: arXiv 2005.12872, section 3.2 (prediction feed-forward networks); arXiv 1708.02002,
    section 3.3 (prior of the class bias).
    """

    def __init__(self, width: int, num_logits: int, class_bias: float | None = None) -> None:
        super().__init__()
        self.classes = nn.Linear(width, num_logits)
        self.boxes = BoxHead(width)
        if class_bias is not None:
            nn.init.constant_(self.classes.bias, class_bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> logits (..., K'), deltas (..., 4)."""
        return self.classes(tokens), self.boxes(tokens)
