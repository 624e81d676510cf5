"""Near duplicates of images: a perceptual hash and an exact search for close hashes."""

from __future__ import annotations

import numpy as np

THUMB = 17
"""Side of the grey thumbnails that are compared."""
BITS = 128
MAX_DISTANCE = 7
"""Bits that may differ; less than the number of bands, so that at least one band is equal."""
_BANDS = 8
MAX_DIFFERENCE = 6.0
"""Mean difference in grey levels up to which two thumbnails count as the same image."""
_LARGE_BUCKET, _WINDOW = 500, 20
"""In a bucket of hundreds of similar images, each is compared with this many others only."""
_POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
_MIN_CONTRAST = 4.0
"""Standard deviation of the grey levels below which thumbnails are not compared."""


def fingerprint(thumbs: np.ndarray) -> np.ndarray:
    """(N, 17, 17) uint8 grey -> (N, 16) uint8, 128 bits.

    Each bit says whether brightness increases from one coarse cell to the next: 64 bits to the
    right, 64 bits down. Brightness, contrast, scale and compression hardly change them.
    """
    grey = thumbs.astype(np.int32)
    # 9 x 9 cells out of 17 x 17 points, by averaging each point with its neighbours.
    smooth = grey[:, :-1, :-1] + grey[:, 1:, :-1] + grey[:, :-1, 1:] + grey[:, 1:, 1:]
    cells = np.pad(smooth, ((0, 0), (0, 1), (0, 1)), mode="edge")[:, ::2, ::2]
    right = (cells[:, :8, 1:] > cells[:, :8, :-1]).reshape(len(grey), 64)
    down = (cells[:, 1:, :8] > cells[:, :-1, :8]).reshape(len(grey), 64)
    return np.packbits(np.concatenate([right, down], axis=1), axis=1)


def near_pairs(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of nearly equal images, by position; brightness and compression may differ.

    Two fingerprints that differ in at most 7 of 128 bits agree in at least one of 8 bands of
    16 bits. So comparing images that share a band finds every pair without comparing all.
    Images without contrast are left out, because they all look the same.

    Args:
        thumbs: (N, 17, 17) uint8 grey.
    """
    prints = fingerprint(thumbs)
    informative = np.flatnonzero(thumbs.reshape(len(thumbs), -1).std(axis=1) >= _MIN_CONTRAST)
    bands = prints.view(np.uint16)
    found: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        values = bands[informative, band]
        order = informative[np.argsort(values, kind="stable")]
        ordered = bands[order, band]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        for group in np.split(order, starts[1:]):
            if len(group) > 1:
                _compare(np.sort(group), prints, thumbs, found)
    return sorted(found)


def _compare(
    group: np.ndarray,
    prints: np.ndarray,
    thumbs: np.ndarray,
    found: set[tuple[int, int]],
) -> None:
    """Add the true pairs of one bucket."""
    for k in range(len(group) - 1):
        reach = _WINDOW if len(group) > _LARGE_BUCKET else len(group)
        i, others = int(group[k]), group[k + 1 : k + 1 + reach]
        close = others[_POPCOUNT[prints[others] ^ prints[i]].sum(axis=1) <= MAX_DISTANCE]
        if len(close):
            same = close[_difference(thumbs[i], thumbs[close]) <= MAX_DIFFERENCE]
            found.update((i, j) for j in same.tolist())


def _difference(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) mean difference in grey levels after brightness and contrast are normalized."""
    a, b = one.reshape(1, -1).astype(np.float32), others.reshape(len(others), -1).astype(np.float32)
    spread_a, spread_b = a.std(axis=1, keepdims=True), b.std(axis=1, keepdims=True)
    a = (a - a.mean(axis=1, keepdims=True)) / spread_a
    b = (b - b.mean(axis=1, keepdims=True)) / spread_b
    difference: np.ndarray = np.abs(a - b).mean(axis=1) * np.maximum(spread_a, spread_b)[:, 0]
    return difference
