"""Repeat-factor sampling: images of rare classes come several times in an epoch.

Source: arXiv 1908.03195 (LVIS), section 4.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from detrlab.data.table import Table

_EXACT = 2.0**20
"""Factors are whole multiples of one over this, so that sums are exact in any order."""


def repeat_factors(table: Table, threshold: float) -> np.ndarray:
    """(N,) how often each image comes in an epoch on average, at least 1.

    The largest ``sqrt(threshold / f)`` of an image's classes, where f is the share of the images
    that have the class.
    """
    owners = table.owners()[~table.crowd]
    pairs = np.unique(owners * table.num_classes + table.labels[~table.crowd])
    images, classes = np.divmod(pairs, table.num_classes)
    share = np.bincount(classes, minlength=table.num_classes) / max(len(table), 1)
    of_class = np.sqrt(threshold / np.where(share > 0, share, 1))
    factors = np.ones(len(table))
    np.maximum.at(factors, images, of_class[classes])
    return np.round(factors * _EXACT) / _EXACT


def epoch_length(table: Table, threshold: float) -> int:
    """Images of an epoch, repeated ones counted: the same in every epoch."""
    return int(repeat_factors(table, threshold).sum()) if threshold > 0 else len(table)


def repeated(
    order: np.ndarray, table: Table, threshold: float, draws: np.random.Generator
) -> np.ndarray:
    """The positions of an epoch's images, in a new order.

    Differs from the reference: fractional parts are not drawn alone but by one offset for the
    whole order. Each image still comes as often as its factor says on average, rounded down or
    up, and all epochs have the same length, so that every epoch has the same number of steps.

    Args:
        order: the positions of all images, shuffled.
        table: the images.
        threshold: see ``repeat_factors``.
        draws: the generator.
    """
    ends = np.floor(np.cumsum(repeat_factors(table, threshold)[order]) + draws.random())
    counts = np.diff(ends, prepend=0).astype(np.int64)
    # One image more, in some epochs, is left out.
    return draws.permutation(np.repeat(order, counts))[: epoch_length(table, threshold)]


def times_before(order: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How often each image of an epoch's batches came before, so that its draws differ."""
    seen: Counter[int] = Counter()
    found = []
    for part in order:
        counts = []
        for position in part.tolist():
            counts.append(seen[position])
            seen[position] += 1
        found.append(np.array(counts, dtype=np.int64))
    return found
