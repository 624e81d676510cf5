"""How sure one can be: intervals, paired differences, and verdicts in plain words.

Images are resampled together for all detectors, because they share the images; with several
seeds, the seeds of each detector are resampled too. Intervals are percentiles, widened for the
small number of images and seeds. ``docs/statistics.md`` explains the choices and shows by
simulation how often the intervals cover the truth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrlab.errors import UserError
from detrlab.evaluation.matching import Matches, Resampler

Floats = NDArray[np.float64]

OVERALL = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The quantities that are judged beside AP per class; the names of ``Metrics``."""
_POWER = 0.8
"""The chance of telling a difference that "to resolve" promises."""
_MOST_SEEDS = 20
"""More trainings of each detector than this are no advice."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A detector in a comparison.

    Attributes:
        name: as the table calls it.
        runs: the matches of each trained model, one for each seed, on the same images.
    """

    name: str
    runs: tuple[Matches, ...]


@dataclass(frozen=True)
class Interval:
    """A quantity in [0, 1] and where it may truly lie; None where no object can be judged."""

    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Needed:
    """What it would take to tell a true difference of ``target``, four times out of five.

    Attributes:
        target: in [0, 1]; .01 is one AP.
        images: with the seeds there are; None where no number of images suffices.
        seeds: for each detector, with the images there are; None where 20 do not suffice, or
            where one seed says nothing about how seeds differ.
        both: (images, seeds) that suffice together where neither does alone; None where even
            20 seeds differ too much.
    """

    target: float
    images: int | None
    seeds: int | None
    both: tuple[int, int] | None


@dataclass(frozen=True)
class Difference:
    """How much better ``second`` is than ``first``, in one quantity.

    Attributes:
        first: name of the one before.
        second: name of the one after.
        quantity: one of ``OVERALL``, or ``class:NAME``.
        estimate: second minus first, in [-1, 1]; None where no object can be judged.
        low: lower end of the interval.
        high: upper end of the interval.
        p: chance of a difference at least as large if there were none.
        p_adjusted: the same after Holm's correction for all planned comparisons.
        images: number of images judged.
        seeds: trained models of ``first`` and of ``second``.
        needed: what it would take to tell a difference of one AP.
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

    @property
    def about_models(self) -> bool:
        """True when a detector has one seed: then only these trained models were compared."""
        return min(self.seeds) < 2


@dataclass(frozen=True, eq=False)
class Comparison:
    """The statistics of a comparison.

    Attributes:
        intervals: of every quantity of every contender, by name.
        differences: of every planned pair in every quantity.
        level: of the intervals, such as .95.
        images: number of images judged.
    """

    intervals: dict[str, dict[str, Interval]]
    differences: tuple[Difference, ...]
    level: float
    images: int

    def of(self, quantity: str) -> list[Difference]:
        """The planned pairs in one quantity."""
        return [each for each in self.differences if each.quantity == quantity]

    def verdicts(self, quantity: str = "ap") -> list[str]:
        """One sentence for each planned pair."""
        return [verdict(each, self.level) for each in self.of(quantity)]

    def notes(self) -> list[str]:
        """What a reader must know to read the verdicts."""
        lines = [
            f"intervals at {100 * self.level:.3g} %, by resampling {self.images} images together "
            "for all detectors; p-values are Holm's, for all planned comparisons"
        ]
        if any(each.about_models for each in self.differences):
            lines.append(
                "where a detector has one seed, a verdict is about these trained models; whether "
                "the architecture is better, only several seeds can tell"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a json file."""
        return {
            "notes": self.notes(),
            "level": self.level,
            "images": self.images,
            "intervals": {
                name: {quantity: asdict(interval) for quantity, interval in rows.items()}
                for name, rows in self.intervals.items()
            },
            "differences": [
                {**asdict(each), "verdict": verdict(each, self.level)} for each in self.differences
            ],
        }


def neighbours(names: Sequence[str]) -> list[tuple[str, str]]:
    """The planned comparisons of a ladder: each step against the one before."""
    return list(itertools.pairwise(names))


