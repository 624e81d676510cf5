"""A validation split for data without one: reproducible and stratified by class."""

from __future__ import annotations

import posixpath

import numpy as np

from detrlab.data.keyed import keyed
from detrlab.data.table import Table

VAL_SHARE = 0.2


def stratified_split(table: Table, share: float = VAL_SHARE, *, seed: int) -> tuple[Table, Table]:
    """Two tables without a common image; both have about the same proportion of every class.

    Classes are split from the rarest to the most frequent, each over the images that are not
    assigned yet; images without objects come last. The same seed and data give the same split.

    Args:
        table: all images.
        share: of the images for validation.
        seed: of the random choice.

    Returns:
        the training and the validation table, in the original order.
    """
    group = _groups(table)
    count = int(group.max(initial=-1)) + 1
    in_val = np.full(count, -1, dtype=np.int8)  # -1 undecided, 0 train, 1 val
    rank = np.argsort(keyed("split", seed, count).permutation(count))
    owners = group[table.owners()]
    with_class = [np.unique(owners[table.labels == k]) for k in range(table.num_classes)]
    occupied = sorted((members for members in with_class if len(members)), key=len)
    for members in [*occupied, np.setdiff1d(np.arange(count), owners)]:
        free = members[in_val[members] < 0]
        free = free[np.argsort(rank[free])]
        already = int((in_val[members] == 1).sum())
        wanted = round(share * len(members)) - already
        if len(members) > 1 and not already:
            wanted = max(wanted, 1)  # a class of two or more images is in both splits
        wanted = min(max(wanted, 0), len(free))
        in_val[free[:wanted]] = 1
        in_val[free[wanted:]] = 0
    chosen = in_val[group] == 1 if count else np.zeros(0, dtype=bool)
    return (
        table.select(np.flatnonzero(~chosen), "train"),
        table.select(np.flatnonzero(chosen), "val"),
    )


def _groups(table: Table) -> np.ndarray:
    """(N,) a number for each image; augmented versions of one image have the same number.

    Roboflow writes several versions of an image as ``NAME.rf.HASH.jpg``: splitting them would
    leak validation images into training.
    """
    names: dict[str, int] = {}
    group = np.empty(len(table), dtype=np.int64)
    for i in range(len(table)):
        file = table.file(i)
        stem, mark, _ = posixpath.basename(file).partition(".rf.")
        group[i] = names.setdefault(stem if mark else file, len(names))
    return group
