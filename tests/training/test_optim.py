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


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"(\w+\.?)+!", "may take for ever"),
        ("(a|aa)+$", "may take for ever"),
        ("((a*))*$", "may take for ever"),
        (".*.*.*.*!", "may take for ever"),
    ],
)
def test_patterns_that_never_end_are_refused(pattern, message):
    for record, values in (
        (LearningRateGroup, {"name": "x", "pattern": pattern, "factor": 2}),
        (TrainConfig, {"freeze": [pattern]}),
        (TrainConfig, {"reinitialise": [pattern]}),
    ):
        with pytest.raises(UserError, match=message):
            record.parse(values)


@pytest.mark.parametrize(
    "pattern", [r"^encoder\.layers\.\d+\.(a|b).*weight$", r"[*+(]+\(\*\+", "(norm|bias)?$", "(ab)+"]
)
def test_usual_patterns_are_taken(pattern):
    assert TrainConfig.parse({"freeze": [pattern]}).freeze == (pattern,)


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


def deims_rate(total, warmup, flat, plain, step, rate, least):
    """Its ``flat_cosine_schedule``, with its own names for the phases."""
    if step <= warmup:
        return rate * (step / warmup) ** 2
    if step <= flat:
        return rate
    if step >= total - plain:
        return least
    cosine = 0.5 * (1 + math.cos(math.pi * (step - flat) / (total - flat - plain)))
    return least + (rate - least) * cosine


def test_flat_cosine_is_deims_with_the_warm_up_a_step_earlier():
    config = TrainConfig(
        epochs=58, plain_epochs=8, learning_rate=4e-4, schedule="flat_cosine", drop_epoch=None,
        warmup_steps=20, warmup="quadratic", flat_part=0.5, final_factor=0.3,
    )  # fmt: skip
    schedule = Schedule(config, 10)
    rates = [schedule.rate(step) for step in range(580)]
    theirs = [deims_rate(580, 20, 290, 80, step, 4e-4, 1.2e-4) for step in range(580)]
    assert rates[:19] == pytest.approx(theirs[1:20])
    assert rates[20:] == pytest.approx(theirs[20:])
    assert rates[290] == 4e-4
    assert rates[500] == rates[579] == pytest.approx(1.2e-4)
    linear = Schedule(config.change(warmup="linear"), 10)
    assert linear.rate(9) == pytest.approx(2e-4)
    assert schedule.rate(9) == pytest.approx(1e-4)


def test_norms_and_biases_need_not_decay():
    toy = nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm((2, 2))),
            "decoder": nn.Linear(4, 4),
        }
    )
    group = LearningRateGroup(name="backbone", pattern="backbone", factor=0.1, weight_decay=0.5)
    config = TrainConfig(groups=(group,), weight_decay=0.2, decay_norms=False)
    groups = parameter_groups(toy, config)
    assert [(each.name, each.factor, each.weight_decay, len(each.named)) for each in groups] == [
        ("backbone", 0.1, 0.5, 1),
        ("backbone, norms and biases", 0.1, 0.0, 5),
        ("rest", 1.0, 0.2, 1),
        ("rest, norms and biases", 1.0, 0.0, 1),
    ]
    assert str(groups[1]).endswith("x0.1, no weight decay")
    optimizer = build_optimizer(groups, config)
    before = {name: each.detach().clone() for name, each in toy.named_parameters()}
    set_rate(optimizer, 1.0)
    for each in toy.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    kept = {"backbone.0.weight": 1 - 0.1 * 0.5, "decoder.weight": 1 - 0.2}
    for name, after in toy.named_parameters():
        assert torch.allclose(after, before[name] * kept.get(name, 1.0)), name
    plain = parameter_groups(toy, config.change(decay_norms=True))
    assert [(each.weight_decay, len(each.named)) for each in plain] == [(0.5, 6), (0.2, 2)]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"plain_epochs": 50}, "plain_epochs 50 and plain_first 0 leave none of the 50 epochs"),
        ({"plain_epochs": 40, "plain_first": 10}, "plain_first 10 leave none"),
        ({"ema_warmup": 100}, "ema_warmup 100 needs .*ema_decay=0.9999"),
    ],
)
def test_impossible_schedules_are_refused(changes, facts):
    with pytest.raises(UserError, match=facts):
        TrainConfig().change(**changes)


def test_phases_keep_their_fractions_over_other_epochs():
    config = TrainConfig(epochs=58, plain_epochs=8, plain_first=4, drop_epoch=29)
    assert config.phases == (4, 29, 50)  # DEIM's
    for epochs in (1, 2, 5, 29, 116):
        config.over(epochs)
    longer = config.over(116)
    assert (longer.plain_epochs, longer.plain_first, longer.drop_epoch) == (16, 8, 58)
    assert TrainConfig().over(3).phases == (0, 2, 3)


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


def test_the_originals_average_has_their_warm_up_and_averages_statistics():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, decay=0.9, warmup=5)
    reference = {name: value.clone() for name, value in network.state_dict().items()}
    for update in range(1, 8):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += update
        average.update(network)
        decay = 0.9 * (1 - math.exp(-update / 5))
        for name, value in reference.items():
            if value.is_floating_point():  # theirs leave integers
                reference[name] = value * decay + (1 - decay) * network.state_dict()[name]
    for name, value in reference.items():
        if value.is_floating_point():
            assert torch.allclose(average.values[name], value), name
    assert average.values["1.num_batches_tracked"] == sum(range(1, 8))
    constant = WeightAverage(network, decay=0.9, warmup=0)
    start = constant.values["1.running_mean"].clone()
    network[1].running_mean += 1
    constant.update(network)
    assert torch.allclose(constant.values["1.running_mean"], start + 0.1)
