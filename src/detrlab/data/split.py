"""A validation split where the data has none: reproducible and stratified by class."""

from __future__ import annotations

import numpy as np

from detrlab.data.keyed import keyed
from detrlab.data.table import Table

VAL_SHARE = 0.2


def stratified_split(table: Table, share: float = VAL_SHARE, *, seed: int) -> tuple[Table, Table]:
    """Two tables without a common image; every class is in both in about the same proportion.

    Classes are dealt with from the rarest on, each by the images that are still free; images
    without objects come last. The same seed and data give the same split everywhere.

    Args:
        table: all images.
        share: the validation's part of the images.
        seed: key of the draw.

    Returns:
        the training and the validation table, in the original order.
    """
    images = len(table)
    in_val = np.full(images, -1, dtype=np.int8)  # -1 undecided, 0 train, 1 val
    order = keyed("split", seed, images).permutation(images)
    rank = np.argsort(order)
    owners = np.repeat(np.arange(images), np.diff(table.starts))
    members = [np.unique(owners[table.labels == k]) for k in range(table.num_classes)]
    members.append(np.setdiff1d(np.arange(images), owners))
    occupied = [images_of for images_of in members[:-1] if len(images_of)]
    for images_of in [*sorted(occupied, key=len), members[-1]]:
        free = images_of[in_val[images_of] < 0]
        free = free[np.argsort(rank[free])]
        wanted = round(share * len(images_of)) - int((in_val[images_of] == 1).sum())
        # A class of two or more images is seen on both sides.
        if len(images_of) > 1 and not (in_val[images_of] == 1).any():
            wanted = max(wanted, 1)
        wanted = min(max(wanted, 0), len(free))
        in_val[free[:wanted]] = 1
        in_val[free[wanted:]] = 0
    val = np.flatnonzero(in_val == 1)
    return table.select(np.flatnonzero(in_val != 1), "train"), table.select(val, "val")
