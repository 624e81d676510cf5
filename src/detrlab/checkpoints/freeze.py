"""``--freeze PATTERN``: parameters that keep the values they were loaded with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrlab.errors import UserError


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    r"""Stop parameters from training, and say which.

    Batch norms whose parameters are frozen keep their statistics too, in training as in
    evaluation.

    Args:
        network: to be changed.
        patterns: regular expressions, searched in the parameters' names: ``backbone`` freezes
            the backbone, ``^encoder`` the encoder, ``layers\.[01]\.`` the first two layers.

    Returns:
        One sentence for each pattern.

    Raises:
        UserError: a pattern is no regular expression, matches nothing, or nothing is left that
            trains.
    """
    report = []
    for pattern in patterns:
        matched = _matching(network, pattern)
        trained = [(name, each) for name, each in matched if each.requires_grad]
        for _, parameter in trained:
            parameter.requires_grad_(False)
        numbers = sum(each.numel() for _, each in trained)
        line = f"froze {len(trained)} tensors, {numbers:,} numbers, by {pattern!r}"
        if len(trained) < len(matched):
            line += f" ({len(matched) - len(trained)} more were frozen already)"
        report.append(line)
    if patterns and not any(each.requires_grad for each in network.parameters()):
        raise UserError(
            f"nothing is left to train: everything is frozen by {', '.join(map(repr, patterns))}"
        )
    _hold_norms(network)
    return report


def _matching(network: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--freeze {pattern!r} is not a regular expression ({error})") from None
    matched = [each for each in network.named_parameters() if expression.search(each[0])]
    if not matched:
        names = [name for name, _ in network.named_parameters()]
        tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise UserError(f"--freeze {pattern!r} matches no parameter; their names begin with {tops}")
    return matched


def _hold_norms(network: nn.Module) -> None:
    """Batch norms that do not train must not follow the batches either."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(each.requires_grad for each in own):
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, _inputs: Any) -> None:
    module.eval()
