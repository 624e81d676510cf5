"""The transformer encoder of DETR and Deformable DETR: feature maps to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.models.layers import EncoderLayer
from detrlab.models.position import LevelPosition, SinePosition
from detrlab.structures import Memory, References


class TransformerEncoder(nn.Module):
    """A neck and a stack of encoder layers; no final norm.

    Args:
        neck: feature maps, padding -> ``Memory``.
        layers: the stack.
        references: memory -> where each of its cells looks from, made once for all layers;
            None for attention that looks everywhere.
    """

    def __init__(
        self,
        neck: nn.Module,
        layers: Sequence[EncoderLayer],
        references: Callable[[Memory], References] | None = None,
    ) -> None:
        super().__init__()
        self.neck = neck
        self.layers = nn.ModuleList(layers)
        self.references = references

    def forward(self, features: Sequence[Tensor], padding: Tensor) -> Memory:
        """Encode the feature maps.

        Args:
            features: (B, C_l, H_l, W_l), finest first.
            padding: (B, H, W) bool of the whole image, True where padded.
        """
        memory = self.neck(features, padding)
        references = None if self.references is None else self.references(memory)
        for layer in self.layers:
            memory = layer(memory, references)
        return memory


class Neck(nn.Module):
    """Projects each level to the transformer's width and flattens all levels into one memory.

    Levels beyond the backbone's maps are made by strided projections: the first of them reads
    the backbone's coarsest map as it is (not its projection), each further one the level before.

    Args:
        projections: one module per level, (B, C_l, H, W) -> (B, D, H_l, W_l).
        position: paddings, dtype -> position embedding of each level.

    Source: arXiv 2010.04159, appendix A.2.
    """

    def __init__(self, projections: Sequence[nn.Module], position: nn.Module) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.position = position

    def forward(self, features: Sequence[Tensor], padding: Tensor) -> Memory:
        """Build the memory.

        Args:
            features: (B, C_l, H_l, W_l), finest first.
            padding: (B, H, W) bool of the whole image.
        """
        maps: list[Tensor] = []
        for level, project in enumerate(self.projections):
            if level < len(features):
                source = features[level]
            else:
                source = features[-1] if level == len(features) else maps[-1]
            maps.append(project(source))
        return flatten_maps(maps, padding, self.position)


def flatten_maps(
    maps: Sequence[Tensor], padding: Tensor, position: Callable[..., list[Tensor]] | None = None
) -> Memory:
    """Feature maps of one width as one memory.

    Args:
        maps: (B, D, H_l, W_l), finest first.
        padding: (B, H, W) bool of the whole image.
        position: paddings, dtype -> position embedding of each level; None for none.
    """
    paddings = [resize_padding(padding, level.shape[-2:]) for level in maps]
    dtype = maps[0].dtype
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
    nowhere = tokens.new_zeros(1, 1, 1).expand_as(tokens)
    return Memory(
        tokens=tokens,
        position=nowhere if position is None else torch.cat(position(paddings, dtype), dim=1),
        padding=torch.cat([level.flatten(1) for level in paddings], dim=1),
        level_shapes=tuple((level.shape[-2], level.shape[-1]) for level in maps),
        valid_ratios=torch.stack([valid_ratio(level, dtype) for level in paddings], dim=1),
    )


def resize_padding(padding: Tensor, size: Sequence[int]) -> Tensor:
    """The image's padding at a level's size: (B, H, W) bool -> (B, H_l, W_l) bool.

    Every level samples the full-resolution padding with nearest-neighbour interpolation.
    """
    return F.interpolate(padding[:, None].float(), size=tuple(size), mode="nearest")[:, 0].bool()


def valid_ratio(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """The unpadded share of width and height: (B, H_l, W_l) bool -> (B, 2), (w, h).

    At least float32, whatever ``dtype`` asks: sampling locations are built from it.
    """
    _, height, width = padding.shape
    valid = ~padding
    precise = torch.promote_types(dtype, torch.float32)
    across, down = valid[:, 0].sum(1).to(precise), valid[:, :, 0].sum(1).to(precise)
    return torch.stack([across / width, down / height], dim=-1)


def projection_neck(channels: Sequence[int], width: int, position_offset: float) -> Neck:
    """DETR's neck: the coarsest map by one 1x1 convolution, with PyTorch's initial values.

    Source: arXiv 2005.12872, section 3.2.
    """
    convolution = nn.Conv2d(channels[-1], width, kernel_size=1)
    return Neck([nn.Sequential(convolution)], SinePosition(width, position_offset))


def pyramid_neck(channels: Sequence[int], levels: int, sine: SinePosition) -> Neck:
    """Deformable DETR's neck: 1x1 on the backbone's maps, then strided 3x3, with GroupNorm.

    Convolutions start from Xavier's distribution with bias 0.

    Source: arXiv 2010.04159, appendix A.2; ``DeformableDETR.__init__`` of the original code.
    """
    width = sine.width
    convolutions = [nn.Conv2d(each, width, kernel_size=1) for each in channels]
    source = channels[-1]  # the first extra level reads the raw C5
    for _ in range(levels - len(channels)):
        convolutions.append(nn.Conv2d(source, width, kernel_size=3, stride=2, padding=1))
        source = width
    projections = [nn.Sequential(each, nn.GroupNorm(32, width)) for each in convolutions]
    position = LevelPosition(sine, levels)
    for convolution in convolutions:
        assert convolution.bias is not None
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return Neck(projections, position)


def cell_centers(memory: Memory) -> References:
    """The center of every cell as a fraction of the image's own unpadded area.

    Padded cells lie beyond 1; nothing is clamped.

    Returns:
        References whose centers are (B, S, 2).

    Source: arXiv 2010.04159, appendix A.3.
    """
    centers = []
    for (height, width), ratio in zip(
        memory.level_shapes, memory.valid_ratios.unbind(1), strict=True
    ):
        rows = torch.arange(height, dtype=ratio.dtype, device=ratio.device) + 0.5
        columns = torch.arange(width, dtype=ratio.dtype, device=ratio.device) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells = torch.stack([x, y], dim=-1).flatten(0, 1)  # (H_l * W_l, 2)
        # Not a product with new_tensor([width, height]): that would synchronise with a GPU.
        valid_cells = torch.stack([ratio[:, 0] * width, ratio[:, 1] * height], dim=-1)  # (B, 2)
        centers.append(cells[None] / valid_cells[:, None])
    return References(torch.cat(centers, dim=1))
