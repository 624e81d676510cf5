"""``detrlab compare``: train several detectors alike and compare them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from detrlab.cli.settings import RecipeOptions
from detrlab.errors import UserError, printable

if TYPE_CHECKING:
    from detrlab.compare import Comparison, Entrant, Trained


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(RecipeOptions):
    """Flags of every command that compares."""

    seeds: tuple[int, ...] = ()
    """Train each detector once with each of these seeds."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="KIND=AMOUNT")] = None
    """What each run may spend: epochs=12, minutes=20 or images=5000."""
    output: str | None = None
    """Folder of the comparison; below runs/ by default."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    json: bool = False
    """Print the result as JSON instead of tables."""
    launch: Annotated[str | None, tyro.conf.arg(metavar="local:N|slurm")] = None
    """Train in jobs that go on when this command ends: N at once on this machine, or by SLURM."""
    launch_set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Of SLURM's jobs: partition=gpu gpus=1 minutes=600 ... (docs/comparing.md has all names)"""
    cancel: bool = False
    """End the jobs of this comparison; what was trained is saved."""

    def compare(
        self, models: Sequence[str | Entrant], output: str, ladder: bool = False, **more: Any
    ) -> int:
        """Compare; returns the exit code: 1 when a run failed, with the others' results written."""
        from detrlab.cli.common import device_name, say
        from detrlab.cli.jobs import watching
        from detrlab.compare import compare
        from detrlab.compare.schedulers import scheduler
        from detrlab.compare.submitted import Jobs, are_live

        if self.launch is None and self.launch_set:
            raise UserError(f"--launch-set {self.launch_set[0]}: it needs --launch slurm")
        folder = Path(self.output or output)
        # The device is SLURM's, not this machine's.
        named = self.device if self.device != "auto" else None
        device = named if self.launch == "slurm" else device_name(self.device)
        place = self.launch and scheduler(self.launch, self.launch_set, device)
        command = shlex.join(["detrlab", *sys.argv[1:]])
        try:
            with watching() if place else nullcontext((say, None)) as (report, show):
                comparison = compare(
                    models,
                    recipe=self.settled(),
                    output=folder,
                    seeds=self.seeds,
                    budget=self.budget,
                    device=device,
                    launcher=Jobs(place, show) if place else None,
                    command=command,
                    report=report,
                    **more,
                )
        except KeyboardInterrupt:
            if place and are_live(folder):
                say(
                    f"\nThe jobs go on. Come back to them with the same command:\n  {command}\n"
                    f"End them with:\n  {command} --cancel"
                )
            raise
        return finish(comparison, as_json=self.json, ladder=ladder)

    def end_jobs(self, output: str) -> int:
        """End the comparison's jobs; returns the exit code."""
        from detrlab.cli.common import say
        from detrlab.compare.submitted import cancel

        cancel(Path(self.output or output), say)
        return 0


@dataclass(frozen=True, kw_only=True)
class Options(ComparisonOptions):
    """Train detectors on the same data with the same budget, and compare them.

    Finished runs in the output folder are reused and interrupted ones resumed: run the same
    command again to continue.
    """

    models: tuple[str, ...] = ()
    """Which detectors; the five of the original experiment by default."""
    ladder: bool = False
    """From DETR to DEIMv2, step by step; says what each step bought. With --models only
    these steps."""
    predictions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE")] = ()
    """Other tools' detections in COCO json, to be judged in the same table."""
    detectors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL")] = ()
    """Trained detectors, judged as they are: checkpoints, ONNX files of any detector, OpenVINO's
    .xml, hf:REPOSITORY. Without --models nothing is trained."""
    collect: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Train nothing: gather finished runs, from these folders too, and write the tables again.
    What they name is not opened: --data names the data, for the pictures of a new folder's page."""


def run(options: Options) -> int:
    """Compare or collect; returns the exit code."""
    from detrlab.cli.common import say
    from detrlab.compare import collect, ladder

    output = f"runs/compare/{options.recipe.removesuffix('.yaml')}"
    if options.cancel:
        return options.end_jobs(output)
    if options.collect is not None:
        if options.launch is not None:
            raise UserError("--collect trains nothing: leave out --launch")
        place = options.output or output
        found = collect(place, options.collect, data=options.data, report=say)
        return finish(found, as_json=options.json, ladder=options.ladder)
    models = options.models or (ladder() if options.ladder else ())
    return options.compare(
        models,
        output,
        ladder=options.ladder,
        predictions=options.predictions,
        trained=[_trained(text, options.device) for text in options.detectors],
    )


def _trained(text: str, device: str) -> Trained:
    """A detector that takes part as it is."""
    from detrlab.cli.common import open_predictor
    from detrlab.compare import Trained

    name, _, source = text.partition("=")
    if not name or not source:
        raise UserError(f"--detectors {text}: write NAME=MODEL, such as yolo=yolo11n.onnx")
    return Trained(name, source, open_predictor(source, device, None))


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

    from detrlab.report.page import write_page

    write_page(comparison, comparison.truth, comparison.data, pictures=12)
    if as_json:
        print(json.dumps(comparison.to_dict()))
        return 1 if comparison.failures else 0
    console = Console()
    for grid in (*comparison.grids, comparison.ladder if ladder else None):
        if grid is not None:
            console.print(grid.terminal(console.width))
    for sentence in comparison.verdicts.sentences:
        console.print(printable(f"* {sentence}"), markup=False)
    for each in comparison.failures:
        line = f"failed: {each.entrant}, seed {each.seed}: {each.reason}"
        console.print(printable(line), markup=False)
    console.print(printable(f"report: {comparison.report}"), markup=False, soft_wrap=True)
    return 1 if comparison.failures else 0
