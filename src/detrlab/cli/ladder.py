"""``detrlab ladder``: what each step from DETR to DEIMv2 buys on your data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from detrlab.cli import compare
from detrlab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(compare.Options):
    """Train every detector from DETR to DEIMv2 alike, and see what each change bought.

    Finished runs in the output folder are reused and interrupted ones resumed: run the same
    command again to continue. For example: detrlab ladder --from dino-4scale --to d-fine-n
    """

    models: tuple[str, ...] = ()
    """Only these steps; by default all."""
    first: Annotated[str | None, tyro.conf.arg(name="from", metavar="STEP")] = None
    """Begin with this step."""
    last: Annotated[str | None, tyro.conf.arg(name="to", metavar="STEP")] = None
    """End with this step."""
    ladder: tyro.conf.Suppress[bool] = True


def run(options: Options) -> int:
    """Compare or collect; returns the exit code."""
    if options.first is None and options.last is None:
        return compare.run(options)
    if options.models or options.collect is not None:
        raise UserError("--from and --to choose the steps: leave out --models and --collect")
    from detrlab.compare import ladder

    steps = tuple(each.name for each in ladder(options.first, options.last))
    return compare.run(replace(options, models=steps))