def compare(
    contenders: Sequence[Contender],
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    target: float = 0.01,
) -> Comparison:
    """Intervals for every contender and for every planned pair.

    Args:
        contenders: judged on the same images.
        pairs: the planned comparisons, by name; each neighbour with the next if not given.
            Every further pair makes all of them stricter (Holm).
        replicates: resamplings; 2000 resolve a p of about .001.
        seed: of the resampling.
        level: of the intervals.
        target: the difference that "to resolve" speaks of; .01 is one AP.

    Raises:
        UserError: the contenders were not judged on the same images, or a pair is unknown.
    """
    _check(contenders)
    by_name = {contender.name: contender for contender in contenders}
    planned = list(neighbours(list(by_name)) if pairs is None else pairs)
    for name in (name for pair in planned for name in pair):
        if name not in by_name:
            raise UserError(f"{name!r} is not compared here; known: {', '.join(by_name)}")
    samples = _resample(contenders, replicates, seed)
    images = contenders[0].runs[0].num_images
    informative = _informative_images(contenders[0].runs[0])
    quantities = quantity_names(contenders[0].runs[0].classes)
    intervals = {
        name: {
            quantity: _own_interval(_Spread.of([sample.at(q)], [1], informative[q]), level)
            for q, quantity in enumerate(quantities)
        }
        for name, sample in samples.items()
    }
    spreads = {
        (first, second, quantity): _Spread.of(
            [samples[first].at(q), samples[second].at(q)], [-1, 1], informative[q]
        )
        for first, second in planned
        for q, quantity in enumerate(quantities)
    }
    raw = {key: spread.p_value() for key, spread in spreads.items()}
    adjusted = _adjust(raw)
    differences = []
    for key, spread in spreads.items():
        interval = _interval(spread, level)
        differences.append(
            Difference(
                *key,
                estimate=interval.estimate,
                low=interval.low,
                high=interval.high,
                p=raw[key],
                p_adjusted=adjusted[key],
                images=images,
                seeds=(len(by_name[key[0]].runs), len(by_name[key[1]].runs)),
                needed=spread.needed(target, level, images),
            )
        )
    return Comparison(intervals, tuple(differences), level, images)


