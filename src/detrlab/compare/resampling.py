"""AP of every detector on the same resampled images (bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detrlab.evaluation.matching import Matches, Resampler

Floats = NDArray[np.float64]

OVERALL = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The quantities that are judged beside AP per class; the names of ``Metrics``."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One detector, resampled."""

    full: Floats
    """(S, quantities) on all images, for each of S seeds."""
    drawn: Floats
    """(S, replicates, quantities) on resampled images."""
    seeds: NDArray[np.int64]
    """(replicates, S) the seeds that each replicate draws."""

    def at(self, quantity: int) -> Sample:
        """The same for one quantity, without the last axis."""
        return Sample(self.full[:, quantity], self.drawn[:, :, quantity], self.seeds)

    def seed_variance(self) -> float:
        """Variance between the seeds on all images; 0 with one seed."""
        return float(self.full.var(ddof=1)) if len(self.full) > 1 else 0.0

    def own_variance(self, judged: NDArray[np.bool_]) -> float:
        """Variance over images of one seed, beyond the part all seeds share; 0 with one seed."""
        count = len(self.full)
        if count < 2:
            return 0.0
        drawn = self.drawn[:, judged]
        of_one, of_mean = float(drawn.var(axis=1).mean()), float(drawn.mean(axis=0).var())
        return max(0.0, of_one - of_mean) * count / (count - 1)

    def replicates(self) -> Floats:
        """(replicates,) means over the drawn seeds and images.

        The mean of S drawn seeds varies by (S - 1) / S too little. This is corrected here.
        """
        mean = self.drawn.mean(axis=0)
        count = len(self.full)
        if count < 2:
            return mean
        picked = np.take_along_axis(self.drawn.T, self.seeds, axis=1).mean(axis=1)
        return mean + math.sqrt(count / (count - 1)) * (picked - mean)


def resample(
    detectors: Mapping[str, Sequence[Matches]], replicates: int, seed: int
) -> dict[str, Sample]:
    """Resample the images, the same draws for all detectors, and each detector's seeds."""
    rng = np.random.default_rng(seed)
    resamplers = {name: [Resampler(run) for run in runs] for name, runs in detectors.items()}
    num_images = next(iter(detectors.values()))[0].num_images
    full = {
        name: np.stack(
            [quantities(run.average_precision(np.ones((1, num_images))))[0] for run in runs]
        )
        for name, runs in resamplers.items()
    }
    drawn: dict[str, list[Floats]] = {name: [] for name in resamplers}
    # In parts: the weights of 2000 draws of 100,000 images would take 1.6 GB.
    part = max(1, min(replicates, 2_000_000 // max(1, num_images)))
    for start in range(0, replicates, part):
        count = min(part, replicates - start)
        picks = rng.integers(0, num_images, (count, num_images))
        weights = np.stack([np.bincount(row, minlength=num_images) for row in picks]).astype(float)
        for name, runs in resamplers.items():
            drawn[name].append(
                np.stack([quantities(run.average_precision(weights)) for run in runs])
            )
    return {
        name: Sample(
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


def quantity_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Every quantity that is judged: ``OVERALL``, then ``class:NAME``."""
    return (*OVERALL, *(f"class:{name}" for name in classes))


def informative_images(matches: Matches) -> list[int]:
    """For each quantity, the number of images that hold objects it is about."""

    def count(objects: NDArray[np.bool_]) -> int:
        return len(np.unique(matches.object_image[objects]))

    all_sizes = matches.counts[:, 0]
    by_size = [count(matches.counts[:, area]) for area in (1, 2, 3)]
    by_class = [count(all_sizes & (matches.object_label == k)) for k in range(matches.num_classes)]
    return [count(all_sizes)] * 3 + by_size + by_class


def _nanmean(values: Floats) -> Floats:
    """Mean over the second axis of what is not NaN; NaN where all are."""
    judged = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(judged, values, 0.0).sum(axis=1) / judged.sum(axis=1)
