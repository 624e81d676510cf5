"""Which detectors take part: presets, the rungs of the ladder, or variations of one detector."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from detrlab.config import DataConfig, ModelConfig, Recipe, TrainConfig
from detrlab.errors import UserError, did_you_mean
from detrlab.presets import BESIDE_THE_LADDER, FIVE, LADDER, model_config, preset, settings
from detrlab.recipes import RECIPES

_FIXED = ("model.preset", "model.num_classes", "data.data", "train.seed")
_PARTS = ("model", "train", "data")


@dataclass(frozen=True)
class Entrant:
    """One detector of the comparison: a preset, and what it changes in the recipe.

    Attributes:
        name: unique in the comparison; also the name of its folders.
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
            UserError: the settings contradict each other.
        """
        own: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "data": {}}
        for key, value in self.changes.items():
            part, name = key.split(".", 1)
            own[part][name] = value
        return (
            model_config(self.preset, num_classes, shared=recipe.model, **own["model"]),
            recipe.train_for(self.preset).change(**own["train"]),
            recipe.data.change(**own["data"]),
        )


def named(models: Sequence[str]) -> tuple[Entrant, ...]:
    """Entrants for preset names; none means the five detectors of the original experiment.

    Raises:
        UserError: a name is unknown or given twice.
    """
    return _unique(Entrant(model, _known(model)) for model in models or FIVE)


def ladder() -> tuple[Entrant, ...]:
    """From DETR to two-stage Deformable DETR one change at a time, and DC5 beside it."""
    return named(in_order([*LADDER, "detr-dc5"]))


def in_order(presets: Sequence[str]) -> list[str]:
    """Presets in the order of the ladder, each variant after the rung it is a variant of."""
    return sorted(
        presets,
        key=lambda name: (LADDER.index(BESIDE_THE_LADDER.get(name, name)), name not in LADDER),
    )


def varied(model: str, variations: Iterable[str]) -> tuple[Entrant, ...]:
    """Variations of one detector: every combination of the given values.

    Args:
        model: the preset that is varied.
        variations: each ``setting=value,value,...``. A setting may name its part
            (``train.clip``); ``queries=50,100`` means ``num_queries``.

    Raises:
        UserError: a setting is unknown (the closest match is named) or a value is impossible.
    """
    axes = [_axis(text) for text in variations]
    if not axes:
        raise UserError("nothing varies: write for example --vary num_queries=50,100,300")
    return _unique(
        Entrant(
            " ".join(f"{key.split('.', 1)[1]}={_word(value)}" for key, value in combination),
            _known(model),
            dict(combination),
        )
        for combination in itertools.product(*axes)
    )


def _known(model: str) -> str:
    preset(model)
    return model


def _axis(text: str) -> list[tuple[str, Any]]:
    setting, _, values = text.partition("=")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        parsed = []
    if not parsed or not isinstance(parsed, list):
        raise UserError(f"variation {text!r} cannot be read: write setting=value,value,...")
    key = _setting(setting.strip(), parsed)
    if key in _FIXED:
        raise UserError(f"{setting.strip()!r} cannot be varied: a comparison keeps it fixed")
    return [(key, value) for value in parsed]


def _setting(name: str, values: Sequence[Any]) -> str:
    """The full name of a setting, ``part.field``."""
    if name == "queries" and all(isinstance(value, int) for value in values):
        name = "num_queries"
    fields = {"train": TrainConfig.model_fields, "data": DataConfig.model_fields}
    known = {f"model.{field}" for field in (*settings(), "preset", "num_classes")}
    known |= {f"{part}.{field}" for part, names in fields.items() for field in names}
    found = [key for key in (name, *(f"{part}.{name}" for part in _PARTS)) if key in known]
    if not found:
        words = [key.split(".", 1)[1] for key in sorted(known)]
        raise UserError(f"unknown setting {name!r}{did_you_mean(name, words)}")
    return found[0]


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
    # A named recipe is made for any data. What it is used on is shown beside it.
    return tuple(line for line in lines if not line.startswith(("description:", "data.data:")))


def config_differences(before: ModelConfig, after: ModelConfig) -> tuple[str, ...]:
    """How one architecture differs from another: the change of parts, then the settings."""
    lines = changes(before.to_dict(), after.to_dict())
    lines = tuple(line for line in lines if not line.startswith("preset:"))
    if type(before) is type(after):
        return lines
    return ((type(after).__doc__ or after.preset).splitlines()[0], *lines)


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], absent: str = "nothing"
) -> tuple[str, ...]:
    """``name: old -> new`` for every value that differs; names of nested values have dots."""
    old, new = _flat(before), _flat(after)
    return tuple(
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in {**old, **new}
        if old.get(key, absent) != new.get(key, absent)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