def quantity_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Every quantity that is judged: ``OVERALL``, then ``class:NAME``."""
    return (*OVERALL, *(f"class:{name}" for name in classes))


def verdict(difference: Difference, level: float = 0.95) -> str:
    """One difference in plain words.

    It says that one is ahead, or that the two are equal for practical purposes (the whole
    interval lies within one AP of 0), or that they cannot be told apart here, and what that
    would take. With one seed it speaks of the trained models.
    """
    d = difference
    what = _quantity_words(d.quantity)
    if d.estimate is None or d.low is None or d.high is None or d.p_adjusted is None:
        return f"{d.second} against {d.first}: nothing to judge in {what}"
    first, second = _spoken(d.first, d.seeds[0], d), _spoken(d.second, d.seeds[1], d)
    ahead, behind = (second, first) if d.estimate >= 0 else (first, second)
    sign = 1.0 if d.estimate >= 0 else -1.0
    low, high = sorted((sign * d.low, sign * d.high))
    size = f"{_points(sign * d.estimate)} {what} [{_points(low)}, {_points(high)}]"
    base = f"{d.images} images" + ("" if d.about_models else f" with {_seed_words(d.seeds)}")
    if d.p_adjusted <= 1 - level:
        return f"{ahead} beats {behind} by {size}"
    if low > 0:
        return (
            f"{ahead} is ahead of {behind} by {size}, but with several comparisons planned that "
            f"may be chance (adjusted p = {d.p_adjusted:.3f})"
        )
    target = d.needed.target if d.needed else 0.01
    if max(-low, high) <= target:
        return f"{ahead} and {behind} are equal within {100 * target:.3g} {what}: {size}"
    return (
        f"{ahead} and {behind} are not distinguishable on {base} ({size})"
        f"{_needed_words(d.needed, what)}"
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """One contender resampled.

    Attributes:
        full: (S, quantities) on all images, for each seed.
        drawn: (S, replicates, quantities) on resampled images.
        seeds: (replicates, S) the seeds that each replicate draws.
    """

    full: Floats
    drawn: Floats
    seeds: NDArray[np.int64]

    def at(self, quantity: int) -> _Sample:
        """The same for one quantity, without the last axis."""
        return _Sample(self.full[:, quantity], self.drawn[:, :, quantity], self.seeds)

    def seed_variance(self) -> float:
        """Variance between the seeds on all images; 0 with one seed."""
        return float(self.full.var(ddof=1)) if len(self.full) > 1 else 0.0

    def own_variance(self, judged: NDArray[np.bool_]) -> float:
        """Variance over images that one seed has beyond what all seeds share; 0 with one seed."""
        count = len(self.full)
        if count < 2:
            return 0.0
        drawn = self.drawn[:, judged]
        of_one, of_mean = float(drawn.var(axis=1).mean()), float(drawn.mean(axis=0).var())
        return max(0.0, of_one - of_mean) * count / (count - 1)

    def replicates(self) -> Floats:
        """(replicates,) means over drawn seeds and images.

        S drawn seeds spread by (S - 1) / S too little about their mean; that is put right here.
        """
        mean = self.drawn.mean(axis=0)
        count = len(self.full)
        if count < 2:
            return mean
        picked = np.take_along_axis(self.drawn.T, self.seeds, axis=1).mean(axis=1)
        return mean + math.sqrt(count / (count - 1)) * (picked - mean)


@dataclass(frozen=True, eq=False)
class _Spread:
    """The distribution of a sum of contenders (one, or two with opposite signs).

    Attributes:
        estimate: NaN where nothing can be judged.
        replicates: those in which something could be judged.
        variance: of the estimate, images and seeds together.
        freedom: degrees of freedom of that variance.
        common: variance over images that all seeds share.
        own: variance over images that each seed has for itself, at one seed each.
        training: variance between trainings on endless images, at one seed each; None where a
            contender has one seed only.
        runs: the smallest number of seeds.
    """

    estimate: float
    replicates: Floats
    variance: float
    freedom: float
    common: float
    own: float
    training: float | None
    runs: int

    @classmethod
    def of(cls, samples: Sequence[_Sample], signs: Sequence[int], images: int) -> _Spread:
        """Combine contenders; ``images`` is how many of them bear on the quantity.

        Seeds scatter on the same images because trainings differ and because each training
        errs on other images; both fall with the number of seeds, and their scatter measures
        both. The images add only what all seeds share, lest the second part count twice.
        """
        estimate = float(_signed(signs, [sample.full.mean() for sample in samples]))
        total = _signed(signs, [sample.replicates() for sample in samples])
        judged = ~np.isnan(total)
        if math.isnan(estimate) or judged.sum() < 2:
            return cls(math.nan, total[judged], 0.0, 1.0, 0.0, 0.0, None, 1)
        # The bootstrap's variance is that of a population of n, of which n - 1 are free.
        shrinkage = images / max(1, images - 1)
        by_images = _signed(signs, [sample.drawn.mean(axis=0) for sample in samples])[judged]
        own = [shrinkage * sample.own_variance(judged) for sample in samples]
        counts = [len(sample.full) for sample in samples]
        shared = sum(part / count for part, count in zip(own, counts, strict=True))
        common = max(0.0, shrinkage * float(by_images.var()) - shared)
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
    def stretch(self) -> float:
        """How much wider the true spread is than that of the replicates."""
        spread = float(self.replicates.std())
        return math.sqrt(self.variance) / spread if spread > 0 else 1.0

    @property
    def bias(self) -> float:
        """How far the replicates lie above the estimate on average."""
        return float(self.replicates.mean()) - self.estimate

    @property
    def is_coarse(self) -> bool:
        """Whether 95 % lie too far out for so many replicates: then the tails are taken for a t's.

        So it is with few seeds, which have few ways of being drawn.
        """
        from scipy.stats import norm, t

        tail = float(norm.cdf(-float(t.ppf(0.975, self.freedom)) * self.stretch))
        return tail * len(self.replicates) < 5

    def quantiles(self, level: float) -> tuple[float, float]:
        """The ends of the interval: percentiles, further out for few images and few seeds.

        Source: Hesterberg, What teachers should know about the bootstrap, arXiv 1411.5279,
        section 5.3 (expanded percentile interval).
        """
        from scipy.stats import norm, t

        if self.variance == 0:
            return self.estimate, self.estimate
        distance = float(t.ppf((1 + level) / 2, self.freedom))
        tail = float(norm.cdf(-distance * self.stretch))
        if self.is_coarse or tail * len(self.replicates) < 5:
            half = distance * math.sqrt(self.variance)
            centre = self.estimate + self.bias
            return centre - half, centre + half
        low, high = np.quantile(self.replicates, [tail, 1 - tail])
        return float(low), float(high)

    def p_value(self) -> float | None:
        """Two-sided: the level at which ``quantiles`` would just touch 0."""
        from scipy.stats import norm, t

        if math.isnan(self.estimate):
            return None
        if self.variance == 0:
            return 1.0 if self.estimate == 0 else 0.0
        from_t = abs(self.estimate + self.bias) / math.sqrt(self.variance)
        count = len(self.replicates)
        ties = 0.5 * float((self.replicates == 0).sum())
        below = float((self.replicates < 0).sum()) + ties
        tail = (min(below, count - below) + 1) / (count + 2)
        distance = -float(norm.ppf(min(tail, 0.5))) / self.stretch
        if self.is_coarse:
            distance = from_t
        elif tail * count < 5:
            distance = max(distance, from_t)
        return min(1.0, 2 * float(t.sf(distance, self.freedom)))

    def needed(self, target: float, level: float, images: int) -> Needed | None:
        """Images or seeds at which a true difference of ``target`` would probably be told."""
        from scipy.stats import norm

        if math.isnan(self.estimate) or self.variance == 0:
            return None
        allowed = (target / float(norm.ppf((1 + level) / 2) + norm.ppf(_POWER))) ** 2

        def images_for(seeds: int) -> int | None:
            left = allowed - (self.training or 0.0) / seeds
            by_image = (self.common + self.own / seeds) * images
            return math.ceil(by_image / left) if left > 0 else None

        if self.training is None:
            return Needed(target, images_for(self.runs), None, None)
        alone = images_for(self.runs)
        seeds = _enough_seeds(self.own + self.training, allowed - self.common)
        both = None
        if alone is None and seeds is None:
            # The fewest seeds that need at most twice the images that 20 seeds would need.
            fewest = images_for(_MOST_SEEDS)
            for count in range(self.runs, _MOST_SEEDS + 1):
                enough = images_for(count)
                if fewest is not None and enough is not None and enough <= 2 * fewest:
                    both = (enough, count)
                    break
        return Needed(target, alone, seeds, both)


def _enough_seeds(variance_of_one: float, allowed: float) -> int | None:
    """Seeds whose mean varies as little as allowed; None where 20 do not."""
    if variance_of_one > allowed * _MOST_SEEDS:
        return None
    return max(2, math.ceil(variance_of_one / allowed))


def _check(contenders: Sequence[Contender]) -> None:
    if not contenders or not all(contender.runs for contender in contenders):
        raise UserError("nothing to compare: give at least one contender, each with a run")
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise UserError(f"two contenders have the same name: {', '.join(names)}")
    first = contenders[0].runs[0]
    for contender in contenders:
        for run in contender.runs:
            if run.image_ids != first.image_ids or run.classes != first.classes:
                raise UserError(
                    f"{contender.name!r} was judged on other images or classes than "
                    f"{contenders[0].name!r}: only results on the same data can be compared"
                )


def _resample(contenders: Sequence[Contender], replicates: int, seed: int) -> dict[str, _Sample]:
    """All contenders on the same drawn images; the seeds of each drawn by themselves."""
    rng = np.random.default_rng(seed)
    num_images = contenders[0].runs[0].num_images
    resamplers = {
        contender.name: [Resampler(run) for run in contender.runs] for contender in contenders
    }
    everything = np.ones((1, num_images))
    full = {
        name: np.stack([quantities(each.average_precision(everything))[0] for each in runs])
        for name, runs in resamplers.items()
    }
    drawn: dict[str, list[Floats]] = {name: [] for name in resamplers}
    # In pieces, because the weights of 2000 resamplings of 100,000 images are 1.6 GB.
    piece = max(1, min(replicates, 2_000_000 // max(1, num_images)))
    for start in range(0, replicates, piece):
        count = min(piece, replicates - start)
        picks = rng.integers(0, num_images, (count, num_images))
        weights = np.stack([np.bincount(row, minlength=num_images) for row in picks]).astype(float)
        for name, runs in resamplers.items():
            drawn[name].append(
                np.stack([quantities(each.average_precision(weights)) for each in runs])
            )
    return {
        name: _Sample(
            full=full[name],
            drawn=np.concatenate(drawn[name], axis=1),
            seeds=rng.integers(0, len(runs), (replicates, len(runs))),
        )
        for name, runs in resamplers.items()
    }


def quantities(table: Floats) -> Floats:
    """(W, K, A, T) table of AP -> (W, 6 + K): ``OVERALL``, then AP of each class.

    Means are over what can be judged; NaN where nothing can.
    """
    everything = table[:, :, 0]  # (W, K, T)
    columns = [
        _nanmean(everything.mean(axis=2)),
        _nanmean(everything[:, :, 0]),
        _nanmean(everything[:, :, 5]),
        *(_nanmean(table[:, :, area].mean(axis=2)) for area in (1, 2, 3)),
    ]
    return np.concatenate([np.stack(columns, axis=1), everything.mean(axis=2)], axis=1)


def _nanmean(values: Floats) -> Floats:
    """Mean over the second axis of what is not NaN; NaN where all are."""
    judged = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(judged, values, 0.0).sum(axis=1) / judged.sum(axis=1)


def _informative_images(matches: Matches) -> list[int]:
    """For each quantity, how many images hold objects it is about."""

    def count(objects: NDArray[np.bool_]) -> int:
        return len(np.unique(matches.object_image[objects]))

    everything = count(matches.counts[:, 0])
    by_size = [count(matches.counts[:, area]) for area in (1, 2, 3)]
    by_class = [
        count(matches.counts[:, 0] & (matches.object_label == k))
        for k in range(matches.num_classes)
    ]
    return [everything] * 3 + by_size + by_class


def _signed(signs: Sequence[int], values: Sequence[Any]) -> Floats:
    """Sum of the contenders' values, each with its sign."""
    return np.tensordot(np.asarray(signs, np.float64), np.stack(values), axes=1)


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    total = sum(part for part, _ in parts)
    if total == 0:
        return 1.0
    return total**2 / sum(part**2 / freedom for part, freedom in parts)


