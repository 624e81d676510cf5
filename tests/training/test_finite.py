"""A value that is not finite is caught in every detector where it first appears, with its image."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from detrlab.config import DataConfig, TrainConfig
from detrlab.data.batching import Batch
from detrlab.errors import UserError
from detrlab.models.prepare import prepare
from detrlab.presets import PRESETS, build_network
from detrlab.structures import ImageBatch, Target
from detrlab.training import monitor
from detrlab.training.distributed import Processes
from detrlab.training.folder import RunConfig
from detrlab.training.loop import train
from detrlab.training.optim import WeightAverage
from detrlab.training.setup import build_engine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")
IMAGES = 3
FAMILIES = ["detr", "deformable-detr-two-stage", "dino-4scale", "d-fine-n"]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if name not in FAMILIES]


class Files:
    """What is asked of a table: the names of the images."""

    def __len__(self):
        return IMAGES

    def image_id(self, i):
        return i

    def file(self, i):
        return f"{i}.jpg"


def batch():
    draw = torch.Generator().manual_seed(0)
    targets = tuple(
        Target(torch.tensor([0, 1]), torch.rand(2, 4, generator=draw) * 0.3 + 0.3)
        for _ in range(IMAGES)
    )
    pixels = torch.randn(IMAGES, 3, 64, 96, generator=draw)
    images = ImageBatch(pixels, torch.zeros(IMAGES, 64, 96, dtype=torch.bool))
    return Batch(images, targets, tuple(range(IMAGES)), ((64, 96),) * IMAGES)


def engine_of(preset, precision="float32"):
    model = tiny_config(preset, 3)
    config = RunConfig(
        model=model,
        train=TrainConfig(
            batch=IMAGES, micro_batch=None, precision=precision, weights="none", ema_decay=0.9
        ),
        data=DataConfig(),
    )
    network = prepare(build_network(model, seed=0)).train()
    return build_engine(network, config, 10, Processes(torch.device("cpu")))


def caught(engine, share):
    """What is said about a step, which must not change the weights."""
    before = {name: each.clone() for name, each in engine.network.state_dict().items()}
    report = engine.step(share, 0)
    assert not report.applied
    for name, each in engine.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(each, before[name], rtol=0, atol=0, equal_nan=True)
    return monitor.explain_skipped(engine, report, Files())


def spoil(_module, _inputs, output):
    """NaN in the second image."""
    output = output.clone()
    output[(1, *[0] * (output.dim() - 1))] = math.nan
    return output


@pytest.mark.parametrize("preset", [*FAMILIES, *OTHERS])
def test_the_first_place_is_named(preset):
    engine = engine_of(preset)
    network = engine.network

    share = batch()
    share.images.pixels[1, 0, 3, 4] = math.inf
    assert caught(engine, share) == "the images contain values that are not finite (images 1.jpg)"

    share = batch()
    share.targets[2].boxes[0, 2] = math.nan
    found = caught(engine, share)
    assert found == "the annotated boxes contain values that are not finite (images 2.jpg)"

    module = next(
        name
        for name, each in network.named_modules()
        if name.startswith("encoder.") and [*each.parameters()] and not [*each.children()]
    )
    handle = network.get_submodule(module).register_forward_hook(spoil)
    assert caught(engine, batch()).endswith(f"that of the module {module} (images 1.jpg)")
    handle.remove()

    whole = engine.criterion
    term = whole.terms[0]
    bad = term._replace(function=lambda pairs: term.function(pairs) * math.nan)
    engine.criterion = dataclasses.replace(whole, terms=(bad, *whole.terms[1:]))
    found = caught(engine, batch())
    assert f"outputs are finite, but the {term.name} loss of layer0 is not" in found
    engine.criterion = whole

    name, weight = [each for each in network.named_parameters() if "decoder" in each[0]][-1]
    handle = weight.register_hook(lambda gradient: gradient * math.inf * 0)
    assert f"nearest to the loss is {name}" in caught(engine, batch())
    handle.remove()

    assert engine.step(batch(), 0).applied  # nothing is left of all that
    with torch.no_grad():
        weight.view(-1)[0] = math.nan
    assert f"the weights {name} are not finite" in caught(engine, batch())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("preset", FAMILIES)
def test_half_precision(preset, precision):
    engine = engine_of(preset, precision)
    share = batch()
    share.images.pixels[2, 1, 0, 0] = math.nan
    assert caught(engine, share) == "the images contain values that are not finite (images 2.jpg)"
    module = "decoder.layers.0.ffn.linear1"
    handle = engine.network.get_submodule(module).register_forward_hook(spoil)
    assert caught(engine, batch()).endswith(f"that of the module {module} (images 1.jpg)")
    handle.remove()


def test_an_average_that_is_not_finite_is_never_saved(
    tmp_path, tiny_config, tiny_data, monkeypatch
):
    true = WeightAverage.update

    def update(self, network):
        true(self, network)
        if self.updates == 3:
            next(iter(self.values.values())).view(-1)[0] = math.nan

    monkeypatch.setattr(WeightAverage, "update", update)
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        train(tiny_config(ema_decay=0.9, epochs=2), tmp_path, tiny_data)
    assert len(list((tmp_path / "state").glob("step-*"))) == 1  # of the first epoch
