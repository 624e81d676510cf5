"""``detrlab ablate``: compare variations of one detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from detrlab.cli.compare import ComparisonOptions


@dataclass(frozen=True, kw_only=True)
class Options(ComparisonOptions):
    """Train variations of one detector alike, and compare them.

    For example: detrlab ablate --model deformable-detr --vary num_queries=50,100,300
    """

    model: str = "deformable-detr-two-stage"
    """Which detector is varied."""
    vary: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=A,B,C")] = ()
    """What varies; several give every combination."""


def run(options: Options) -> int:
    """Compare the variations; returns the exit code: 1 when a run failed."""
    from detrlab.compare import varied

    settings = "-".join(text.partition("=")[0] for text in options.vary)
    output = f"runs/ablate/{options.model}-{settings}"
    if options.cancel:
        return options.end_jobs(output)
    return options.compare(varied(options.model, options.vary), output)
