"""AdamW with learning-rate groups, the learning-rate schedule, gradient clipping, EMA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from detrlab.config import LearningRateGroup, TrainConfig
from detrlab.errors import UserError

REST = "rest"


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate.

    Attributes:
        name: of the group.
        pattern: that parameter names were searched for; empty for the rest.
        factor: of the learning rate.
        named: (name, parameter) in the network's order.
        weight_decay: of these parameters.
    """

    name: str
    pattern: str
    factor: float
    named: tuple[tuple[str, nn.Parameter], ...]
    weight_decay: float

    def __str__(self) -> str:
        count = sum(parameter.numel() for _, parameter in self.named)
        shown = f" ({self.pattern})" if self.pattern else ""
        decay = "" if self.weight_decay else ", no weight decay"
        return (
            f"{self.name}{shown}: {len(self.named)} tensors, {count:,} numbers, "
            f"x{self.factor:g}{decay}"
        )


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """The trainable parameters, each in the first group whose pattern matches its name.

    Groups without parameters are left out. Unless ``decay_norms``, each group is followed by one
    of its norms and biases, which do not decay.

    Raises:
        UserError: a pattern matches no trainable parameter. The default patterns may match none:
            not every detector samples.
    """
    left = {name: each for name, each in network.named_parameters() if each.requires_grad}
    groups = []
    for group in config.groups:
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        found = _take(left, group, network)
        groups.append(ParameterGroup(group.name, group.pattern, group.factor, found, decay))
    groups.append(ParameterGroup(REST, "", 1.0, tuple(left.items()), config.weight_decay))
    if not config.decay_norms:
        exempt = _norms_and_biases(network)
        groups = [part for group in groups for part in _split(group, exempt)]
    return [group for group in groups if group.named]


def _norms_and_biases(network: nn.Module) -> set[int]:
    """The ids of parameters that scale or shift: of norms, and all with at most one dimension.

    By dimension, because timm's norms have many names and classes; by class, because a layer norm
    over several axes has more.
    """
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    found = {id(each) for each in network.parameters() if each.ndim <= 1}
    for module in network.modules():
        if isinstance(module, norms):
            found |= {id(each) for each in module.parameters(recurse=False)}
    return found


def _split(group: ParameterGroup, exempt: set[int]) -> tuple[ParameterGroup, ParameterGroup]:
    """The parameters of a group that decay, and those that do not."""
    decayed = tuple(pair for pair in group.named if id(pair[1]) not in exempt)
    others = tuple(pair for pair in group.named if id(pair[1]) in exempt)
    return (
        replace(group, named=decayed),
        replace(group, name=f"{group.name}, norms and biases", named=others, weight_decay=0.0),
    )


def _take(
    left: dict[str, nn.Parameter], group: LearningRateGroup, network: nn.Module
) -> tuple[tuple[str, nn.Parameter], ...]:
    """Remove the parameters that match the group from ``left``."""
    names = [name for name in left if re.search(group.pattern, name)]
    defaults = {each.pattern for each in TrainConfig().groups}
    if not names and group.pattern not in defaults:
        parts = sorted({name.split(".")[0] for name, _ in network.named_parameters()})
        raise UserError(
            f"learning-rate group {group.name!r}: {group.pattern!r} matches no trainable "
            f"parameter that no earlier group has taken; names begin with {', '.join(parts)}"
        )
    return tuple((name, left.pop(name)) for name in names)


