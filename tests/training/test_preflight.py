import re

import numpy as np
import pytest
import torch
from torch import nn

from detrlab.config import DataConfig
from detrlab.data import batches
from detrlab.errors import UserError
from detrlab.presets import build_network
from detrlab.training import preflight
from detrlab.training.distributed import join
from detrlab.training.folder import RunConfig
from detrlab.training.loop import Options, build_engine, train
from detrlab.training.preflight import WorstCase, overfit, settings_warnings, unchanged


def engine_of(config, data):
    network = build_network(config.model).train()
    engine = build_engine(network, config, steps_per_epoch=2, processes=join("cpu"))
    share = next(batches(data.train, config.data, batch=4, train=True, workers=0))
    return engine, share


def test_overfitting_reduces_the_loss_and_changes_nothing(tiny_config, tiny_data):
    engine, share = engine_of(tiny_config(micro_batch=2), tiny_data)
    before = {name: each.clone() for name, each in engine.network.state_dict().items()}
    (line,) = overfit(engine, share, steps=1000)
    first, lowest = map(float, re.search(r"from ([\d.]+) to ([\d.]+);", line).groups())
    assert lowest < preflight.MUST_FALL_TO * first
    assert "1,000 steps" in line
    for name, value in engine.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert engine.network.training
    assert not engine.optimizer.state


def test_parameters_without_a_gradient_and_a_loss_that_does_not_fall_are_reported(
    tiny_config, tiny_data
):
    engine, share = engine_of(tiny_config("detr", learning_rate=1e-12), tiny_data)
    engine.network.forgotten = nn.Linear(2, 2)
    first, fall, gradient = overfit(engine, share, steps=1, seconds=0)
    assert "3 steps" in first
    assert "hardly fell" in fall
    assert "forgotten.bias, forgotten.weight" in gradient


def test_the_largest_square_batch_and_a_full_mosaic_must_fit(tiny_data):
    config = DataConfig(image_size=64, resize="square", scales=1, augmentation="dense")
    counts = sorted(np.diff(tiny_data.train.starts).tolist())
    assert WorstCase.of(tiny_data.train, config) == WorstCase(64, 64, sum(counts[-4:]))
    larger = config.change(image_size=128, augmentation="mild")
    assert WorstCase.of(tiny_data.train, larger) == WorstCase(160, 160, counts[-1])


@pytest.mark.parametrize(("room", "expected"), [(100.0, 16), (6.0, 4), (1.5, 1), (0.5, None)])
def test_memory_decides_the_micro_batch(tiny_config, monkeypatch, room, expected):
    config = tiny_config()
    network = build_network(config.model)
    criterion = config.model.criterion(config.train)
    worst = WorstCase(64, 96, objects=3)
    one = preflight.saved_bytes(network, criterion, worst)
    assert one > 64 * 96 * 3 * 4  # at least the image is saved
    memory = preflight.psutil.virtual_memory()
    assert memory.available > 1e6
    memory = memory._replace(available=int(room * 2 * one / preflight.SHARE_OF_MEMORY))
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: memory)

    def found():
        return preflight.largest_micro_batch(network, criterion, worst, "float32", 16)

    if expected is None:
        with pytest.raises(UserError, match="memory for 1 images of 96 x 64"):
            found()
    else:
        assert found() == expected


def test_the_network_is_unchanged_also_after_an_error():
    norm = nn.BatchNorm1d(2).train()

    def fail():
        with unchanged(norm):
            norm.eval()
            norm.weight.data.fill_(7)
            norm.running_mean.fill_(7)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert norm.training
    assert norm.weight.tolist() == [1, 1]
    assert norm.running_mean.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({}, None),
        ({"weights": "none"}, "10 images.*--weights imagenet"),
        ({"more_classes": ["unseen"]}, "1 classes have no training objects.*: unseen"),
        ({"num_queries": 1}, r"an image has (\d+) objects.* only 1 queries"),
        ({"learns_norms": True, "per_pass": 2}, "from 2 images"),
        ({"learns_norms": True}, None),
        ({"drop_epoch": 6}, "after every 6 of the 30 epochs.*epoch 13.*drop_epoch=24"),
        ({"drop_epoch": 15}, None),
        ({"drop_epoch": None}, None),
        ({"steps": 390}, "100 of the 390 steps.*warmup_steps=39 "),
        ({"steps": 400}, None),
    ],
)
def test_warnings_about_settings(tiny_config, tiny_data, changes, facts):
    train = {"weights": "imagenet", "epochs": 30, "drop_epoch": 24, "warmup_steps": 100, **changes}
    given = {"per_pass": 8, "learns_norms": False, "steps": 75_000}
    given = {key: train.pop(key, value) for key, value in given.items()}
    model = {"num_queries": train.pop("num_queries", 100)}
    table = tiny_data.train
    table = table.with_classes([*table.classes, *train.pop("more_classes", ())])
    found = settings_warnings(tiny_config(model=model, **train), table, **given)
    assert len(found) == (facts is not None), found
    assert facts is None or re.search(facts, found[0])


def test_the_checks_change_no_bit_of_the_run(tmp_path, tiny_config, tiny_data):
    lines = []
    config = tiny_config(epochs=1, micro_batch="auto", gradient_checkpointing=True)
    train(config, tmp_path / "a", tiny_data, Options(preflight=True, say=lines.append))
    log = "\n".join(lines)
    assert "steps on one batch" in log
    assert "random weights on 10 images" in log
    assert "micro-batches of 4 of the 4 images" in log
    assert RunConfig.load(tmp_path / "a" / "config.yaml").train.micro_batch == 4
    train(tiny_config(epochs=1), tmp_path / "b", tiny_data)
    a, b = ((tmp_path / each / "predictions.json").read_bytes() for each in "ab")
    assert a == b
    a, b = ((tmp_path / each / "metrics.csv").read_text().splitlines()[1] for each in "ab")
    # Without the seconds.
    assert a.split(",")[:3] + a.split(",")[4:] == b.split(",")[:3] + b.split(",")[4:]
