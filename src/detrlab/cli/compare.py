"""``detrlab compare``: train several detectors alike and compare them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.cli.settings import RecipeOptions

if TYPE_CHECKING:
    from detrlab.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train detectors on the same data with the same budget, and compare them.

    Finished runs in the output folder are reused and interrupted ones resumed: run the same
    command again to continue.
    """

    models: tuple[str, ...] = ()
    """Which detectors; the five of the original experiment by default."""
    ladder: bool = False
    """From DETR to DINO, one change at a time; says what each step bought. With --models only
    these steps."""
    seeds: tuple[int, ...] = ()
    """Train each detector once with each of these seeds."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="KIND=AMOUNT")] = None
    """What each run may spend: epochs=12, minutes=20 or images=5000."""
    predictions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE")] = ()
    """Other tools' detections in COCO json, to be judged in the same table."""
    output: str | None = None
    """Folder of the comparison; runs/compare/RECIPE by default."""
    collect: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Train nothing: gather finished runs, from these folders too, and write the tables again."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    processes: int = 1
    """How many processes train one run together."""
    json: bool = False
    """Print the result as JSON instead of tables."""


def run(options: Options) -> int:
    """Compare; returns the exit code: 1 when a run failed, with the others' results written."""
    from detrlab.cli.common import device_name, say
    from detrlab.compare import collect, compare, ladder

    output = options.output or f"runs/compare/{options.recipe.removesuffix('.yaml')}"
    if options.collect is not None:
        comparison = collect(output, options.collect, report=say)
    else:
        comparison = compare(
            ladder() if options.ladder and not options.models else options.models,
            recipe=options.settled(),
            output=output,
            seeds=options.seeds,
            budget=options.budget,
            predictions=options.predictions,
            device=device_name(options.device),
            processes=options.processes,
            report=say,
        )
    return finish(comparison, as_json=options.json, ladder=options.ladder)


def finish(comparison: Comparison, *, as_json: bool, ladder: bool = False) -> int:
    """Write the page, and print tables and verdicts, or everything as JSON.

    Args:
        comparison: the result.
        as_json: print it as JSON.
        ladder: also print what each step of the ladder bought.

    Returns:
        the exit code: 1 when a run failed.
    """
    from rich.console import Console

    from detrlab.compare.steps import TERMINAL_PARTS
    from detrlab.compare.tables import printable
    from detrlab.report.page import write_page

    write_page(comparison, comparison.truth, comparison.data, pictures=12)
    if as_json:
        print(json.dumps(comparison.to_dict()))
        return 1 if comparison.failures else 0
    console = Console()
    steps = comparison.ladder if ladder else None
    parts = () if steps is None else [steps.columns(*each) for each in TERMINAL_PARTS]
    for grid in (*comparison.grids, *parts):
        console.print(grid.terminal(console.width))
    lines = [f"* {sentence}" for sentence in comparison.verdicts.sentences]
    lines += [
        f"failed: {failure.entrant}, seed {failure.seed}: {failure.reason}"
        for failure in comparison.failures
    ]
    for line in lines:
        console.print(printable(line), markup=False)
    console.print(f"\nreport: {comparison.report}", markup=False, soft_wrap=True)
    return 1 if comparison.failures else 0
