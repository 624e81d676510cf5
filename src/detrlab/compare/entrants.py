"""Who takes part: named detectors, the rungs of the ladder, or variations of one detector."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detrlab.config import DataConfig, ModelConfig, Recipe, Record, TrainConfig
from detrlab.errors import UserError, did_you_mean
from detrlab.presets import BESIDE_THE_LADDER, FIVE, LADDER, model_config, preset
from detrlab.recipes import RECIPES

_FIXED = ("model.preset", "model.num_classes", "data.data", "train.seed")
_PARTS: dict[str, type[Record]] = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}


@dataclass(frozen=True)
class Entrant:
    """One column of the comparison: a preset, and what it changes about the recipe.

    Attributes:
        name: unique in the comparison; also its folder's name.
        preset: the row of ``presets.PRESETS`` it starts from.
        changes: settings that differ from the recipe, such as ``{"model.num_queries": 50}``.
    """

    name: str
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def configs(
        self, recipe: Recipe, num_classes: int
    ) -> tuple[ModelConfig, TrainConfig, DataConfig]:
        """What this entrant trains with under ``recipe``.

        Raises:
            UserError: the settings are impossible together.
        """
        own: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "data": {}}
        for key, value in self.changes.items():
            part, name = key.split(".", 1)
            own[part][name] = value
        return (
            model_config(self.preset, num_classes, **{**recipe.model, **own["model"]}),
            recipe.train_for(self.preset).change(**own["train"]),
            recipe.data.change(**own["data"]),
        )


@dataclass(frozen=True)
class Foreign:
    """Another tool's predictions, judged in the same table.

    Attributes:
        name: what the table calls it.
        file: COCO result records.
    """

    name: str
    file: Path

    @classmethod
    def parse(cls, text: str) -> Foreign:
        """Read ``NAME=FILE``.

        Raises:
            UserError: it is not that, or there is no such file.
        """
        name, separator, file = text.partition("=")
        if not separator or not name.strip() or not file:
            raise UserError(f"predictions {text!r} cannot be read: write NAME=FILE")
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"predictions {name.strip()!r}: there is no file {file}")
        return cls(name.strip(), path)


def named(models: Sequence[str]) -> tuple[Entrant, ...]:
    """Entrants for preset names; none means the five detectors of the original experiment.

    Raises:
        UserError: a name is unknown or stands twice.
    """
    for model in models:
        preset(model)  # refuses unknown names
    return _unique(Entrant(model, model) for model in models or FIVE)


def ladder() -> tuple[Entrant, ...]:
    """From DETR to two-stage Deformable DETR one idea at a time, and DC5 beside it."""
    return named(in_order([*LADDER, "detr-dc5"]))


def in_order(presets: Sequence[str]) -> list[str]:
    """Presets up the ladder, each variant behind the rung that it is a variant of."""
    return sorted(
        presets,
        key=lambda name: (LADDER.index(BESIDE_THE_LADDER.get(name, name)), name not in LADDER),
    )


def varied(model: str, variations: Iterable[str]) -> tuple[Entrant, ...]:
    """Every combination of the values asked for, as variations of one detector.

    Args:
        model: the preset that is varied.
        variations: each ``setting=value,value,...``. A setting may name its part
            (``train.clip``); ``queries=50,100`` means ``num_queries``.

    Raises:
        UserError: a setting is unknown or a value is impossible; the closest match is named.
    """
    preset(model)  # refuses unknown names
    axes = [_axis(text) for text in variations]
    if not axes:
        raise UserError("nothing varies: write for example --vary num_queries=50,100,300")
    return _unique(
        Entrant(
            " ".join(f"{key.split('.', 1)[1]}={_word(value)}" for key, value in combination),
            model,
            dict(combination),
        )
        for combination in itertools.product(*axes)
    )


def _axis(text: str) -> list[tuple[str, Any]]:
    setting, separator, values = text.partition("=")
    if not separator or not values.strip():
        raise UserError(f"variation {text!r} cannot be read: write setting=value,value,...")
    parsed = [yaml.safe_load(value) if value.strip() else value for value in _split(values)]
    key = _setting(setting.strip(), parsed)
    if key in _FIXED:
        raise UserError(f"{setting.strip()!r} cannot be varied: a comparison keeps it fixed")
    return [(key, value) for value in parsed]


def _split(values: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _setting(name: str, values: Sequence[Any]) -> str:
    """The full name of a setting, ``part.field``."""
    if name == "queries" and all(isinstance(value, int) for value in values):
        name = "num_queries"
    part, _, rest = name.partition(".")
    if part in _PARTS and rest in _PARTS[part].model_fields:
        return name
    homes = [part for part, record in _PARTS.items() if name in record.model_fields]
    if homes:
        return f"{homes[0]}.{name}"
    known = [field for record in _PARTS.values() for field in record.model_fields]
    raise UserError(f"unknown setting {name!r}{did_you_mean(name, known)}")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unique(entrants: Iterable[Entrant]) -> tuple[Entrant, ...]:
    entrants = tuple(entrants)
    names = [entrant.name for entrant in entrants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name!r} takes part twice: name every detector once")
    return entrants


def recipe_differences(recipe: Recipe) -> tuple[str, ...]:
    """How a recipe differs from the named one it started from, a line for each setting."""
    if recipe.name not in RECIPES:
        return (f"recipe {recipe.name!r} is not one of detrlab's own",)
    lines = changes(RECIPES[recipe.name].to_dict(), recipe.to_dict(), "the preset's own")
    # A named recipe is made for any data; what it is used on stands beside it.
    return tuple(line for line in lines if not line.startswith(("description:", "data.data:")))


def config_differences(before: ModelConfig, after: ModelConfig) -> tuple[str, ...]:
    """What one architecture changes about another, a line for each setting."""
    lines = changes(before.to_dict(), after.to_dict())
    return tuple(line for line in lines if not line.startswith("preset:"))


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], absent: str = "nothing"
) -> tuple[str, ...]:
    """``name: old -> new`` for every plain value that differs, names of parts joined by dots."""
    old, new = _flat(before), _flat(after)
    return tuple(
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in {**old, **new}
        if old.get(key, absent) != new.get(key, absent)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
