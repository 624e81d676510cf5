"""Confidence intervals, paired differences and p-values.

Images are resampled together for all detectors, because the detectors share the images. With
several seeds, the seeds of each detector are resampled too. Intervals are percentiles, widened
for small numbers of images and seeds. ``docs/comparing.md`` explains the choices, and shows by
simulation how often the intervals cover the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from detrlab.compare.resampling import (
    OVERALL,
    Floats,
    Sample,
    informative_images,
    quantity_names,
    resample,
)
from detrlab.evaluation.matching import Matches

LEVEL = 0.95
"""Confidence level of all intervals."""
TARGET = 0.01
"""One AP: two detectors count as equal if they differ by less."""
LEARNT = 0.01
"""One AP: a detector with less has not learnt to find anything, and equals nothing."""
MOST_SEEDS = 20
"""``Needed`` never suggests more trainings of each detector than this."""
_POWER = 0.8
"""Probability with which a true difference is detected."""


@dataclass(frozen=True)
class Interval:
    """A quantity in [0, 1] with its confidence interval; None where no object can be judged."""

    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Needed:
    """What it takes to detect a true difference of one AP with 80 % probability.

    Attributes:
        images: with the present seeds; None where no number of images suffices.
        seeds: of each detector, with the present images; None where 20 do not suffice, or where
            one seed gives no information about the variance between seeds.
    """

    images: int | None
    seeds: int | None


@dataclass(frozen=True)
class Difference:
    """How much better ``second`` is than ``first``, in one quantity.

    Attributes:
        quantity: one of ``OVERALL``, or ``class:NAME``.
        estimate: second minus first, in [-1, 1]; None where no object can be judged.
        p: probability of a difference at least as large if there were none.
        p_adjusted: the same after Holm's correction for all planned comparisons.
        images: number of images judged.
        seeds: number of trained models of ``first`` and of ``second``.
        learnt: whether ``first`` and ``second`` have learnt, see ``LEARNT``.
    """

    first: str
    second: str
    quantity: str
    estimate: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    images: int
    seeds: tuple[int, int]
    needed: Needed | None
    learnt: tuple[bool, bool] = (True, True)

    @property
    def about_models(self) -> bool:
        """True when a detector has one seed: then only these trained models were compared."""
        return min(self.seeds) < 2


@dataclass(frozen=True, eq=False)
class Findings:
    """Intervals of every quantity of every detector, and differences of every planned pair."""

    intervals: dict[str, dict[str, Interval]]
    differences: tuple[Difference, ...]
    images: int

    def of(self, quantity: str) -> list[Difference]:
        """The planned pairs in one quantity."""
        return [each for each in self.differences if each.quantity == quantity]

    def has_learnt(self, name: str) -> bool:
        """Whether a detector reaches one AP; one that cannot be judged is not accused."""
        return _has_learnt(self.intervals[name])


def compare(
    detectors: Mapping[str, Sequence[Matches]],
    pairs: Iterable[tuple[str, str]],
    *,
    replicates: int = 2000,
    seed: int = 0,
    target: float = TARGET,
) -> Findings:
    """Intervals for every detector and for every planned pair.

    Args:
        detectors: by name, the matches of each trained model, all on the same images.
        pairs: the planned comparisons, by name; each further pair makes all of them stricter.
        replicates: draws; 2000 resolve a p-value of about .001.
        seed: of the resampling.
        target: the difference that ``Difference.needed`` is about.
    """
    first = next(iter(detectors.values()))[0]
    samples = resample(detectors, replicates, seed)
    informative = informative_images(first)
    quantities = list(enumerate(quantity_names(first.classes)))
    intervals = {
        name: {
            quantity: _own_interval(Spread.of([sample.at(q)], [1], informative[q]))
            for q, quantity in quantities
        }
        for name, sample in samples.items()
    }
    spreads = {
        (before, after, quantity): Spread.of(
            [samples[before].at(q), samples[after].at(q)], [-1, 1], informative[q]
        )
        for before, after in pairs
        for q, quantity in quantities
    }
    raw = {key: spread.p_value() for key, spread in spreads.items()}
    adjusted = _adjust(raw)
    differences = []
    for key, spread in spreads.items():
        known = not math.isnan(spread.estimate)
        low, high = spread.interval() if known else (None, None)
        differences.append(
            Difference(
                *key,
                estimate=spread.estimate if known else None,
                low=low,
                high=high,
                p=raw[key],
                p_adjusted=adjusted[key],
                images=first.num_images,
                seeds=(len(detectors[key[0]]), len(detectors[key[1]])),
                needed=spread.needed(first.num_images, target),
                learnt=(_has_learnt(intervals[key[0]]), _has_learnt(intervals[key[1]])),
            )
        )
    return Findings(intervals, tuple(differences), first.num_images)


def _has_learnt(quantities: Mapping[str, Interval]) -> bool:
    estimate = quantities["ap"].estimate
    return estimate is None or estimate >= LEARNT


@dataclass(frozen=True, eq=False)
class Spread:
    """The distribution of one detector's quantity, or of the difference of two."""

    estimate: float
    """NaN where nothing can be judged."""
    replicates: Floats
    """Those in which something could be judged."""
    variance: float
    """Of the estimate, images and seeds together, with so many degrees of ``freedom``."""
    freedom: float
    common: float
    """Variance over images that all seeds share."""
    own: float
    """Variance over images that each seed has for itself, with one seed each."""
    training: float | None
    """Variance between trainings on unlimited images; None where a detector has one seed only."""
    runs: int
    """The smallest number of seeds."""

    @classmethod
    def of(cls, samples: Sequence[Sample], signs: Sequence[int], images: int) -> Spread:
        """Combine samples, each with its sign; ``images`` is how many affect the quantity.

        The seeds of a detector vary on the same images for two reasons: the trainings differ,
        and each trained model errs on other images. Both parts shrink with the number of seeds,
        and the variance between seeds measures both. The variance over images therefore adds
        only the part that all seeds share, or the second part would count twice.
        """
        estimate = float(_signed(signs, [sample.full.mean() for sample in samples]))
        total = _signed(signs, [sample.replicates() for sample in samples])
        judged = ~np.isnan(total)
        if math.isnan(estimate) or judged.sum() < 2:
            return cls(math.nan, total[judged], 0.0, 1.0, 0.0, 0.0, None, 1)
        # The bootstrap gives the variance of a population of n; n - 1 of them are free.
        correction = images / max(1, images - 1)
        by_images = _signed(signs, [sample.drawn.mean(axis=0) for sample in samples])[judged]
        own = [correction * sample.own_variance(judged) for sample in samples]
        counts = [len(sample.full) for sample in samples]
        shared = sum(part / count for part, count in zip(own, counts, strict=True))
        common = max(0.0, correction * float(by_images.var()) - shared)
        scatter = [sample.seed_variance() for sample in samples]
        parts = [(common, max(1, images - 1))]
        parts += [(v / n, n - 1) for v, n in zip(scatter, counts, strict=True) if n > 1]
        training = [max(0.0, v - part) for v, part in zip(scatter, own, strict=True)]
        return cls(
            estimate=estimate,
            replicates=total[judged],
            variance=sum(part for part, _ in parts),
            freedom=_satterthwaite(parts),
            common=common,
            own=sum(own),
            training=sum(training) if min(counts) > 1 else None,
            runs=min(counts),
        )

    @property
    def bias(self) -> float:
        """Mean of the replicates minus the estimate."""
        return float(self.replicates.mean()) - self.estimate

    @cached_property
    def _stretch(self) -> float:
        """How much wider the true distribution is than that of the replicates."""
        spread = float(self.replicates.std())
        return math.sqrt(self.variance) / spread if spread > 0 else 1.0

    @cached_property
    def _distance(self) -> float:
        """Half the width of the interval in standard errors, by Student's t."""
        return float(stdtrit(self.freedom, (1 + LEVEL) / 2))

    @cached_property
    def _tail(self) -> float | None:
        """The share of the replicates that lies beyond each end of the interval.

        None where these would be too few, as with few seeds, of which there are only a few
        different draws: then Student's t gives the interval.
        """
        tail = float(ndtr(-self._distance * self._stretch))
        return tail if tail * len(self.replicates) >= 5 else None

    def interval(self) -> tuple[float, float]:
        """The ends of the interval: percentiles, further out for few images and few seeds.

        Source: Hesterberg, What teachers should know about the bootstrap, arXiv 1411.5279,
        section 5.3 (expanded percentile interval).
        """
        if self.variance == 0:
            return self.estimate, self.estimate
        if self._tail is None:
            half = self._distance * math.sqrt(self.variance)
            centre = self.estimate + self.bias
            return centre - half, centre + half
        low, high = np.quantile(self.replicates, [self._tail, 1 - self._tail])
        return float(low), float(high)

    def p_value(self) -> float | None:
        """Two-sided: the level at which an end of the interval is 0."""
        if math.isnan(self.estimate):
            return None
        if self.variance == 0:
            return 1.0 if self.estimate == 0 else 0.0
        distance = abs(self.estimate + self.bias) / math.sqrt(self.variance)
        if self._tail is not None:
            count = len(self.replicates)
            below = float((self.replicates < 0).sum() + 0.5 * (self.replicates == 0).sum())
            tail = (min(below, count - below) + 1) / (count + 2)
            by_percentile = -float(ndtri(min(tail, 0.5))) / self._stretch
            rare = tail * count < 5  # too few replicates beyond 0 for a percentile
            distance = max(by_percentile, distance) if rare else by_percentile
        return min(1.0, 2 * float(stdtr(self.freedom, -distance)))

    def needed(self, images: int, target: float = TARGET) -> Needed | None:
        """Images, or seeds, at which a true difference of ``target`` is probably detected."""
        if math.isnan(self.estimate) or self.variance == 0:
            return None
        allowed = (target / float(ndtri((1 + LEVEL) / 2) + ndtri(_POWER))) ** 2
        left = allowed - (self.training or 0.0) / self.runs
        by_image = (self.common + self.own / self.runs) * images
        enough = math.ceil(by_image / left) if left > 0 else None
        if self.training is None:
            return Needed(enough, None)
        left = allowed - self.common
        of_one = self.own + self.training
        if of_one > left * MOST_SEEDS:
            return Needed(enough, None)
        return Needed(enough, max(2, math.ceil(of_one / left)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(p_values), 0, -1) * np.asarray(p_values)[order]
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


Key = tuple[str, str, str]


def _adjust(raw: dict[Key, float | None]) -> dict[Key, float | None]:
    """Holm's correction within each family: one overall quantity, the sizes, the classes."""
    families: dict[str, dict[Key, float]] = {}
    for key, p in raw.items():
        if p is not None:
            family = key[2].split(":")[0]
            families.setdefault("sizes" if family in OVERALL[3:] else family, {})[key] = p
    adjusted: dict[Key, float | None] = dict.fromkeys(raw)
    for tests in families.values():
        adjusted.update(zip(tests, holm(list(tests.values())), strict=True))
    return adjusted


def _own_interval(spread: Spread) -> Interval:
    """The interval of one detector's AP, without the bias of AP on few images.

    AP takes the best precision at each recall or beyond, and the best of a few noisy values is
    too high. The replicates show this bias once more, on top of the estimate's own: both are
    subtracted. In a difference the biases of two detectors cancel.
    """
    if math.isnan(spread.estimate):
        return Interval(None, None, None)
    low, high = (end - 2 * spread.bias for end in spread.interval())
    low, high = max(0.0, low), min(1.0, high)
    return Interval(spread.estimate, min(low, spread.estimate), max(high, spread.estimate))


def _signed(signs: Sequence[int], values: Sequence[Any]) -> Floats:
    """Sum of the values, each with its sign."""
    return np.tensordot(np.asarray(signs, np.float64), np.stack(values), axes=1)


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    total = sum(part for part, _ in parts)
    if total == 0:
        return 1.0
    return total**2 / sum(part**2 / freedom for part, freedom in parts)