def _interval(spread: _Spread, level: float) -> Interval:
    if math.isnan(spread.estimate):
        return Interval(None, None, None)
    return Interval(spread.estimate, *spread.quantiles(level))


def _own_interval(spread: _Spread, level: float) -> Interval:
    """The interval of one detector's AP, which few images flatter.

    AP takes the best precision at each recall or beyond, and the best of few noisy values is too
    high. Replicates show such a bias once more, on top of the estimate's own: both go. In a
    difference the biases of two detectors cancel. An AP lies between 0 and 1, and so does its
    interval.
    """
    if math.isnan(spread.estimate):
        return Interval(None, None, None)
    low, high = spread.quantiles(level)
    low, high = max(0.0, low - 2 * spread.bias), min(1.0, high - 2 * spread.bias)
    return Interval(spread.estimate, min(low, spread.estimate), max(high, spread.estimate))


def _adjust(
    raw: dict[tuple[str, str, str], float | None],
) -> dict[tuple[str, str, str], float | None]:
    """Holm's correction within each family: one overall quantity, the sizes, the classes."""
    families: dict[str, list[tuple[str, str, str]]] = {}
    for key, p in raw.items():
        if p is not None:
            families.setdefault(_family(key[2]), []).append(key)
    adjusted: dict[tuple[str, str, str], float | None] = dict.fromkeys(raw)
    for keys in families.values():
        values = holm([raw[key] or 0.0 for key in keys])
        adjusted.update(zip(keys, values, strict=True))
    return adjusted


