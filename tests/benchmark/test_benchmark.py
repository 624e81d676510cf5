import json

import pytest
import torch

from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import count_parameters
from detrlab.benchmark.report import benchmark, lines
from detrlab.errors import UserError
from tiny_detectors import tiny_config


def test_percentiles_and_ratios():
    times = timing.Times(wall=[4.0, 1.0, 3.0, 2.0, 5.0], processor=[1.0])
    assert (times.percentile(0), times.percentile(50), times.percentile(100)) == (1, 3, 5)
    assert times.percentile(90) == pytest.approx(4.6)
    assert timing.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])["median"] == 3


def test_in_turn_takes_turns():
    order = []
    times = timing.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert [len(each.wall) for each in times.values()] == [2, 2]


def test_a_step_learns():
    subject = subjects.ours(tiny_config("deformable-detr"), (64, 96))
    before = {name: each.clone() for name, each in subject.network.named_parameters()}
    subject.learn()
    changed = [
        name
        for name, each in subject.network.named_parameters()
        if not torch.equal(each, before[name])
    ]
    assert any(name.startswith("decoder") for name in changed)


def test_report_of_a_small_detector():
    report = benchmark(
        tiny_config("deformable-detr"), height=64, width=96, rounds=2, with_memory=False
    )
    own = json.loads(json.dumps(report))["libraries"]["detrlab"]
    assert own["training"]["multiply_adds_g"] > 2 * own["inference"]["multiply_adds_g"] > 0
    assert 0 < own["inference"]["share_of_peak"]["wall"] < 1
    assert own["inference"]["p10_ms"] <= own["inference"]["p90_ms"]
    assert len(lines(report)) == 4


def test_the_same_parameters_train_on_both_sides():
    pytest.importorskip("transformers")
    for preset in ("detr", "deformable-detr-two-stage"):
        config = tiny_config(preset)
        ours, theirs = (make(config, (64, 96)) for make in (subjects.ours, subjects.theirs))
        assert count_parameters(ours.network)[1] == count_parameters(theirs.network)[1], preset


def test_pictures_too_small_for_the_other_library():
    pytest.importorskip("transformers")
    config = tiny_config("deformable-detr-two-stage", num_queries=300)
    with pytest.raises(UserError, match=r"96 x 64 image has 128, not 300.*--imgsz"):
        subjects.theirs(config, (64, 96))


def test_a_measurement_that_dies_is_told():
    config = tiny_config("detr", backbone="no_such_backbone")
    with pytest.raises(UserError, match=r"no_such_backbone.*--no-memory"):
        memory.peak_memory(subjects.ours, config, (64, 64), 1, learn=False)


@pytest.mark.slow
def test_memory_of_a_process_of_its_own():
    # A backbone of timm's own: the child process does not know the tests' tiny one.
    config = tiny_config("detr", backbone="resnet10t")
    held = memory.peak_memory(subjects.ours, config, (128, 128), 1, learn=True)
    assert held["peak_mb"] > held["above_start_mb"] >= 0
