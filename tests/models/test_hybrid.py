"""The hybrid encoder: its position, padding, and maps of any size."""

import pytest
import torch

from detrlab.models.encoders.blocks import Csp, Elan, halve_by_channel
from detrlab.models.encoders.hybrid import HybridEncoder, concatenate
from detrlab.models.position import GridPosition
from detrlab.presets import build_network
from tiny_detectors import tiny_config


def test_position_is_listed_column_after_column():
    height, width = 2, 3
    (embedded,) = GridPosition(8)([torch.zeros(1, height, width, dtype=torch.bool)], torch.float64)
    cells = [(x, y) for x in range(width) for y in range(height)]
    for row, (x, y) in zip(embedded[0], cells, strict=True):
        angles = torch.tensor([[x, x / 100], [y, y / 100]])
        wanted = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
        torch.testing.assert_close(row.float(), wanted)


@torch.no_grad()
def test_padded_cells_are_not_attended_to():
    encoder = build_network(tiny_config("rt-detr-r50")).eval().encoder
    padding = torch.zeros(2, 96, 160, dtype=torch.bool)
    padding[0, 64:] = True
    level = torch.randn(2, 64, 3, 5, generator=torch.Generator().manual_seed(0))
    garbage = level.clone()
    garbage[0, :, 2] = 50.0
    plain, other = (encoder.within[0](each, padding) for each in (level, garbage))
    torch.testing.assert_close(other[0, :, :2], plain[0, :, :2])
    torch.testing.assert_close(other[1], plain[1])
    seen = encoder.within[0](garbage, torch.zeros_like(padding))
    assert (seen[0, :, :2] - plain[0, :, :2]).abs().max() > 0.01


@pytest.mark.parametrize("blocks", ["csp", "elan", "elan without smoothing"])
@torch.no_grad()
def test_maps_of_any_size(blocks):
    silu, width = torch.nn.SiLU(), 16
    combine, channels = (concatenate, 32) if blocks == "elan" else (torch.add, 16)

    def fuse():
        if blocks == "csp":
            return Csp(channels, 8, width, 1, silu)
        return Elan(channels, 8, width, 1, silu, smooth=blocks == "elan")

    encoder = HybridEncoder(
        projections=[torch.nn.Identity()] * 3,
        within={},
        combine=combine,
        lateral=torch.nn.Identity,
        fuse=fuse,
        halve=lambda: halve_by_channel(width),
    ).eval()
    sizes = ((13, 21), (7, 11), (4, 6))
    memory = encoder([torch.randn(2, width, *size) for size in sizes], torch.zeros(2, 100, 165) > 0)
    assert memory.level_shapes == sizes
    assert memory.tokens.shape == (2, sum(h * w for h, w in sizes), width)
    assert memory.tokens.isfinite().all()
