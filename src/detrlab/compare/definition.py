"""What a folder's comparison is about: recipe, budget, data, detectors and seeds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from detrlab import files
from detrlab.compare.budget import BudgetField
from detrlab.compare.entrants import Entrant, changes, in_order, recipe_differences
from detrlab.compare.runs import OF_THE_MACHINE, Run
from detrlab.config import Recipe, Record
from detrlab.errors import UserError
from detrlab.presets import PRESETS

if TYPE_CHECKING:
    from detrlab.data import DataSet

DEFINITION_FILE = "comparison.json"


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
    """Other tools' predictions, by name: the file that was given. A copy of it is kept."""
    data: Facts

    def write(self, folder: Path) -> None:
        """Write to the comparison's folder."""
        files.write_json(folder / DEFINITION_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Definition | None:
        """Read what ``write`` wrote; None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / DEFINITION_FILE
        if not path.is_file():
            return None
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): choose another --output") from None

    def joined(self, other: Definition | None, folder: Path) -> Definition:
        """This one with the entrants, seeds and predictions that ``other`` has besides.

        Args:
            other: of a comparison in ``folder``.
            folder: for the message.

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
        if all(name in PRESETS for name in by_name):
            by_name = {name: by_name[name] for name in in_order(list(by_name))}
        return self.model_copy(
            update={
                "entrants": tuple(by_name.values()),
                "seeds": tuple(dict.fromkeys((*other.seeds, *self.seeds))),
                "predictions": other.predictions | self.predictions,
            }
        )

    def runs(self, folder: Path) -> tuple[Run, ...]:
        """Every run of the comparison, the first seed of all detectors first.

        Args:
            folder: of the comparison. A run that is there already keeps its folder.

        Raises:
            UserError: an entrant's settings contradict each other.
        """
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
        spent = f"{self.budget} each" if self.budget else f"{self.recipe.train.epochs} epochs"
        return [
            f"comparing {', '.join(entrant.name for entrant in self.entrants)} on {about['name']}: "
            f"{about['train_images']:,} training images, {about['val_images']:,} validation "
            f"images, {len(about['classes'])} classes",
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

    def command(self, folder: Path) -> str:
        """What repeats a comparison of presets, with the recipe that is written beside it."""
        words: list[Any] = ["detrlab", "compare", "--data", self.recipe.data.data]
        changed = recipe_differences(self.recipe)
        words += ["--recipe", folder / "recipe.yaml" if changed else self.recipe.name]
        words += ["--models", *(entrant.name for entrant in self.entrants)]
        words += ["--seeds", *self.seeds]
        if self.budget:
            words += ["--budget", f"{self.budget.unit}={self.budget.amount:g}"]
        if self.predictions:
            words += [
                "--predictions",
                *(f"{name}={file}" for name, file in self.predictions.items()),
            ]
        return shlex.join(map(str, [*words, "--output", folder]))
