"""``detrlab ladder``: what each step from DETR to DINO buys on your data."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from detrlab.cli import compare


@dataclass(frozen=True, kw_only=True)
class Options(compare.Options):
    """Train every detector from DETR to DINO alike, and see what each change bought.

    Finished runs in the output folder are reused and interrupted ones resumed: run the same
    command again to continue.
    """

    models: tuple[str, ...] = ()
    """Only these steps; by default all."""
    ladder: tyro.conf.Suppress[bool] = True


run = compare.run
