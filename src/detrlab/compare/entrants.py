"""Which detectors take part: presets, the rungs of the ladder, or variations of one detector."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from detrlab.config import DataConfig, ModelConfig, Recipe, TrainConfig
from detrlab.errors import UserError, did_you_mean
from detrlab.presets import (
    BESIDE_THE_LADDER,
    FIVE,
    LADDER,
    PRESETS,
    model_config,
    preset,
    settings,
)
from detrlab.presets.ladder import OF_THE_RECIPE
from detrlab.recipes import RECIPES

_FIXED = ("model.preset", "model.num_classes", "data.data", "train.seed")


@dataclass(frozen=True)
class Entrant:
    """One detector of the comparison: a preset, and what it changes in the recipe."""

    name: str
    """Unique in the comparison; also the name of its folders."""
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings by their full names, such as ``{"model.num_queries": 50}``."""

    def configs(
        self, recipe: Recipe, num_classes: int
    ) -> tuple[ModelConfig, TrainConfig, DataConfig]:
        """What this entrant trains with under ``recipe``.

        Raises:
            UserError: the settings contradict each other.
        """
        own = by_part(self.changes)
        try:
            return (
                model_config(self.preset, num_classes, shared=recipe.model, **own["model"]),
                recipe.train_for(self.preset).change(**own["train"]),
                recipe.data.change(**own["data"]),
            )
        except UserError as error:
            raise UserError(f"recipe {recipe.name!r}: {error}") from None


def named(models: Sequence[str | Entrant]) -> tuple[Entrant, ...]:
    """Entrants for preset names; none means the five detectors of the original experiment.

    Raises:
        UserError: a name is unknown or given twice.
    """
    return _unique(
        [
            each if isinstance(each, Entrant) else Entrant(each, *OF_THE_RECIPE.get(each, (each,)))
            for each in models or FIVE
        ]
    )


def ladder(first: str | None = None, last: str | None = None) -> tuple[Entrant, ...]:
    """From DETR to DEIMv2 step by step, DC5 and dense one-to-one beside their steps.

    Args:
        first: begin here; None means DETR.
        last: end here; None means DEIMv2.

    Raises:
        UserError: there is no such step, or ``last`` comes before ``first``.
    """
    steps = in_order([*LADDER, "detr-dc5", *OF_THE_RECIPE])
    for name in filter(None, (first, last)):
        if name not in steps:
            raise UserError(f"{name!r} is no step of the ladder{did_you_mean(name, steps)}")
    begin = 0 if first is None else steps.index(first)
    end = len(steps) if last is None else steps.index(last) + 1
    if begin >= end:
        raise UserError(f"{last!r} comes before {first!r} on the ladder: exchange them")
    return named(steps[begin:end])


def placed(names: Iterable[str]) -> bool:
    """Whether all have a place in ``in_order``."""
    return all(name in PRESETS or name in OF_THE_RECIPE for name in names)


def in_order(names: Sequence[str]) -> list[str]:
    """Presets in the order of the ladder, each variant after the rung it is a variant of.

    Those that are no part of it stand before the next rung in the order of ``PRESETS``.
    """
    presets = list(PRESETS)

    def place(name: str) -> tuple[int, bool, int, bool]:
        rung = BESIDE_THE_LADDER.get(name, name)
        index = presets.index(rung)
        following = next(each for each in presets[index:] if each in LADDER)
        return LADDER.index(following), rung in LADDER, index, name != rung

    return sorted(names, key=place)


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
    made = []
    for combination in itertools.product(*axes):
        words = [
            f"{key.split('.', 1)[1]}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in combination
        ]
        made.append(Entrant(" ".join(words), model, dict(combination)))
    return _unique(made)


def _unique(entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    names = [entrant.name for entrant in entrants]
    for entrant in entrants:
        preset(entrant.preset)
        if names.count(entrant.name) > 1:
            raise UserError(f"{entrant.name!r} takes part twice: name every detector once")
    return tuple(entrants)


def known_settings() -> tuple[str, ...]:
    """Every setting by its full name, such as ``train.clip``."""
    parts: dict[str, Iterable[str]] = {
        "model": settings(),
        "train": TrainConfig.model_fields,
        "data": DataConfig.model_fields,
    }
    return tuple(f"{part}.{name}" for part, names in parts.items() for name in names)


def by_part(changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{"train.clip": 1}`` -> ``{"model": {}, "train": {"clip": 1}, "data": {}}``."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "data": {}}
    for key, value in changes.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return parts


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
    known = {*known_settings(), *_FIXED}
    for key in (name, f"model.{name}", f"train.{name}", f"data.{name}"):
        if key in known:
            return key
    words = [key.split(".", 1)[1] for key in sorted(known)]
    raise UserError(f"unknown setting {name!r}{did_you_mean(name, words)}")


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
        name = prefix + key
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
