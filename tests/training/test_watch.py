import json
import math

import pytest
import torch

from detrlab.errors import UserError
from detrlab.presets import build_network
from detrlab.structures import ImageBatch, Target
from detrlab.training.loop import Options, build_criterion, train
from detrlab.training.watch import Trouble, find_trouble, replay, signs


@pytest.fixture
def parts(tiny_config):
    config = tiny_config(model={"dropout": 0.1})
    network = build_network(config.model).train()
    draw = torch.Generator().manual_seed(0)
    images = ImageBatch(
        torch.randn(2, 3, 64, 64, generator=draw), torch.zeros(2, 64, 64, dtype=torch.bool)
    )
    targets = [Target(torch.tensor([0]), torch.tensor([[0.4, 0.5, 0.2, 0.3]]))] * 2
    return network, build_criterion(config.train, config.model.scoring), images, targets


def test_a_healthy_step_shows_no_trouble_and_leaves_no_trace(parts):
    network = parts[0]
    before = {name: each.clone() for name, each in network.state_dict().items()}
    assert find_trouble(*parts) is None
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(each.grad is None for each in network.parameters())


@pytest.mark.parametrize(
    "module", ["backbone.body.stem", "encoder.layers.0.ffn.linear2", "decoder.heads.1.classes"]
)
def test_the_first_module_with_a_bad_output_is_named(parts, module):
    network = parts[0]
    name = module if module in dict(network.named_modules()) else "backbone.body.conv1"

    def spoil(_module, _inputs, output):
        return torch.where(torch.rand_like(output) > 0.9, math.nan, output)

    network.get_submodule(name).register_forward_hook(spoil)
    trouble = find_trouble(*parts)
    assert trouble.where == name


def test_bad_weights_images_losses_and_gradients_are_told_apart(parts):
    network, criterion, images, targets = parts
    images.pixels[1, 0, 3, 4] = math.inf
    assert find_trouble(network, criterion, images, targets).where == "input"
    images.pixels[1, 0, 3, 4] = 0.0
    empty = [Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, math.nan, 0.1]]))] * 2
    assert find_trouble(network, criterion, images, empty).where == "input"
    handle = (
        network.get_submodule("decoder.heads.1.boxes")
        .layers[1]
        .weight.register_hook(lambda gradient: gradient * math.nan)
    )
    trouble = find_trouble(network, criterion, images, targets)
    assert trouble.where == "decoder.heads.1.boxes.layers.1.weight"
    handle.remove()
    with torch.no_grad():
        network.get_submodule("encoder.layers.0.ffn.linear1").weight[0, 0] = math.nan
    assert find_trouble(network, criterion, images, targets).where == (
        "encoder.layers.0.ffn.linear1.weight"
    )


def test_a_step_that_is_not_finite_is_skipped_named_and_reproduced(
    tmp_path, tiny_config, tiny_data, monkeypatch
):
    """One step of three gets weights that overflow; the run goes on and says so."""
    from detrlab.training import engine

    config = tiny_config(epochs=2)
    true = engine.Engine._accumulate
    spoilt = {}

    def accumulate(self, pieces, step, counts):
        if step == 1:
            spoilt["ids"] = pieces[0].image_ids
            pieces[0].images.pixels[0] = math.nan
        return true(self, pieces, step, counts)

    monkeypatch.setattr(engine.Engine, "_accumulate", accumulate)
    lines = []
    outcome = train(config, tmp_path, tiny_data, Options(say=lines.append))
    assert outcome.finished
    assert outcome.epochs[-1]["skipped"] == 1
    assert math.isfinite(outcome.epochs[0]["loss"])
    (line,) = [line for line in lines if "was skipped" in line]
    for position in range(len(tiny_data.train)):
        named = tiny_data.train.file(position) in line
        assert named == (tiny_data.train.image_id(position) in spoilt["ids"])
    (folder,) = (tmp_path / "trouble").iterdir()
    assert str(folder) in line
    assert json.loads((folder / "about.json").read_text())["step"] == 1
    network = build_network(config.model)
    criterion = build_criterion(config.train, config.model.scoring)
    assert isinstance(replay(folder, network, criterion), Trouble)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            assert torch.isfinite(value).all(), name  # running statistics were put back


def test_a_run_that_only_fails_ends_with_its_reason(tmp_path, tiny_config, tiny_data):
    config = tiny_config(epochs=9, batch=1, learning_rate=1e30, clip=0.0, drop_epoch=None)
    lines = []
    with pytest.raises(UserError, match=r"the training has diverged: 5 steps") as caught:
        train(config, tmp_path, tiny_data, Options(say=lines.append))
    assert sum("was skipped" in line for line in lines) == 5
    assert len(list((tmp_path / "trouble").iterdir())) == 3
    assert "Lower the learning rate" in str(caught.value)
    assert not list((tmp_path / "state").glob("*"))  # nothing good could be saved


def row(**changes):
    calm = {"epoch": 3, "ap": 0.2, "query_spread": 0.2, "per_class": {"a": 0.3, "b": 0.1}}
    return {**calm, **changes}


def test_signs_come_with_what_helps():
    assert signs([row()], {}) == []
    collapsed = [row(query_spread=0.001), row(query_spread=0.002)]
    assert signs([row(epoch=1, query_spread=0.0)], {}) == []
    (sign,) = signs(collapsed, {})
    assert "queries have collapsed" in sign
    (sign,) = signs([row(per_class={"a": 0.4, "b": 0.0, "c": None})], {"a": 9, "b": 2})
    assert "1 of 3 classes are not found at all: b (2 objects)" in sign
    assert signs([row(ap=0.01, per_class={"a": 0.0, "b": 0.02})], {}) == []
