"""A comparison from its question to its files: plan, train, judge, write."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detrlab import files
from detrlab.compare import curves, runs, tables
from detrlab.compare.budget import Budget
from detrlab.compare.curves import Crossing
from detrlab.compare.entrants import (
    Entrant,
    Foreign,
    changes,
    config_differences,
    in_order,
    named,
    recipe_differences,
)
from detrlab.compare.first_look import write_first_look
from detrlab.compare.results import Failure, Row, RunResult, rows
from detrlab.compare.runs import Report, Run, Trainer
from detrlab.compare.verdicts import Verdicts, judge, planned_pairs
from detrlab.config import Recipe
from detrlab.errors import UserError
from detrlab.presets import PRESETS
from detrlab.recipes import recipe as named_recipe

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.evaluation.records import GroundTruth

DEFINITION_FILE = "comparison.json"
TRUTH_FILE = "ground_truth.json"
FIRST_LOOK = "first-look.png"


@dataclass(frozen=True)
class Definition:
    """What a folder's comparison is about; runs of another recipe or other data do not belong.

    Attributes:
        recipe: as used, after all changes.
        budget: what every detector may spend; None means the recipe's epochs.
        contents: fingerprint of the data.
        entrants: in the order of the table.
        seeds: in the order they were asked for.
        foreign: other tools' predictions.
        data: what the data is called, and how much of it there is.
    """

    recipe: Recipe
    budget: Budget | None
    contents: str
    entrants: tuple[Entrant, ...]
    seeds: tuple[int, ...]
    foreign: tuple[Foreign, ...]
    data: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write to the comparison's folder."""
        files.write_json(
            folder / DEFINITION_FILE,
            {
                "recipe": self.recipe.to_dict(),
                "budget": str(self.budget) if self.budget else None,
                "contents": self.contents,
                "entrants": [
                    {"name": e.name, "preset": e.preset, "changes": dict(e.changes)}
                    for e in self.entrants
                ],
                "seeds": list(self.seeds),
                "predictions": {foreign.name: str(foreign.file) for foreign in self.foreign},
                "data": self.data,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Definition | None:
        """Read what ``save`` wrote; None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / DEFINITION_FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                recipe=Recipe.parse(values["recipe"]),
                budget=Budget.parse(values["budget"]) if values["budget"] else None,
                contents=values["contents"],
                entrants=tuple(Entrant(**entrant) for entrant in values["entrants"]),
                seeds=tuple(values["seeds"]),
                foreign=tuple(
                    Foreign(name, Path(file)) for name, file in values["predictions"].items()
                ),
                data=values["data"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): choose another --output") from None

    def joined(self, other: Definition | None, folder: Path) -> Definition:
        """This one with the entrants, seeds and predictions that ``other`` has besides.

        Raises:
            UserError: ``other`` has another recipe, budget or data.
        """
        if other is None:
            return self
        if other.contents != self.contents:
            raise UserError(
                f"{folder} holds a comparison on other data ({other.data['name']}): "
                "choose another --output"
            )
        changed = [
            line
            for line in changes(other.recipe.to_dict(), self.recipe.to_dict())
            if line.split(":")[0] not in {*runs.OF_THE_MACHINE, "description"}
        ]
        if str(other.budget) != str(self.budget):
            changed.append(f"budget: {other.budget} -> {self.budget}")
        if changed:
            raise UserError(
                f"{folder} holds a comparison with another recipe ({'; '.join(changed)}): "
                "choose another --output"
            )
        by_name = {entrant.name: entrant for entrant in (*other.entrants, *self.entrants)}
        predictions = {foreign.name: foreign for foreign in (*other.foreign, *self.foreign)}
        return Definition(
            recipe=self.recipe,
            budget=self.budget,
            contents=self.contents,
            entrants=_ordered(tuple(by_name.values())),
            seeds=tuple(dict.fromkeys((*other.seeds, *self.seeds))),
            foreign=tuple(predictions.values()),
            data=self.data,
        )


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        folder: where its files are.
        definition: what was compared.
        rows: one for each detector that has a result.
        failures: the runs that have none.
        verdicts: intervals and differences, in numbers and in words.
        crossings: where AP curves change places for good, in epochs and in minutes.
        command: what repeats it.
        report: the page.
    """

    folder: Path
    definition: Definition
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    verdicts: Verdicts
    crossings: dict[str, tuple[Crossing, ...]]
    command: str
    report: Path

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
    def steps(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """(before, after, changes of the settings) of every planned pair of detectors."""
        entrants = {entrant.name: entrant for entrant in self.definition.entrants}
        classes = len(self.definition.data["classes"])
        configs = {
            name: entrant.configs(self.definition.recipe, classes)
            for name, entrant in entrants.items()
        }
        return tuple(
            (
                before,
                after,
                (
                    *config_differences(configs[before][0], configs[after][0]),
                    *changes(configs[before][1].to_dict(), configs[after][1].to_dict()),
                    *changes(configs[before][2].to_dict(), configs[after][2].to_dict()),
                ),
            )
            for before, after in planned_pairs(self.rows)
            if before in entrants and after in entrants
        )


def compare(
    models: Sequence[str] | Sequence[Entrant] = (),
    *,
    recipe: Recipe | str = "laptop",
    data: str | Path | None = None,
    output: str | Path,
    seeds: Sequence[int] = (),
    budget: Budget | str | None = None,
    predictions: Sequence[Foreign] | Sequence[str] = (),
    device: str | None = None,
    processes: int = 1,
    apart: bool = True,
    trainer: Trainer | None = None,
    pictures: int = 12,
    command: str = "",
    report: Report = lambda line: None,  # noqa: ARG005
) -> Comparison:
    """Train detectors on the same data with the same budget and say what came out.

    Finished runs are reused, interrupted ones resumed; a failed one is reported and does not
    take the others with it. Several processes or machines may share ``output``.

    Args:
        models: preset names or entrants; none means the five of the original experiment.
        recipe: a named recipe, or one of your own.
        data: what to train on; None takes the recipe's.
        output: the comparison's folder.
        seeds: each detector is trained once with each; none means the recipe's own.
        budget: what each run may spend, such as ``"minutes=20"``; None takes the recipe's
            epochs.
        predictions: other tools' COCO results to judge beside them, ``NAME=FILE``.
        device: where to compute; None takes a GPU if there is one.
        processes: how many train one run together.
        apart: train each run in a process of its own.
        trainer: trains a run in another way than these say.
        pictures: how many validation images the page shows.
        command: what repeats the comparison; worked out where it is left empty.
        report: takes a line for people, now and then.

    Raises:
        UserError: unknown names, impossible settings, unusable data, or a folder that holds
            another comparison.
    """
    from detrlab.data import open_data

    recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
    if data is not None:
        recipe = recipe.change(data=recipe.data.change(data=str(data)))
    entrants = _entrants(models)
    seeds = tuple(dict.fromkeys(seeds)) or (recipe.train.seed,)
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    foreign = tuple(Foreign.parse(p) if isinstance(p, str) else p for p in predictions)
    folder = Path(output)

    data_set = open_data(recipe.data.data)
    for note in data_set.notes:
        report(f"note: {note}")
    planned = runs.plan(entrants, recipe, data_set, seeds, folder / "runs", budget)
    asked = Definition(
        recipe=recipe,
        budget=budget,
        contents=runs.data_fingerprint(data_set),
        entrants=entrants,
        seeds=seeds,
        foreign=foreign,
        data=_facts(data_set),
    )
    definition = asked.joined(Definition.load(folder), folder)
    definition.save(folder)
    files.write_json(folder / TRUTH_FILE, data_set.val.coco_ground_truth())
    _announce(asked, planned, report)
    look = folder / FIRST_LOOK
    write_first_look(data_set, recipe.data, seeds[0], look)
    report(f"what they are about to be shown: {look}")

    if trainer is None:
        trainer = _trainer(data_set, device, processes, apart=apart)
    failures = runs.execute(planned, trainer, report)
    return conclude(
        folder, data_set, failures, command or _command(asked, folder), pictures, report
    )


def collect(
    output: str | Path, sources: Sequence[str | Path] = (), *, report: Report
) -> Comparison:
    """Gather finished runs, from other folders too, and write the comparison's files anew.

    Args:
        output: the folder of the comparison; it may be new if there are sources.
        sources: folders of the same comparison, from other machines.
        report: takes a line for people, now and then.

    Raises:
        UserError: the folders hold no comparison, or different ones.
    """
    folder = Path(output)
    definition = Definition.load(folder)
    for source in map(Path, sources):
        other = Definition.load(source)
        if other is None:
            raise UserError(f"{source} holds no comparison: there is no {DEFINITION_FILE}")
        first = definition or other  # its recipe and its seeds come first
        joined = other.joined(definition, source)
        definition = replace(joined, recipe=first.recipe, data=first.data)
        if not (folder / TRUTH_FILE).is_file():
            files.write_bytes(folder / TRUTH_FILE, (source / TRUTH_FILE).read_bytes())
    if definition is None:
        raise UserError(f"{folder} holds no comparison: give the folders to collect from")
    definition.save(folder)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    runs.gather([Path(source) for source in sources], folder / "runs", report)
    command = shlex.join(["detrlab", "compare", "--output", str(folder), "--collect"])
    return conclude(folder, _data_again(definition, report), (), command, 12, report)


def conclude(
    folder: Path,
    data: DataSet | None,
    failures: Sequence[Failure],
    command: str,
    pictures: int,
    report: Report,
) -> Comparison:
    """Judge what lies in a comparison's folder and write all of its files.

    Args:
        folder: of the comparison.
        data: for the pictures; None leaves them out.
        failures: of the runs that were just tried.
        command: what repeats the comparison.
        pictures: how many validation images the page shows.
        report: takes a line for people, now and then.
    """
    from detrlab.evaluation.records import GroundTruth
    from detrlab.report.page import write_page

    definition = Definition.load(folder)
    assert definition is not None
    truth = GroundTruth.from_coco(json.loads((folder / TRUTH_FILE).read_text(encoding="utf-8")))
    results = _belonging(runs.saved(folder / "runs"), definition)
    results += [_judged(foreign, truth, folder, report) for foreign in definition.foreign]
    order = [e.name for e in definition.entrants] + [f.name for f in definition.foreign]
    table = rows(results, order)
    if not table:
        reasons = "; ".join(f"{f.entrant}: {f.reason}" for f in failures)
        raise UserError(f"no detector has finished{f' ({reasons})' if reasons else ''}")
    report("judging the differences")
    comparison = Comparison(
        folder=folder,
        definition=definition,
        rows=table,
        failures=tuple(failures),
        verdicts=judge(table, truth, folder),
        crossings={
            chart.name: curves.crossings(chart.curves)
            for chart in curves.charts(table)
            if chart.name in ("ap-epochs", "ap-minutes")
        },
        command=command,
        report=folder / "report.html",
    )
    _write(comparison)
    write_page(comparison, truth, data, pictures)
    return comparison


def _trainer(data: DataSet, device: str | None, processes: int, *, apart: bool) -> Trainer:
    from detrlab.compare.trainers import train_apart, train_here

    if apart:
        return lambda run, report: train_apart(run, report, device, processes)
    return lambda run, report: train_here(run, data, report, device)


def _entrants(models: Sequence[str] | Sequence[Entrant]) -> tuple[Entrant, ...]:
    made = tuple(model for model in models if isinstance(model, Entrant))
    if made:
        assert len(made) == len(models), "either names or entrants"
        return made
    return named([model for model in models if isinstance(model, str)])


def _ordered(entrants: tuple[Entrant, ...]) -> tuple[Entrant, ...]:
    """Presets in the order of the ladder; variations as they were asked for."""
    by_name = {entrant.name: entrant for entrant in entrants}
    if all(name in PRESETS for name in by_name):
        return tuple(by_name[name] for name in in_order(list(by_name)))
    return entrants


def _facts(data: DataSet) -> dict[str, Any]:
    return {
        "name": data.name,
        "classes": list(data.train.classes),
        "train_images": len(data.train),
        "train_boxes": len(data.train.boxes),
        "val_images": len(data.val),
        "val_boxes": int((~data.val.crowd).sum()),
        "notes": list(data.notes),
        "licences": list(data.licences),
    }


def _announce(asked: Definition, planned: Sequence[Run], report: Report) -> None:
    facts = asked.data
    report(
        f"comparing {len(asked.entrants)} detectors on {facts['name']}: "
        f"{facts['train_images']:,} images to train on, {facts['val_images']:,} to judge by, "
        f"{len(facts['classes'])} classes"
    )
    spent = f"{asked.budget} each" if asked.budget else f"{asked.recipe.train.epochs} epochs"
    report(f"recipe {asked.recipe.name}, {spent}, seeds {', '.join(map(str, asked.seeds))}")
    for line in recipe_differences(asked.recipe):
        report(f"  differs from the named recipe in {line}")
    for setting in asked.recipe.assumed:
        report(f"  {setting} is assumed: the recipe's source does not state it")
    done = sum(run.result() is not None for run in planned)
    if done:
        report(f"{done} of {len(planned)} runs have finished before")


def _command(asked: Definition, folder: Path) -> str:
    """What repeats a comparison of presets, with the recipe that is written beside it."""
    words = ["detrlab", "compare", "--data", asked.recipe.data.data]
    changed = recipe_differences(asked.recipe)
    words += ["--recipe", str(folder / "recipe.yaml") if changed else asked.recipe.name]
    words += ["--models", *(entrant.name for entrant in asked.entrants)]
    words += ["--seeds", *map(str, asked.seeds)]
    if asked.budget:
        words += ["--budget", f"{asked.budget.unit}={asked.budget.amount:g}"]
    for foreign in asked.foreign:
        words += ["--predictions", f"{foreign.name}={foreign.file}"]
    return shlex.join([*words, "--output", str(folder)])


def _belonging(found: Sequence[Run], definition: Definition) -> list[RunResult]:
    """The results that have the settings of this comparison, not those of earlier attempts."""
    by_key = {run.key: run for run in found}
    classes = len(definition.data["classes"])
    results = []
    for seed in definition.seeds:
        for entrant in definition.entrants:
            model, train, settings = entrant.configs(definition.recipe, classes)
            key = runs.run_key(
                model, train.change(seed=seed), settings, definition.budget, definition.contents
            )
            result = by_key[key].result() if key in by_key else None
            if result is not None:
                results.append(replace(result, entrant=entrant.name, key=key))
    return results


def _judged(foreign: Foreign, truth: GroundTruth, folder: Path, report: Report) -> RunResult:
    """Another tool's predictions as a result; a copy of them is kept."""
    from detrlab.evaluation.coco import accumulate
    from detrlab.evaluation.foreign import load_predictions

    name = f"predictions/{runs.slug(foreign.name)}.json"
    if foreign.file.is_file() and foreign.file.resolve() != (folder / name).resolve():
        files.write_bytes(folder / name, foreign.file.read_bytes())
    loaded = load_predictions(folder / name, truth)
    for note in loaded.notes:
        report(f"{foreign.name}: {note}")
    metrics = accumulate(truth, loaded.detected).metrics(truth.classes)
    return RunResult(
        entrant=foreign.name,
        seed=None,
        key=files.sha256(folder / name),
        metrics=metrics.to_dict(),
        predictions=name,
    )


def _data_again(definition: Definition, report: Report) -> DataSet | None:
    """The data, for the pictures, if this machine has it."""
    from detrlab.data import open_data

    try:
        data = open_data(definition.recipe.data.data)
    except UserError as error:
        report(f"the page has no pictures: {error}")
        return None
    if runs.data_fingerprint(data) != definition.contents:
        report(f"the page has no pictures: {definition.recipe.data.data} has changed")
        return None
    return data


def _write(comparison: Comparison) -> None:
    """The tables and pictures; the page is written beside them."""
    folder = comparison.folder
    words = comparison.verdicts.sentences
    markdown = [
        f"# {comparison.definition.data['name']}, recipe {comparison.definition.recipe.name}",
        "\n".join(f"* {sentence}" for sentence in words),
        *(f"{grid.title}\n\n{grid.markdown()}" for grid in comparison.grids),
        f"```\n{comparison.command}\n```",
    ]
    files.write_text(folder / "table.md", "\n\n".join(part for part in markdown if part) + "\n")
    files.write_text(folder / "table.csv", tables.csv_text(comparison.rows))
    files.write_text(
        folder / "table.tex",
        "\n".join(f"% {grid.title}\n{grid.latex()}" for grid in comparison.grids),
    )
    files.write_text(folder / "original-layout.md", comparison.grids[-1].markdown())
    files.write_text(
        folder / "recipe.yaml",
        yaml.safe_dump(comparison.definition.recipe.to_dict(), sort_keys=False),
    )
    files.write_json(folder / "comparison-result.json", to_json(comparison))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    definition = comparison.definition
    return {
        "data": definition.data,
        "recipe": definition.recipe.to_dict(),
        "recipe_differences": list(recipe_differences(definition.recipe)),
        "budget": str(definition.budget) if definition.budget else None,
        "seeds": list(definition.seeds),
        "command": comparison.command,
        "verdicts": comparison.verdicts.to_dict(),
        "models": tables.json_rows(comparison.rows),
        "failures": [vars(failure) for failure in comparison.failures],
        "crossings": {
            name: [vars(crossing) for crossing in found]
            for name, found in comparison.crossings.items()
        },
        "steps": [
            {"from": before, "to": after, "changes": list(changes)}
            for before, after, changes in comparison.steps
        ],
    }
