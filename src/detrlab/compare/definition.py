"""What a folder's comparison is about: recipe, budget, data, detectors, seeds and their runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from detrlab import files
from detrlab.compare.budget import BudgetField
from detrlab.compare.entrants import Entrant, changes, in_order, placed, recipe_differences
from detrlab.compare.results import RunResult
from detrlab.config import DataConfig, Recipe, Record, TrainConfig
from detrlab.errors import UserError
from detrlab.presets import AnyPreset

if TYPE_CHECKING:
    from detrlab.data import DataSet

DEFINITION_FILE = "comparison.json"
RUN_FILE = "run.json"
OF_THE_MACHINE = frozenset({"data.data", "data.workers"})
"""Settings that change no result: where the data is and how many processes read it. (The size of
micro-batches does change it: it decides the padding, which backbone and neck see.)"""


class Facts(TypedDict):
    """The name of the data, and how much of it there is."""

    name: str
    classes: list[str]
    train_images: int
    train_boxes: int
    val_images: int
    val_boxes: int
    notes: list[str]
    licences: NotRequired[list[str]]


def facts(data: DataSet) -> Facts:
    """Of the data at hand."""
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


class Run(Record):
    """One detector to be trained with one seed."""

    entrant: str
    """Its name in the comparison."""
    seed: int
    """Of initial values, order, augmentation and dropout."""
    model: AnyPreset
    train: TrainConfig
    """How it is trained, before the budget changes the number of epochs."""
    data: DataConfig
    budget: BudgetField | None
    """What it may spend; None means the epochs of ``train``."""
    contents: str
    """Fingerprint of the data."""
    folder: Path = Field(exclude=True)
    """Where its files are."""

    @property
    def key(self) -> str:
        """Fingerprint of everything that decides the result.

        The same run on another machine has the same key. Finished runs are recognised by the key
        of the settings in their folder, computed anew: a setting that a later version of detrlab
        added has its default there, and a changed default gives another key.
        """
        settings = self.to_dict()
        del settings["entrant"], settings["seed"]  # the seed is among those of ``train``
        for name in OF_THE_MACHINE:
            del settings["data"][name.removeprefix("data.")]
        return files.digest(json.dumps(settings, sort_keys=True).encode())

    def write(self) -> None:
        """Write the settings into the run's folder, for the process that will train it."""
        files.write_json(self.folder / RUN_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Run | None:
        """Read what ``write`` wrote; None where there is none that this version understands."""
        try:
            values = json.loads(files.read_bytes(folder / RUN_FILE))
            return cls.parse({**values, "folder": folder})
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def result(self) -> RunResult | None:
        """Its result, if it has finished."""
        found = RunResult.load(self.folder)
        return found and replace(found, entrant=self.entrant, seed=self.seed, key=self.key)

    def placed(self, folder: Path) -> Run:
        """The same in its folder below ``folder``: the one that holds it already, or a new one."""
        known = (run for path in sorted(folder.glob("[!.]*")) if (run := Run.read(path)))
        places = [run.folder for run in known if run.key == self.key]
        new = folder / f"{slug(self.entrant)}-seed{self.seed}-{self.key[:8]}"
        return self.model_copy(update={"folder": places[-1] if places else new})


def slug(name: str) -> str:
    """A folder name from an entrant's: characters that a file system may refuse become dashes."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.") or "run"


class Definition(Record):
    """What a comparison is about. Runs with another recipe or other data do not belong to it."""

    recipe: Recipe
    """As used, after all changes."""
    budget: BudgetField | None
    """What every detector may spend; None means the recipe's epochs."""
    contents: str
    """Fingerprint of the data."""
    entrants: tuple[Entrant, ...]
    """In the order of the table."""
    seeds: tuple[int, ...]
    """In the order they were given."""
    predictions: dict[str, str]
    """Other tools' predictions and trained detectors, by name: the file that was given. The
    predictions are kept."""
    data: Facts

    def write(self, folder: Path) -> None:
        """Write to the comparison's folder."""
        files.write_json(folder / DEFINITION_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Definition | None:
        """Read what ``write`` wrote; None where there is none."""
        path = folder / DEFINITION_FILE
        if not path.is_file():
            return None
        try:
            return cls.parse(json.loads(files.read_bytes(path)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): choose another --output") from None

    def joined(self, other: Definition | None, folder: Path) -> Definition:
        """This one with the entrants, seeds and predictions of ``other``, which is in ``folder``.

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
            if line.split(":")[0] not in {*OF_THE_MACHINE, "description"}
        ]
        if str(other.budget) != str(self.budget):
            changed.append(f"budget: {other.budget} -> {self.budget}")
        if changed:
            raise UserError(
                f"{folder} holds a comparison with another recipe ({'; '.join(changed)}): "
                "choose another --output"
            )
        by_name = {entrant.name: entrant for entrant in (*other.entrants, *self.entrants)}
        if placed(by_name):
            by_name = {name: by_name[name] for name in in_order(list(by_name))}
        return self.model_copy(
            update={
                "entrants": tuple(by_name.values()),
                "seeds": tuple(dict.fromkeys((*other.seeds, *self.seeds))),
                "predictions": other.predictions | self.predictions,
            }
        )

    def runs(self, folder: Path) -> tuple[Run, ...]:
        """Every run of the comparison in ``folder``, the first seed of all detectors first."""
        found = []
        for seed in self.seeds:
            for entrant in self.entrants:
                model, train, data = entrant.configs(self.recipe, len(self.data["classes"]))
                run = Run(
                    entrant=entrant.name,
                    seed=seed,
                    model=model,
                    train=train.change(seed=seed),
                    data=data,
                    budget=self.budget,
                    contents=self.contents,
                    folder=folder,
                )
                found.append(run.placed(folder / "runs"))
        return tuple(found)

    def lines(self) -> list[str]:
        """What is about to be compared, in a few lines of text."""
        about = self.data
        names = [*(entrant.name for entrant in self.entrants), *self.predictions]
        spent = f"{self.budget} each" if self.budget else f"{self.recipe.train.epochs} epochs"
        lines = [
            f"comparing {', '.join(names)} on {about['name']}: "
            f"{about['train_images']:,} training images, {about['val_images']:,} validation "
            f"images, {len(about['classes'])} classes"
        ]
        if not self.entrants:  # nothing is trained
            return lines
        return [
            *lines,
            f"recipe {self.recipe.name}, {spent}, seeds {', '.join(map(str, self.seeds))}",
            *(
                f"  differs from the named recipe in {line}"
                for line in recipe_differences(self.recipe)
            ),
            *(
                f"  {setting} is assumed: the recipe's source does not state it"
                for setting in self.recipe.assumed
            ),
        ]
