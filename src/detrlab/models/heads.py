"""Prediction heads: class logits and box deltas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class Mlp(nn.Module):
    """Linear layers with an activation between.

    Args:
        widths: of the input, between the layers, and of the output.
        activation: a function.
    """

    def __init__(self, widths: Sequence[int], activation: Activation = F.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., first width) -> (..., last width)."""
        for layer in self.layers[:-1]:
            tokens = self.activation(layer(tokens))
        return self.layers[-1](tokens)

    def start_at_zero(self) -> None:
        """Give 0 whatever comes in, until trained."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class BoxHead(Mlp):
    """Three linear layers, (..., D) -> (..., 4) box deltas in logit space."""

    def __init__(self, width: int, activation: Activation = F.relu) -> None:
        super().__init__((width, width, width, 4), activation)

    @torch.no_grad()
    def start_at(self, size_logit: float) -> None:
        """Make all deltas zero but those of width and height, which become ``size_logit``.

        Source: ``DeformableDETR.__init__`` of the original code.
        """
        self.start_at_zero()
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias[2:].fill_(size_logit)


class PredictionHead(nn.Module):
    """Class logits and box deltas of each token.

    Args:
        width: D.
        num_logits: K'.
        class_bias: initial bias of the class logits; None leaves PyTorch's default.
        activation: of the box head.

    Source: arXiv 2005.12872, section 3.2 (prediction feed-forward networks); arXiv 1708.02002,
    section 3.3 (prior of the class bias).
    """

    def __init__(
        self,
        width: int,
        num_logits: int,
        class_bias: float | None = None,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__()
        self.classes = nn.Linear(width, num_logits)
        self.boxes = BoxHead(width, activation)
        if class_bias is not None:
            nn.init.constant_(self.classes.bias, class_bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> logits (..., K'), deltas (..., 4)."""
        return self.classes(tokens), self.boxes(tokens)
