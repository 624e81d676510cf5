"""``detrlab ablate``: compare variations of one detector."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from detrlab.cli.settings import RecipeOptions


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train variations of one detector alike, and compare them.

    For example: detrlab ablate --model deformable-detr --vary num_queries=50,100,300
    """

    model: str = "deformable-detr-two-stage"
    """Which detector is varied."""
    vary: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=A,B,C")] = ()
    """What varies; several give every combination."""
    seeds: tuple[int, ...] = ()
    """Train each variation once with each of these seeds."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="KIND=AMOUNT")] = None
    """What each run may spend: epochs=12, minutes=20 or images=5000."""
    output: str | None = None
    """Folder of the comparison; runs/ablate/MODEL-SETTINGS by default."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    json: bool = False
    """Print the result as JSON instead of tables."""


def run(options: Options) -> int:
    """Compare the variations; returns the exit code: 1 when a run failed."""
    from detrlab.cli.common import device_name, say
    from detrlab.cli.compare import finish
    from detrlab.compare import compare, varied

    entrants = varied(options.model, options.vary)
    settings = "-".join(text.partition("=")[0] for text in options.vary)
    comparison = compare(
        entrants,
        recipe=options.settled(),
        output=options.output or f"runs/ablate/{options.model}-{settings}",
        seeds=options.seeds,
        budget=options.budget,
        device=device_name(options.device),
        command=shlex.join(["detrlab", *sys.argv[1:]]),
        report=say,
    )
    return finish(comparison, as_json=options.json)
