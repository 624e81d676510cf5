"""Simulated detectors whose true difference is known.

Every image has a difficulty, every object too, and both are the same for all detectors; that is
what makes paired comparisons sharper than unpaired ones, here as in reality. A detector finds an
object with a probability that falls with difficulty and rises with its skill, places the box
less exactly where the object is harder, and adds false alarms. Trainings of one architecture
differ in skill from seed to seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detrlab.evaluation.matching import Matches, match
from detrlab.evaluation.records import Detected, GroundTruth


@dataclass(frozen=True)
class World:
    """What the images hold. ``shares`` are those of the classes."""

    shares: tuple[float, ...] = (0.55, 0.3, 0.15)
    objects: float = 5.0
    clumping: float = 1.5
    image_difficulty: float = 0.8
    object_difficulty: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """How good a detector is, and how much trainings differ."""

    skill: float = 1.0
    precision: float = 0.08
    small_bonus: float = 0.0
    false_alarms: float = 6.0
    seed_spread: float = 0.0

    def trained(self, rng: np.random.Generator) -> Architecture:
        """One training: its own skill."""
        return replace(
            self, skill=self.skill + self.seed_spread * rng.standard_normal(), seed_spread=0.0
        )


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with the difficulty of each object."""

    truth: GroundTruth
    difficulty: np.ndarray


def draw_scenes(rng: np.random.Generator, num_images: int, world: World = World()) -> Scenes:
    """Images with objects of three classes, 10 to 300 pixels large."""
    rate = rng.gamma(world.clumping, world.objects / world.clumping, num_images)
    image = np.repeat(np.arange(num_images), rng.poisson(rate))
    count = len(image)
    size = np.exp(rng.uniform(np.log(10), np.log(300), (count, 1)))
    sides = size * np.exp(rng.normal(0, 0.2, (count, 2)))
    corner = rng.uniform(0, 1000, (count, 2))
    hard_image = world.image_difficulty * rng.standard_normal(num_images)
    difficulty = hard_image[image] + world.object_difficulty * rng.standard_normal(count)
    truth = GroundTruth(
        image_ids=tuple(range(num_images)),
        classes=tuple(f"class {k}" for k in range(len(world.shares))),
        category_ids=tuple(range(len(world.shares))),
        image=image,
        label=rng.choice(len(world.shares), count, p=world.shares),
        boxes=np.hstack([corner, sides]),
        area=sides.prod(axis=1),
        crowd=np.zeros(count, bool),
        sizes=np.full((num_images, 2), 1000),
        file_names=("",) * num_images,
    )
    return Scenes(truth, difficulty - 0.4 * np.log(size[:, 0] / 55))


def detect(rng: np.random.Generator, scenes: Scenes, detector: Architecture) -> Detected:
    """The detections of one trained detector in the scenes."""
    truth = scenes.truth
    count, num_classes = len(truth.label), truth.num_classes
    small = detector.small_bonus * (truth.area < 32**2)
    ease = detector.skill + small - scenes.difficulty
    found = rng.random(count) < 1 / (1 + np.exp(-1.5 * ease))
    looseness = detector.precision * np.exp(-0.3 * ease)[:, None]
    center = truth.boxes[:, :2] + truth.boxes[:, 2:] / 2
    center = center + looseness * rng.standard_normal((count, 2)) * truth.boxes[:, 2:]
    sides = truth.boxes[:, 2:] * np.exp(looseness * rng.standard_normal((count, 2)))
    confused = rng.random(count) < 0.08
    label = np.where(confused, rng.integers(0, num_classes, count), truth.label)
    true_score = _squash(0.8 + 0.6 * ease + 0.8 * rng.standard_normal(count))
    true = Detected(truth.image, label, np.hstack([center - sides / 2, sides]), true_score)
    alarms = rng.poisson(detector.false_alarms, truth.num_images)
    where = np.repeat(np.arange(truth.num_images), alarms)
    spread = np.exp(rng.uniform(np.log(10), np.log(300), (len(where), 2)))
    false = Detected(
        where,
        rng.integers(0, num_classes, len(where)),
        np.hstack([rng.uniform(0, 1000, (len(where), 2)), spread]),
        _squash(-1.2 + 1.0 * rng.standard_normal(len(where))),
    )
    return Detected.join([true.select(found), false])


def trainings(
    rng: np.random.Generator, scenes: Scenes, detector: Architecture, seeds: int
) -> tuple[Matches, ...]:
    """The judged detections of several trainings of one architecture."""
    return tuple(
        match(scenes.truth, detect(rng, scenes, detector.trained(rng))) for _ in range(seeds)
    )


def _squash(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
