"""Sine embeddings: of the cells of a feature map, and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_features(angles: Tensor, num_features: int, temperature: float = TEMPERATURE) -> Tensor:
    """Interleaved sine and cosine of ``angles`` at geometrically falling frequencies.

    Args:
        angles: (...) in radians.
        num_features: F, even.
        temperature: T, the longest period in units of 2 pi.

    Returns:
        (..., F): feature 2i is ``sin(angle / t)``, feature 2i + 1 is ``cos(angle / t)`` with
        ``t = T ** (2i / F)``.

    Source: arXiv 1706.03762, section 3.5.
    """
    steps = torch.arange(num_features // 2, dtype=angles.dtype, device=angles.device)
    periods = temperature ** (2 * steps / num_features)
    scaled = angles[..., None] / periods
    return torch.stack([scaled.sin(), scaled.cos()], dim=-1).flatten(-2)


class SinePosition(nn.Module):
    """Position of each cell within the unpadded image; y fills the first half of the width.

    Args:
        width: D of the embedding.
        offset: added to the 1-based cell count: 0 in DETR, -0.5 (the cell's center) in
            Deformable DETR. It is the only difference between the two.
        temperature: of the sine features; 20 in DINO.

    Source: arXiv 2005.12872, appendix A.4; the originals' ``PositionEmbeddingSine``.
    """

    def __init__(self, width: int, offset: float, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.width = width
        self.offset = offset
        self.temperature = temperature

    def forward(self, paddings: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Embed each level's cells.

        Args:
            paddings: (B, H_l, W_l) bool of each level.
            dtype: of the result.

        Returns:
            (B, H_l * W_l, D) of each level.
        """
        return [self._embed(padding, dtype).flatten(1, 2) for padding in paddings]

    def _embed(self, padding: Tensor, dtype: torch.dtype) -> Tensor:
        # Never in half precision: in fully padded columns the quotient is about -3e6, which
        # overflows float16 and becomes NaN; a masked NaN still makes gradients NaN.
        valid = (~padding).to(torch.promote_types(dtype, torch.float32))
        axes = []
        for axis in (1, 2):  # y, then x
            counts = valid.cumsum(axis)
            last = counts.narrow(axis, counts.shape[axis] - 1, 1)
            angles = (counts + self.offset) / (last + 1e-6) * (2 * math.pi)
            axes.append(sine_features(angles, self.width // 2, self.temperature))
        return torch.cat(axes, dim=-1).to(dtype)  # (B, H, W, D)


class LevelPosition(nn.Module):
    """Sine position plus a learned embedding of the level.

    Source: arXiv 2010.04159, section 4.1 ("scale-level embedding").
    """

    def __init__(self, sine: SinePosition, levels: int) -> None:
        super().__init__()
        self.sine = sine
        self.level_embedding = nn.Parameter(torch.empty(levels, sine.width))
        nn.init.normal_(self.level_embedding)

    def forward(self, paddings: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """As ``SinePosition``, with the level's embedding added."""
        embedded = self.sine(paddings, dtype)
        return [
            position + level.to(dtype)
            for position, level in zip(embedded, self.level_embedding, strict=True)
        ]


class GridPosition(nn.Module):
    """Position of the cells of a map, whether padded or not, as in RT-DETR and after it.

    The originals list the embeddings column after column, while the tokens run row after row.
    So cell (y, x) of a map that is not square gets the embedding of another cell; trained
    weights expect that.

    Args:
        width: D of the embedding.

    Source: ``build_2d_sincos_position_embedding`` of lyuwenyu/RT-DETR.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, paddings: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """As ``SinePosition``."""
        return [self._embed(padding).to(dtype) for padding in paddings]

    def _embed(self, padding: Tensor) -> Tensor:
        batch, height, width = padding.shape
        # In single precision whatever the network's, as in the originals.
        count = torch.arange(
            max(height, width, self.width), dtype=torch.float32, device=padding.device
        )
        quarter = self.width // 4
        rates = 1.0 / TEMPERATURE ** (count[:quarter] / quarter)
        columns, rows = torch.meshgrid(count[:width], count[:height], indexing="ij")
        x, y = (each.flatten()[:, None] * rates for each in (columns, rows))
        embedded = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)  # (H W, D)
        return embedded.expand(batch, -1, -1)


def box_sine_features(boxes: Tensor, width: int) -> Tensor:
    """Sine embedding of boxes, coordinate after coordinate (x first, unlike the image's).

    Args:
        boxes: (..., 4) cxcywh fractions.
        width: D; each coordinate takes D / 2 features.

    Returns:
        (..., 2 * D).

    Source: the original's ``get_proposal_pos_embed``.
    """
    return sine_features(boxes * (2 * math.pi), width // 2).flatten(-2)
