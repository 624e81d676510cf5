import pytest
import torch
from torch import nn

from detrlab.data import batches
from detrlab.errors import UserError
from detrlab.presets import build_network
from detrlab.training import preflight
from detrlab.training.folder import RunConfig
from detrlab.training.loop import Options, build_criterion, build_engine, train
from detrlab.training.preflight import WorstCase, advice, duration, rehearse, untouched
from detrlab.training.processes import join


def engine_of(config, data):
    network = build_network(config.model).train()
    engine = build_engine(network, config, steps_per_epoch=2, processes=join("cpu"))
    share = next(batches(data.train, config.data, batch=4, train=True, workers=0))
    return engine, share


def test_a_rehearsal_learns_one_batch_and_leaves_no_trace(tiny_config, tiny_data):
    engine, share = engine_of(tiny_config(micro_batch=2), tiny_data)
    before = {name: each.clone() for name, each in engine.network.state_dict().items()}
    rehearsal = rehearse(engine, share)
    assert rehearsal.learns
    assert rehearsal.last < rehearsal.first
    assert rehearsal.unreached == ()
    for name, value in engine.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert engine.network.training
    assert not engine.optimizer.state
    (line,) = rehearsal.lines(1000)
    assert "the 1,000 steps of the run will take about" in line


def test_a_part_that_no_gradient_reaches_is_named(tiny_config, tiny_data):
    engine, share = engine_of(tiny_config("detr"), tiny_data)
    engine.network.forgotten = nn.Linear(2, 2)
    rehearsal = rehearse(engine, share, seconds=0)
    assert rehearsal.steps == 3
    assert rehearsal.unreached == ("forgotten.bias", "forgotten.weight")
    assert "no gradient reaches forgotten.bias, forgotten.weight" in rehearsal.lines(1)[-1]


def test_a_batch_that_cannot_be_learnt_is_told(tiny_config, tiny_data):
    engine, share = engine_of(tiny_config(learning_rate=1e-12), tiny_data)
    rehearsal = rehearse(engine, share, seconds=0)
    assert not rehearsal.learns
    assert any("hardly fell" in line for line in rehearsal.lines(1))


@pytest.mark.parametrize(("room", "expected"), [(100.0, 16), (6.0, 4), (1.5, 1)])
def test_memory_chooses_the_micro_batch(tiny_config, monkeypatch, room, expected):
    config = tiny_config()
    network = build_network(config.model)
    criterion = build_criterion(config.train, config.model.scoring)
    worst = WorstCase(64, 96, objects=3)
    one = preflight.kept_bytes(network, criterion, worst)
    assert one > 64 * 96 * 3 * 4  # it keeps at least the image
    available = int(room * 2 * one / preflight.SHARE_OF_MEMORY)
    monkeypatch.setattr(preflight, "available_memory", lambda: available)
    found = preflight.largest_micro_batch(network, criterion, worst, "float32", 16)
    assert found == expected
    monkeypatch.setattr(preflight, "available_memory", lambda: one)
    with pytest.raises(UserError, match="too small for 1 images of 96 x 64"):
        preflight.largest_micro_batch(network, criterion, worst, "float32", 16)


def test_available_memory_is_plausible():
    available = preflight.available_memory()
    assert available is None or 1e6 < available < 1e14


def test_untouched_also_when_something_goes_wrong():
    norm = nn.BatchNorm1d(2).train()

    def fail():
        with untouched(norm):
            norm.eval()
            norm.weight.data.fill_(7)
            norm.running_mean.fill_(7)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert norm.training
    assert norm.weight.tolist() == [1, 1]
    assert norm.running_mean.tolist() == [0, 0]


CALM = {
    "images": 20_000,
    "objects": {"a": 9, "b": 9},
    "most_objects": 5,
    "num_queries": 100,
    "weights": "imagenet",
    "batch": 8,
    "learns_norms": False,
    "epochs": 30,
    "drop_epoch": 24,
    "steps": 75_000,
    "warmup_steps": 100,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"weights": "none"}, None),
        ({"weights": "none", "images": 500}, "from nothing on 500 images"),
        ({"objects": {"a": 9, "b": 0}}, "1 classes have no training objects.*: b"),
        ({"most_objects": 120}, "120 objects, the detector 100 queries.*num_queries to 240"),
        ({"learns_norms": True, "batch": 2}, "2 images at a time"),
        ({"learns_norms": True}, None),
        ({"drop_epoch": 6}, "after every 6 of the 30 epochs: from epoch 13.*drop_epoch=24"),
        ({"drop_epoch": 15}, None),
        ({"drop_epoch": None}, None),
        ({"steps": 390}, "rises over 100 of the 390 steps.*warmup_steps=39 "),
        ({"steps": 400}, None),
    ],
)
def test_plain_words(changes, words):
    found = advice(**{**CALM, **changes})
    assert len(found) == (words is not None)
    if words is not None:
        with pytest.raises(UserError, match=words):
            raise UserError(found[0])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42, "42 s"), (600, "10 min"), (9000, "2.5 h"), (40000, "11 h"), (400000, "4.6 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_pre_flight_changes_no_bit_of_the_run(tmp_path, tiny_config, tiny_data):
    lines = []
    config = tiny_config(epochs=1, micro_batch="auto", gradient_checkpointing=True)
    train(config, tmp_path / "a", tiny_data, Options(preflight=True, say=lines.append))
    assert any(line.startswith("rehearsal: ") for line in lines)
    assert any("from nothing on 10 images" in line for line in lines)
    assert any("memory holds 4 of the 4 images" in line for line in lines)
    assert RunConfig.load(tmp_path / "a" / "config.yaml").train.micro_batch == 4
    train(tiny_config(epochs=1), tmp_path / "b", tiny_data)
    for name in ("metrics.csv", "predictions.json"):
        a, b = ((tmp_path / each / name).read_text() for each in "ab")
        if name == "metrics.csv":
            a, b = ([row.split(",")[:3] + row.split(",")[4:] for row in t.split()] for t in (a, b))
        assert a == b
