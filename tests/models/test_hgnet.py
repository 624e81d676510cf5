"""HGNetV2 beside timm's: the same names, initial values and numbers."""

import pytest
import torch
from timm.models.hgnet import HighPerfGpuNet, model_cfgs

from detrlab.models.backbones.hgnet import NAMES, SMALL, HGNet, stages_of, stem_of


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_the_backbone_is_timms(name, affine):
    torch.manual_seed(0)
    theirs = HighPerfGpuNet(
        model_cfgs[name], num_classes=0, head_hidden_size=None, use_lab=affine
    ).eval()
    torch.manual_seed(0)
    ours = HGNet(name, 4, affine=affine).eval()
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key
    pixels = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        maps, stages = theirs.stem(pixels), []
        for stage in theirs.stages:
            maps = stage(maps)
            stages.append(maps)
        for mine, wanted in zip(ours(pixels), stages, strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_the_sizes_are_timms(name):
    layout = model_cfgs[name]
    assert list(stem_of(name)) == layout["stem_chs"]
    assert [list(row) for row in stages_of(name)] == [layout[f"stage{n}"] for n in range(1, 5)]