def build_optimizer(groups: Sequence[ParameterGroup], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; as in the originals, norms and biases decay too unless a setting says no.

    The optimiser has one group for each given group; ``set_rate`` sets their learning rates.
    """
    parameters = [
        {
            "params": [parameter for _, parameter in group.named],
            "lr": config.learning_rate * group.factor,
            "factor": group.factor,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    devices = {parameter.device.type for group in groups for _, parameter in group.named}
    # One kernel for all tensors is several times faster than one for each.
    fused = devices <= {"cuda", "cpu"}
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
    )


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step alone: a resumed run needs no state for it.

    Attributes:
        config: the kind of schedule and its numbers.
        steps_per_epoch: optimiser steps in an epoch.
    """

    config: TrainConfig
    steps_per_epoch: int

    def rate(self, step: int) -> float:
        """The learning rate, for the factor 1, at step 0, 1, 2, ..."""
        config = self.config
        rate = config.learning_rate
        if config.schedule == "cosine":
            total = config.epochs * self.steps_per_epoch
            rate *= 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
        elif config.schedule == "flat_cosine":
            rate *= self._flat_cosine(step)
        elif config.drop_epoch is not None:
            # Epochs count from 0: with a drop at 40, the 41st is the first slower one.
            rate *= 0.1 ** (step // self.steps_per_epoch // config.drop_epoch)
        if step < config.warmup_steps:
            part = (step + 1) / config.warmup_steps
            rate *= part if config.warmup == "linear" else part**2
        return rate

    def _flat_cosine(self, step: int) -> float:
        """1 for a part of the epochs, then half a cosine to the final factor; flat when plain.

        Differs from the reference: step 0 has a rate above 0, because a step of rate 0 is wasted.

        Source: DEIM, engine/optim/lr_scheduler.py, ``flat_cosine_schedule``.
        """
        config = self.config
        flat = int(config.flat_part * config.epochs * self.steps_per_epoch)
        end = (config.epochs - config.plain_epochs) * self.steps_per_epoch
        if step <= flat and step < end:
            return 1.0
        if step >= end:
            return config.final_factor
        cosine = 0.5 * (1 + math.cos(math.pi * (step - flat) / (end - flat)))
        return config.final_factor + (1 - config.final_factor) * cosine


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to ``rate`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def clip_gradients(optimizer: torch.optim.Optimizer, bound: float) -> Tensor:
    """Scale all gradients by one factor so that their total norm is at most ``bound``.

    Args:
        optimizer: of the parameters.
        bound: of the total L2 norm; 0 changes nothing.

    Returns:
        The norm before clipping, a scalar; not finite if a gradient is not.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if bound > 0:
        nn.utils.clip_grads_with_norm_(parameters, bound, norm)
    return norm


class WeightAverage:
    """An exponential moving average of a network's weights (EMA).

    The decay rises from a small value, so that the initial weights are soon forgotten:
    ``min(decay, (1 + n) / (10 + n))`` after n updates.

    Args:
        network: whose parameters are averaged; its buffers are copied.
        decay: share of the old average kept in each update.
        warmup: of D-FINE and DEIM: the decay is ``decay * (1 - exp(-n / warmup))``, ``decay`` for
            0, and running statistics are averaged like parameters. Integer buffers are copied.
            Differs from the reference, which leaves them as they were at the start.

    Source of ``warmup``: D-FINE, src/optim/ema.py, ``ModelEMA``.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: int | None = None) -> None:
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.values = {key: value.detach().clone() for key, value in network.state_dict().items()}
        self._averaged = [name for name, each in network.named_parameters() if each.requires_grad]
        if warmup is not None:
            buffers = (name for name, each in network.named_buffers() if each.is_floating_point())
            self._averaged += [name for name in buffers if name in self.values]

    def _decay(self) -> float:
        """The share of the old average that this update keeps."""
        if self.warmup is None:
            return min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self.warmup == 0:
            return self.decay
        return self.decay * (1 - math.exp(-self.updates / self.warmup))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Average in the network's current weights."""
        self.updates += 1
        current = network.state_dict()
        averaged = set(self._averaged)
        torch._foreach_lerp_(
            [self.values[name] for name in self._averaged],
            [current[name] for name in self._averaged],
            1 - self._decay(),
        )
        for name, value in current.items():
            if name not in averaged:
                self.values[name].copy_(value)

    @contextmanager
    def applied_to(self, network: nn.Module) -> Iterator[None]:
        """A block in which the network has the averaged weights."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.values)
        try:
            yield
        finally:
            network.load_state_dict(own)
