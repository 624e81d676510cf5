"""Any detector of the line on the backbone of the packaged one, which COCO trained."""

import pytest
import torch

import detrlab
from detrlab.checkpoints.weights import first_network
from detrlab.errors import UserError
from detrlab.models.prepare import prepare
from detrlab.presets import FIVE, build_network, model_config
from detrlab.structures import ImageBatch

CLASSES = ["mask", "none"]
STRIDES = {"detr": (16,), "detr-dc5": (8,)}


@pytest.mark.parametrize("preset", [*FIVE, "dino-4scale", "rt-detr-r18"])
def test_backbone_is_the_packaged_one(preset):
    levels = {"levels": 2} if preset == "rt-detr-r18" else {}
    small = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 20}
    config = model_config(preset, 2, backbone="hgnetv2_femto", **small, **levels)
    start = first_network(config, "coco-backbone", CLASSES)
    assert start.report.layout == "COCO, of deimv2-femto"
    assert all(name.startswith("backbone.") for name in start.report.kept)
    assert start.preprocessing.mean == (0, 0, 0)
    packaged = detrlab.load("deimv2-femto").network.backbone.state_dict()
    for name, value in start.network.backbone.state_dict().items():
        assert torch.equal(value, packaged[name]), name
    network = prepare(start.network)
    assert network.backbone.strides == STRIDES.get(preset, (8, 16))
    images = ImageBatch(torch.rand(1, 3, 96, 160), torch.zeros(1, 96, 160, dtype=torch.bool))
    network(images).final.boxes.sum().backward()
    trained = {name for name, each in network.named_parameters() if each.grad is not None}
    assert any(name.startswith("backbone.stages.2") for name in trained)


def test_dilation_doubles_the_resolution_and_keeps_what_the_map_sees():
    config = model_config("detr", 2, backbone="hgnetv2_pico", encoder_layers=1, decoder_layers=1)
    plain = build_network(config).eval().backbone
    dilated = build_network(config.change(dilation=True)).eval().backbone
    dilated.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        coarse, fine = plain(pixels)[0], dilated(pixels)[0]
    assert fine.shape[-2:] == (32, 32)
    # Away from the border, every second cell of the first block is the strided one's.
    stage_in = torch.rand(1, 256, 32, 32)
    down, same = plain.stages[-1].downsample, dilated.stages[-1].downsample
    with torch.no_grad():
        torch.testing.assert_close(same(stage_in)[..., ::2, ::2], down(stage_in))
    assert coarse.shape[-2:] == (16, 16)


@pytest.mark.parametrize(
    ("change", "weights", "says"),
    [
        ({}, "coco-backbone", "--set model.backbone=hgnetv2_femto"),
        ({"backbone": "hgnetv2_femto"}, "imagenet", "--weights coco-backbone"),
        ({"backbone": "hgnetv2_atto"}, "coco-backbone", "are those of 'hgnetv2_femto'"),
    ],
)
def test_what_does_not_fit_is_said(change, weights, says):
    with pytest.raises(UserError, match=says):
        first_network(model_config("detr", 2, **change), weights, CLASSES)


def test_too_few_maps_are_refused_with_the_number_that_works():
    with pytest.raises(UserError, match=r"--set model\.levels=2"):
        build_network(model_config("rt-detr-r18", 2, backbone="hgnetv2_femto"))
