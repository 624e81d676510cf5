"""Near duplicates: found however they were re-encoded, and nothing else is."""

import io

import numpy as np
import pytest
from PIL import Image

from detrlab.data.duplicates import MAX_DISTANCE, THUMB, fingerprint, near_pairs
from detrlab.data.images import inspect
from detrlab.data.shapes import shapes

CHANGES = {
    "smaller": lambda im: im.resize((im.width * 2 // 3, im.height * 2 // 3)),
    "larger": lambda im: im.resize((im.width * 2, im.height * 2)),
    "brighter": lambda im: im.point(lambda v: min(255, int(v * 1.1 + 10))),
    "less contrast": lambda im: im.point(lambda v: int(128 + (v - 128) * 0.8)),
    "grey": lambda im: im.convert("L"),
}


def thumb(image, quality=90):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return inspect(stream.getvalue(), "x", THUMB).thumb


@pytest.fixture(scope="module")
def pictures():
    table, _ = shapes(train=60, val=1)
    return [Image.fromarray(table.picture(i).permute(1, 2, 0).numpy()) for i in range(60)]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(pictures, change):
    thumbs = [thumb(image) for image in pictures]
    copies = [thumb(CHANGES[change](image), quality=60) for image in pictures[::3]]
    found = set(near_pairs(np.stack(thumbs + copies)))
    expected = {(3 * i, 60 + i) for i in range(20)}
    assert len(expected & found) >= 17  # soft backgrounds leave some bits to chance
    assert not found - expected
    bits = fingerprint(np.stack(thumbs + copies))
    assert all((bits[i] != bits[j]).sum() <= MAX_DISTANCE for i, j in found)


def test_pictures_without_contrast_are_not_all_alike():
    flat = np.full((5, THUMB, THUMB), 200, dtype=np.uint8)
    assert near_pairs(flat) == []


def test_many_alike_do_not_take_forever():
    base = np.asarray(Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (5, 5), dtype=np.uint8)
    ).resize((THUMB, THUMB), Image.Resampling.BICUBIC))  # fmt: skip
    pairs = near_pairs(np.repeat(base[None], 600, axis=0))
    assert len(pairs) < 600 * 25
