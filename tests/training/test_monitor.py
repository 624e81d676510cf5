import math

import pytest
import torch

from detrlab.errors import UserError
from detrlab.presets import build_network
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import Engine
from detrlab.training.loop import Options, train
from detrlab.training.monitor import epoch_warnings, find_nonfinite


@pytest.fixture
def parts(tiny_config):
    config = tiny_config(model={"dropout": 0.1})
    network = build_network(config.model).train()
    draw = torch.Generator().manual_seed(0)
    images = ImageBatch(
        torch.randn(2, 3, 64, 64, generator=draw), torch.zeros(2, 64, 64, dtype=torch.bool)
    )
    targets = [Target(torch.tensor([0]), torch.tensor([[0.4, 0.5, 0.2, 0.3]]))] * 2
    return network, config.model.criterion(config.train), images, targets


def test_a_finite_step_gives_nothing_and_changes_nothing(parts):
    network = parts[0]
    before = {name: each.clone() for name, each in network.state_dict().items()}
    assert find_nonfinite(*parts) is None
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(each.grad is None for each in network.parameters())


@pytest.mark.parametrize(
    "module", ["backbone.body.conv1", "encoder.layers.0.ffn.linear2", "decoder.heads.1.classes"]
)
def test_the_first_module_with_a_bad_output_is_named(parts, module):
    def spoil(_module, _inputs, output):
        return torch.where(torch.rand_like(output) > 0.9, math.nan, output)

    parts[0].get_submodule(module).register_forward_hook(spoil)
    assert find_nonfinite(*parts).where.endswith(module)


def test_bad_weights_images_boxes_and_gradients_are_told_apart(parts):
    network, criterion, images, targets = parts
    images.pixels[1, 0, 3, 4] = math.inf
    found = find_nonfinite(network, criterion, images, targets)
    assert ("images" in found.where, found.images) == (True, (1,))
    images.pixels[1, 0, 3, 4] = 0.0
    broken = [Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, math.nan, 0.1]]))] * 2
    found = find_nonfinite(network, criterion, images, broken)
    assert ("annotated boxes" in found.where, found.images) == (True, (0, 1))
    last = network.get_submodule("decoder.heads.1.boxes").layers[1]
    handle = last.weight.register_hook(lambda gradient: gradient * math.nan)
    found = find_nonfinite(network, criterion, images, targets)
    assert "gradients" in found.where
    assert found.where.endswith("decoder.heads.1.boxes.layers.1.weight")
    handle.remove()
    with torch.no_grad():
        network.get_submodule("encoder.layers.0.ffn.linear1").weight[0, 0] = math.nan
    found = find_nonfinite(network, criterion, images, targets)
    assert "weights encoder.layers.0.ffn.linear1.weight" in found.where


def test_a_step_that_is_not_finite_is_skipped_and_its_images_are_named(
    tmp_path, tiny_config, tiny_data, monkeypatch
):
    true = Engine.step
    spoilt = set()

    def step(self, share, number, **options):
        if number == 1:
            spoilt.add(share.image_ids[0])
            share.images.pixels[0] = math.nan
        return true(self, share, number, **options)

    monkeypatch.setattr(Engine, "step", step)
    lines = []
    outcome = train(tiny_config(epochs=2), tmp_path, tiny_data, Options(say=lines.append))
    assert outcome.finished
    assert outcome.epochs[-1]["skipped"] == 1
    assert math.isfinite(outcome.epochs[0]["loss"])
    (line,) = [line for line in lines if "was skipped" in line]
    assert "step 1 " in line
    table = tiny_data.train
    for position in range(len(table)):
        assert (table.file(position) in line) == (table.image_id(position) in spoilt)


def test_a_run_that_only_fails_ends_with_its_reason(tmp_path, tiny_config, tiny_data):
    config = tiny_config(epochs=9, batch=1, learning_rate=1e30, clip=0.0, drop_epoch=None)
    lines = []
    with pytest.raises(UserError, match=r"diverged: 5 steps.*Lower the learning rate"):
        train(config, tmp_path, tiny_data, Options(say=lines.append))
    assert sum("was skipped" in line for line in lines) == 5
    assert not list((tmp_path / "state").glob("*"))  # no good state was reached


def row(**changes):
    healthy = {"epoch": 3, "ap": 0.2, "query_spread": 0.2, "per_class": {"a": 0.3, "b": 0.1}}
    return {**healthy, **changes}


def test_warnings_after_an_epoch():
    assert epoch_warnings([row()], {}) == []
    assert epoch_warnings([row(epoch=1, query_spread=0.0)], {}) == []
    assert epoch_warnings([row(ap=0.01, per_class={"a": 0.0, "b": 0.02})], {}) == []
    (found,) = epoch_warnings([row(query_spread=0.001), row(query_spread=0.002)], {})
    assert "queries have collapsed" in found
    missed = row(per_class={"a": 0.4, "b": 0.0, "c": None})
    (found,) = epoch_warnings([missed], {"a": 9, "b": 2})
    assert found.startswith("1 of 3 classes")
    assert "b (2 objects)" in found