def _family(quantity: str) -> str:
    if quantity.startswith("class:"):
        return "classes"
    return "sizes" if quantity in OVERALL[3:] else quantity


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _points(value: float) -> str:
    """A value in [0, 1] as people say it: .018 is 1.8."""
    return f"{100 * value:.1f}".replace("-0.0", "0.0")


def _quantity_words(quantity: str) -> str:
    if quantity.startswith("class:"):
        return f"AP on {quantity.removeprefix('class:')}"
    return {
        "ap": "AP",
        "ap50": "AP50",
        "ap75": "AP75",
        "ap_small": "AP on small objects",
        "ap_medium": "AP on medium objects",
        "ap_large": "AP on large objects",
    }[quantity]


def _needed_words(needed: Needed | None, what: str) -> str:
    if needed is None:
        return ""
    ways = []
    if needed.images is not None:
        ways.append(f"about {_rounded(needed.images)} images")
    if needed.seeds is not None:
        ways.append(f"{needed.seeds} seeds")
    if needed.both is not None:
        ways.append(f"about {_rounded(needed.both[0])} images and {needed.both[1]} seeds")
    goal = f"{100 * needed.target:.3g} {what}"
    if not ways:
        return f": seeds differ too much to resolve {goal}, even with {_MOST_SEEDS} of each"
    return f": to resolve {goal} here you need {' or '.join(ways)}"


def _rounded(count: int) -> str:
    """Two significant digits: more would be pretended."""
    digits = max(0, len(str(count)) - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"


def _spoken(name: str, seeds: int, difference: Difference) -> str:
    """A detector as a verdict calls it: the one model that was trained, or the detector."""
    if not difference.about_models:
        return name
    return f"this trained {name}" if seeds < 2 else f"{name} with {seeds} seeds"


def _seed_words(seeds: tuple[int, int]) -> str:
    if seeds[0] == seeds[1]:
        return f"{seeds[0]} seeds"
    return f"{seeds[0]} and {seeds[1]} seeds"
