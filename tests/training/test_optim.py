import math
import re

import pytest
import torch
from torch import nn

from detrlab.config import LearningRateGroup, TrainConfig
from detrlab.errors import UserError
from detrlab.presets import build_network, model_config
from detrlab.training.optim import (
    Schedule,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_rate,
)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)
        self.backbone.bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("deformable-detr", {"sampling": 26, "backbone": 42, "rest": 230}),
        ("deformable-detr-refine", {"sampling": 26, "backbone": 42, "rest": 270}),
        ("deformable-detr-two-stage", {"sampling": 24, "backbone": 42, "rest": 285}),
    ],
)
def test_the_originals_groups_have_the_originals_sizes(preset, counts):
    with torch.device("meta"):
        network = build_network(model_config(preset, 91))
    groups = parameter_groups(network, TrainConfig())
    assert {group.name: len(group.named) for group in groups} == counts
    assert {group.name: group.factor for group in groups} == {
        "sampling": 0.1,
        "backbone": 0.1,
        "rest": 1.0,
    }
    # 53 convolutions, of which the stem and the first stage (1 + 10) are frozen.
    assert sum(name.startswith("backbone.") for name, _ in network.named_parameters()) == 53
    taken = [name for group in groups for name, _ in group.named]
    assert len(taken) == len(set(taken))
    trainable = [name for name, each in network.named_parameters() if each.requires_grad]
    assert sorted(taken) == sorted(trainable)


def test_only_the_default_patterns_may_match_nothing():
    groups = parameter_groups(Toy(), TrainConfig())
    assert [(group.name, len(group.named)) for group in groups] == [("backbone", 1), ("rest", 2)]
    mistaken = TrainConfig(groups=(LearningRateGroup(name="x", pattern="encodr", factor=2),))
    with pytest.raises(UserError, match=r"'encodr'.*backbone, decoder"):
        parameter_groups(Toy(), mistaken)
    broken = TrainConfig(groups=(LearningRateGroup(name="x", pattern="(", factor=2),))
    with pytest.raises(UserError, match="not a regular expression"):
        parameter_groups(Toy(), broken)


def test_the_first_pattern_that_matches_takes_a_parameter():
    groups = (
        LearningRateGroup(name="biases", pattern=r"\.bias$", factor=0),
        LearningRateGroup(name="decoder", pattern="decoder", factor=3),
    )
    found = parameter_groups(Toy(), TrainConfig(groups=groups))
    names = {group.name: [name for name, _ in group.named] for group in found}
    assert names == {
        "biases": ["decoder.bias"],
        "decoder": ["decoder.weight"],
        "rest": ["backbone.weight"],
    }
    assert re.fullmatch(r"decoder \(decoder\): 1 tensors, 4 numbers, x3", str(found[1]))


def test_one_step_is_adamw_by_hand_with_each_groups_rate():
    config = TrainConfig(learning_rate=0.01, weight_decay=0.1)
    toy = Toy()
    optimizer = build_optimizer(parameter_groups(toy, config), config)
    set_rate(optimizer, 0.02)
    before = {name: each.detach().clone() for name, each in toy.named_parameters()}
    for each in toy.parameters():
        each.grad = torch.full_like(each, -0.5) if each.requires_grad else None
    optimizer.step()
    for name, after in toy.named_parameters():
        rate = {"backbone.weight": 0.002, "backbone.bias": 0.0}.get(name, 0.02)
        # The first step of Adam moves by the rate, against the gradient's sign.
        expected = before[name] * (1 - rate * 0.1) + rate
        assert torch.allclose(after, expected, atol=1e-6), name


def test_the_step_schedule_drops_after_every_drop_epoch():
    schedule = Schedule(TrainConfig(epochs=50, drop_epoch=40, learning_rate=1e-4), 7)
    assert schedule.rate(0) == schedule.rate(40 * 7 - 1) == 1e-4
    assert schedule.rate(40 * 7) == pytest.approx(1e-5)
    never = Schedule(TrainConfig(learning_rate=1e-4), 7)
    assert never.rate(10**6) == 1e-4


def test_cosine_and_warm_up():
    config = TrainConfig(epochs=2, learning_rate=1.0, schedule="cosine", warmup_steps=4)
    schedule = Schedule(config, 10)
    assert schedule.rate(0) == pytest.approx(1 / 4)
    assert schedule.rate(3) == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 20)))
    assert schedule.rate(10) == pytest.approx(0.5)
    assert schedule.rate(20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bound", [0.0, 0.1, 100.0])
def test_clipping_bounds_the_total_norm(bound):
    toy, config = Toy(), TrainConfig()
    optimizer = build_optimizer(parameter_groups(toy, config), config)
    for index, each in enumerate(toy.parameters()):
        each.grad = torch.full_like(each, float(index)) if each.requires_grad else None
    norm = math.sqrt(sum((each.grad**2).sum() for each in toy.parameters() if each.requires_grad))
    assert clip_gradients(optimizer, bound).item() == pytest.approx(norm)
    after = math.sqrt(sum((each.grad**2).sum() for each in toy.parameters() if each.requires_grad))
    assert after == pytest.approx(0.1 if bound == 0.1 else norm, rel=1e-4)


def test_the_average_follows_the_weights():
    toy = Toy()
    average = WeightAverage(toy, decay=0.5)
    start = toy.decoder.weight.detach().clone()
    with torch.no_grad():
        toy.decoder.weight += 1
    average.update(toy)
    # (1 + 1) / (10 + 1) of the old average is kept after the first update.
    assert torch.allclose(average.values["decoder.weight"], start + 9 / 11)
    for _ in range(60):
        average.update(toy)
    assert torch.allclose(average.values["decoder.weight"], toy.decoder.weight)
