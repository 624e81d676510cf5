"""The grid of a strided "SAME" convolution starts where the image does, whatever its size."""

import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

from detrlab.models.aligned import AlignedConv2d, SamePadding, align
from detrlab.models.backbone import build_backbone
from detrlab.models.folding import fold_frozen_norms

LITE = "tf_efficientnet_lite0"


def backbone(**changes):
    settings = {"stages": 3, "dilation": False, "norms": "frozen", "trains": "all"}
    torch.manual_seed(0)
    return build_backbone(LITE, **{**settings, **changes}, pretrained=False).eval()


def timms():
    return timm.create_model(LITE, features_only=True, out_indices=(-3, -2, -1)).eval()


def pixels(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 5, 6, 7, 12])
def test_a_side_is_padded_as_its_next_multiple_is(kernel, stride, dilation, side):
    conv = Conv2dSame(1, 1, kernel, stride=stride, dilation=dilation)
    maps = pixels(side, side + 1)[:, :1]
    whole = F.pad(maps, (0, -(side + 1) % stride, 0, -side % stride))
    expected = pad_same(whole, [kernel] * 2, [stride] * 2, [dilation] * 2)
    assert torch.equal(SamePadding(conv)(maps), expected)
    assert AlignedConv2d(conv)(maps).shape[-2:] == conv(maps).shape[-2:]


def strided():
    """Three strided convolutions, a receptive field of 19 pixels."""
    torch.manual_seed(0)
    sides = ((3, 4, 3), (4, 4, 5), (4, 2, 3))
    return nn.Sequential(*(Conv2dSame(a, b, k, stride=2, bias=False) for a, b, k in sides))


@torch.no_grad()
def gap(network, size):
    """How much a larger canvas changes cells whose receptive fields lie within the image."""
    image = pixels(*size)
    alone = network(image)
    padded = network(F.pad(image, (0, 192 - size[1], 0, 192 - size[0])))
    rows, columns = (n - 3 for n in alone.shape[-2:])
    return float(
        (alone - padded[..., : alone.shape[2], : alone.shape[3]])[..., :rows, :columns].abs().max()
    )


@pytest.mark.parametrize("size", [(128, 160), (97, 131), (111, 64), (98, 100)])
def test_the_grid_does_not_move_with_the_size(size):
    assert gap(align(strided()), size) < 1e-6


def test_timms_grid_does():
    assert gap(strided(), (128, 160)) < 1e-6
    assert gap(strided(), (98, 100)) > 0.1, "49 and 25 are odd, although 98 and 100 are not"


@torch.no_grad()
def test_sizes_that_are_multiples_of_the_stride_are_timms():
    theirs = timms()
    ours = align(timms())
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours(pixels(64, 96)), theirs(pixels(64, 96)), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_folding_and_pickling_keep_the_grid():
    body = backbone().body
    expected = body(pixels(97, 131))
    assert fold_frozen_norms(body) > 40
    again = pickle.loads(pickle.dumps(body))
    for a, b in zip(again(pixels(97, 131)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
