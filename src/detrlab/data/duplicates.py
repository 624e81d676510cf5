"""Near duplicates of images: a perceptual hash, and all pairs of close hashes."""

from __future__ import annotations

import numpy as np

THUMB = 17
"""Side of the grey thumbnails that are compared."""
BITS = 128
MAX_DISTANCE = 7
"""Bits that may differ."""
MAX_DIFFERENCE = 6.0
"""Mean difference in grey levels up to which two thumbnails count as the same image."""
_MOST = 20
"""Among hundreds of similar images, each is compared with this many others only."""
_MIN_CONTRAST = 4.0
"""Standard deviation of the grey levels below which thumbnails are not compared."""


def fingerprint(thumbs: np.ndarray) -> np.ndarray:
    """(N, 17, 17) uint8 grey -> (N, 128) bool.

    Each bit says whether brightness increases from one coarse cell to the next: 64 bits to the
    right, 64 bits down. Brightness, contrast, scale and compression hardly change them.
    """
    grey = thumbs.astype(np.int32)
    # 9 x 9 cells out of 17 x 17 points, by averaging each point with its neighbours.
    smooth = grey[:, :-1, :-1] + grey[:, 1:, :-1] + grey[:, :-1, 1:] + grey[:, 1:, 1:]
    cells = np.pad(smooth, ((0, 0), (0, 1), (0, 1)), mode="edge")[:, ::2, ::2]
    right = (cells[:, :8, 1:] > cells[:, :8, :-1]).reshape(len(grey), 64)
    down = (cells[:, 1:, :8] > cells[:, :-1, :8]).reshape(len(grey), 64)
    return np.concatenate([right, down], axis=1)


def near_pairs(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of nearly equal images, by position; brightness and compression may differ.

    Images without contrast are left out, because they all look the same.

    Args:
        thumbs: (N, 17, 17) uint8 grey.
    """
    chosen = np.flatnonzero(thumbs.reshape(len(thumbs), -1).std(axis=1) >= _MIN_CONTRAST)
    # As numbers +1 and -1, two fingerprints have a product of 128 minus twice their distance.
    signs = 2 * fingerprint(thumbs[chosen]).astype(np.float32) - 1
    found = []
    for first in range(0, len(chosen), 256):
        products = signs[first : first + 256] @ signs[first:].T
        for k, close in enumerate(products >= BITS - 2 * MAX_DISTANCE, start=first):
            others = chosen[first + np.flatnonzero(close)]
            others = others[others > chosen[k]][:_MOST]
            if len(others):
                same = _difference(thumbs[chosen[k]], thumbs[others]) <= MAX_DIFFERENCE
                found += [(int(chosen[k]), other) for other in others[same].tolist()]
    return found


def _difference(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) mean difference in grey levels after brightness and contrast are normalized."""
    a, b = (x.reshape(-1, THUMB * THUMB).astype(np.float32) for x in (one, others))
    spread_a, spread_b = a.std(axis=1, keepdims=True), b.std(axis=1, keepdims=True)
    a = (a - a.mean(axis=1, keepdims=True)) / spread_a
    b = (b - b.mean(axis=1, keepdims=True)) / spread_b
    difference: np.ndarray = np.abs(a - b).mean(axis=1) * np.maximum(spread_a, spread_b)[:, 0]
    return difference
