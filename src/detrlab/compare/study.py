"""A comparison from start to end: plan, train, judge, write its files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detrlab import files
from detrlab.compare import tables
from detrlab.compare.budget import Budget
from detrlab.compare.definition import DEFINITION_FILE, Definition, Run, facts
from detrlab.compare.entrants import (
    Entrant,
    changes,
    config_differences,
    named,
    recipe_differences,
)
from detrlab.compare.judged import Trained, foreign_result, judge_trained, predictions_of
from detrlab.compare.results import Failure, Row, rows
from detrlab.compare.runs import (
    TRUTH_FILE,
    Say,
    Trainer,
    execute,
    gather,
    launch,
    refuse_links,
)
from detrlab.compare.steps import steps_grid
from detrlab.compare.verdicts import Verdicts, judge, planned_pairs
from detrlab.config import Recipe
from detrlab.data.sources import fingerprint
from detrlab.errors import UserError
from detrlab.recipes import recipe as named_recipe

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.evaluation.records import GroundTruth


Launcher = Callable[[Path, Sequence[Run], Say], tuple[Failure, ...]]
"""Trains the runs of the comparison in a folder that have not finished; returns what failed."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison. ``report.page.write_page`` makes a page of it."""

    folder: Path
    definition: Definition
    rows: tuple[Row, ...]
    """One for each detector that has a result."""
    failures: tuple[Failure, ...]
    """The runs that have none."""
    verdicts: Verdicts
    command: str
    """That made it; empty where it was called from Python."""
    truth: GroundTruth
    """The annotated objects of the validation split."""
    data: DataSet | None
    """None where this machine does not have the images."""

    @property
    def report(self) -> Path:
        """The file of the page."""
        return self.folder / "report.html"

    @property
    def grids(self) -> tuple[tables.Grid, ...]:
        """The tables: quality, cost, classes, the original experiment's layout."""
        return (
            tables.quality_grid(self.rows, self.verdicts.words()),
            tables.cost_grid(self.rows),
            tables.class_grid(self.rows),
            tables.original_grid(self.rows),
        )

    @property
    def ladder(self) -> tables.Grid | None:
        """What each step of the ladder bought; None unless two of its steps took part."""
        return steps_grid(self.rows, self.verdicts.found)

    @property
    def steps(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """(before, after, changed settings) of every planned pair of our detectors."""
        classes = len(self.definition.data["classes"])
        configs = {
            entrant.name: entrant.configs(self.definition.recipe, classes)
            for entrant in self.definition.entrants
        }
        found = []
        for before, after in planned_pairs(self.rows):
            if after in configs:
                (model, *others), (new_model, *new_others) = configs[before], configs[after]
                lines = list(config_differences(model, new_model))
                for old, new in zip(others, new_others, strict=True):
                    lines += changes(old.to_dict(), new.to_dict())
                found.append((before, after, tuple(lines)))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found, as plain values."""
        definition = self.definition
        ladder = self.ladder
        return {
            "ladder": [dict(zip(ladder.headers, row, strict=True)) for row in ladder.cells]
            if ladder
            else [],
            "data": definition.data,
            "recipe": definition.recipe.to_dict(),
            "recipe_differences": list(recipe_differences(definition.recipe)),
            "budget": str(definition.budget) if definition.budget else None,
            "seeds": list(definition.seeds),
            "command": self.command,
            "verdicts": self.verdicts.to_dict(),
            "models": tables.json_rows(self.rows),
            "failures": [vars(failure) for failure in self.failures],
            "steps": [
                {"from": before, "to": after, "changes": list(lines)}
                for before, after, lines in self.steps
            ],
        }


def compare(
    models: Sequence[str | Entrant] = (),
    *,
    recipe: Recipe | str = "laptop",
    data: str | Path | None = None,
    output: str | Path,
    seeds: Sequence[int] = (),
    budget: Budget | str | None = None,
    predictions: Sequence[str] = (),
    trained: Sequence[Trained] = (),
    device: str | None = None,
    trainer: Trainer | None = None,
    launcher: Launcher | None = None,
    command: str = "",
    report: Say = lambda line: None,  # noqa: ARG005
) -> Comparison:
    """Train detectors on the same data with the same budget, and judge them by one evaluator.

    Finished runs are reused, interrupted ones resumed. A run that fails is reported and does
    not stop the others. Several processes or machines may share ``output``.

    Args:
        models: preset names or entrants; none means the five of the original experiment, or
            no training where ``trained`` detectors are given.
        recipe: a named recipe, or one of your own.
        data: what to train on; None takes the recipe's.
        output: the comparison's folder.
        seeds: each detector is trained once with each; none means the recipe's own.
        budget: what each run may spend, such as ``"minutes=20"``; None takes the recipe's
            epochs.
        predictions: other tools' COCO results to judge beside them, ``NAME=FILE``.
        trained: detectors of any kind, judged as they are.
        device: where to compute; None takes a GPU if there is one.
        trainer: trains a run; None starts a process for it.
        launcher: trains all runs, as ``submitted.Launcher`` does in jobs; None trains one after
            the other.
        command: that is being run, for the page.
        report: takes lines of text about the progress.

    Raises:
        UserError: unknown names, impossible settings, unusable data, or a folder that holds
            another comparison.
    """
    from detrlab.data import open_data

    recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
    if data is not None:
        recipe = recipe.change(data=recipe.data.change(data=str(data)))
    folder = Path(output)
    entrants = named(models) if models or not trained else ()
    sources, given = {each.name: each.source for each in trained}, {}
    for text in predictions:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UserError(f"predictions {text!r} cannot be read: write NAME=FILE")
        try:
            sources[name], given[name] = file, files.read_bytes(Path(file).expanduser())
        except OSError as error:
            raise UserError(f"predictions {name!r}: {file} cannot be read ({error})") from None
    names = [*(entrant.name for entrant in entrants), *(each.name for each in trained), *given]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name!r} takes part twice: choose another name")
    data_set = open_data(recipe.data.data)
    for note in data_set.notes:
        report(f"note: {note}")
    asked = Definition(
        recipe=recipe,
        budget=Budget.parse(budget) if isinstance(budget, str) else budget,
        contents=fingerprint(data_set),
        entrants=entrants,
        seeds=tuple(dict.fromkeys(seeds)) or (recipe.train.seed,),
        predictions=sources,
        data=facts(data_set),
    )
    planned = asked.runs(folder)
    definition = asked.joined(Definition.read(folder), folder)
    definition.write(folder)
    files.write_json(folder / TRUTH_FILE, data_set.val.coco_ground_truth())
    for name, content in given.items():
        files.write_bytes(folder / predictions_of(name), content)
    for line in asked.lines():
        report(line)
    for each in trained:
        judge_trained(each, data_set.val, folder, report)
    trainer = trainer or (lambda run, report: launch(run, report, device))
    launcher = launcher or (lambda _, runs, report: execute(runs, trainer, report))
    failures = launcher(folder, planned, report)
    return _conclude(folder, definition, data_set, failures, command, report)


def collect(
    output: str | Path,
    sources: Sequence[str | Path] = (),
    *,
    data: str | None = None,
    report: Say,
) -> Comparison:
    """Gather finished runs, from other folders too, and write the comparison's files anew.

    The folders may come from somebody else: nothing outside of them is read or copied. So the
    data that they name, for the pictures of the page, is only opened where the output folder was
    made here.

    Args:
        output: the folder of the comparison; it may be new if there are sources.
        sources: folders of the same comparison, from other machines.
        data: the data, for the pictures of the page; None takes what the output folder names.
        report: takes lines of text about the progress.

    Raises:
        UserError: the folders hold no comparison, different ones, or symbolic links.
    """
    folder = Path(output)
    own = definition = Definition.read(folder)
    place = data or (own.recipe.data.data if own is not None else "")
    for source in map(Path, sources):
        refuse_links(source)
        other = Definition.read(source)
        if other is None:
            raise UserError(f"{source} holds no comparison: there is no {DEFINITION_FILE}")
        first = definition or other  # whose recipe is kept
        joined = other.joined(definition, source)
        definition = joined.model_copy(update={"recipe": first.recipe, "data": first.data})
        gather(source, folder, report)
    if definition is None:
        raise UserError(f"{folder} holds no comparison: give the folders to collect from")
    told = definition.recipe.data.data
    recipe = definition.recipe.change(data=definition.recipe.data.change(data=place).model_dump())
    definition = definition.model_copy(update={"recipe": recipe})
    definition.write(folder)
    command = shlex.join(["detrlab", "compare", "--output", str(folder), "--collect"])
    if not place:
        report(
            f"the page has no pictures: {told!r}, which the collected folders name, is not opened; "
            "add --data to name the data"
        )
    again = _data_again(definition, report) if place else None
    return _conclude(folder, definition, again, (), command, report)


def _conclude(
    folder: Path,
    definition: Definition,
    data: DataSet | None,
    failures: Sequence[Failure],
    command: str,
    report: Say,
) -> Comparison:
    """Judge the finished runs in a comparison's folder, and write its files."""
    from detrlab.evaluation.records import GroundTruth

    try:
        values = json.loads(files.read_bytes(folder / TRUTH_FILE))
        truth = GroundTruth.from_coco(values)
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        raise UserError(f"{folder / TRUTH_FILE} is damaged ({error}): collect again") from None
    results = [result for run in definition.runs(folder) if (result := run.result())]
    results += [foreign_result(name, truth, folder, report) for name in definition.predictions]
    table = rows(results, [*(each.name for each in definition.entrants), *definition.predictions])
    if not table:
        reasons = "; ".join(f"{failure.entrant}: {failure.reason}" for failure in failures)
        raise UserError(f"no detector has finished{f' ({reasons})' if reasons else ''}")
    report("judging the differences")
    comparison = Comparison(
        folder=folder,
        definition=definition,
        rows=table,
        failures=tuple(failures),
        verdicts=judge(table, truth, folder),
        command=command,
        truth=truth,
        data=data,
    )
    _write(comparison)
    return comparison


def _data_again(definition: Definition, report: Say) -> DataSet | None:
    """The data, for the pictures of the page, if this machine has it."""
    from detrlab.data import open_data

    try:
        data = open_data(definition.recipe.data.data)
    except UserError as error:
        report(f"the page has no pictures: {error}")
        return None
    if fingerprint(data) != definition.contents:
        report(f"the page has no pictures: {definition.recipe.data.data} has changed")
        return None
    return data


def _write(comparison: Comparison) -> None:
    """Write the tables."""
    folder = comparison.folder
    recipe = comparison.definition.recipe
    markdown = [
        f"# {comparison.definition.data['name']}, recipe {recipe.name}",
        "\n".join(f"* {sentence}" for sentence in comparison.verdicts.sentences),
        *(
            f"{grid.title}\n\n{grid.markdown()}"
            for grid in (*comparison.grids, comparison.ladder)
            if grid is not None
        ),
        f"```\n{comparison.command}\n```" if comparison.command else "",
    ]
    latex = "\n".join(f"% {grid.title}\n{grid.latex()}" for grid in comparison.grids)
    files.write_text(folder / "table.md", "\n\n".join(part for part in markdown if part) + "\n")
    files.write_text(folder / "table.csv", tables.csv_text(comparison.rows))
    files.write_text(folder / "table.tex", latex)
    files.write_text(folder / "original-layout.md", comparison.grids[-1].markdown())
    files.write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    files.write_json(folder / "comparison-result.json", comparison.to_dict())
