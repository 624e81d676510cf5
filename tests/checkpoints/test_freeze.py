"""Frozen parameters stay as they are, and so do the statistics of their norms."""

import pytest
import torch

from detrlab.checkpoints.freeze import freeze
from detrlab.errors import UserError
from detrlab.presets import build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

TRAINED = {"backbone_norms": "trained", "backbone_trains": "all"}


def step(network):
    network.train()
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 64, 64, generator=draw)
    output = network(ImageBatch(pixels, torch.zeros(2, 64, 64, dtype=torch.bool)))
    output.final.logits.sum().backward()
    trainable = [each for each in network.parameters() if each.grad is not None]
    torch.optim.SGD(trainable, lr=0.1).step()


def test_what_is_frozen_stays():
    network = build_network(tiny_config("detr", **TRAINED))
    lines = freeze(network, [r"^backbone\.", r"encoder\.layers\.0\."])
    assert lines[0].startswith("froze 60 tensors, ")
    before = {name: each.clone() for name, each in network.state_dict().items()}
    step(network)
    after = network.state_dict()
    for name, each in before.items():
        if name.startswith(("backbone.", "encoder.layers.0.")):
            assert torch.equal(after[name], each), name
    assert not torch.equal(
        after["encoder.layers.1.ffn.linear1.weight"], before["encoder.layers.1.ffn.linear1.weight"]
    )
    assert set(after) == set(before)  # the checkpoint's names do not change


def test_norms_that_train_still_follow():
    network = build_network(tiny_config("detr", **TRAINED))
    freeze(network, ["encoder"])
    before = network.state_dict()["backbone.body.bn1.running_mean"].clone()
    step(network)
    assert not torch.equal(network.state_dict()["backbone.body.bn1.running_mean"], before)


def test_the_report_counts_what_was_frozen_already():
    network = build_network(tiny_config("detr"))
    (line,) = freeze(network, ["backbone"])
    assert line.endswith("were frozen already)")
    assert freeze(network, []) == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("backbon$", r"'backbon\$' matches no parameter; their names begin with backbone, encoder"),
        ("(", "is not a regular expression"),
        (".", "nothing is left to train"),
    ],
)
def test_patterns_that_make_no_sense(pattern, message):
    with pytest.raises(UserError, match=message):
        freeze(build_network(tiny_config("detr")), [pattern])
