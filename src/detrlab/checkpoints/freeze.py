"""``--freeze PATTERN``: parameters that keep the values they were loaded with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrlab.errors import UserError


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    r"""Exclude parameters from training.

    Batch norms whose parameters are frozen keep their statistics too.

    Args:
        network: changed in place.
        patterns: regular expressions, searched in the parameters' names: ``backbone`` freezes
            the backbone, ``^encoder`` the encoder, ``layers\.[01]\.`` the first two layers.

    Returns:
        One sentence for each pattern.

    Raises:
        UserError: a pattern is no regular expression or matches nothing, or no parameter is left
            to train.
    """
    report = []
    for pattern in patterns:
        matched = _matching(network, pattern)
        trained = [each for each in matched if each.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        numbers = sum(each.numel() for each in trained)
        line = f"froze {len(trained)} tensors, {numbers:,} numbers, by {pattern!r}"
        if len(trained) < len(matched):
            line += f" ({len(matched) - len(trained)} more were frozen already)"
        report.append(line)
    if patterns and not any(each.requires_grad for each in network.parameters()):
        raise UserError(
            f"nothing is left to train: everything is frozen by {', '.join(map(repr, patterns))}"
        )
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(each.requires_grad for each in own):
            vars(module)["held"] = True  # a folded norm asks before its convolution runs
            module.register_forward_pre_hook(_evaluate)
    return report


def _matching(network: nn.Module, pattern: str) -> list[nn.Parameter]:
    parameters = dict(network.named_parameters())
    try:
        found = [each for name, each in parameters.items() if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f"--freeze {pattern!r} is not a regular expression ({error})") from None
    if not found:
        tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
        raise UserError(f"--freeze {pattern!r} matches no parameter; their names begin with {tops}")
    return found


def _evaluate(module: nn.Module, _inputs: Any) -> None:
    """Training mode must not update the statistics either."""
    module.eval()
