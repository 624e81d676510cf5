"""The generated sets: their pixels and boxes are pinned, and they are what docs/shapes.md says."""

import hashlib

import numpy as np
import pytest

from detrlab.data import shapes

# If one of these changes, the set is another set: give it another name instead.
FIRST_TWENTY = {
    shapes.SHAPES: "b07914e98d8bc6e021cdf51e6e13d491a2b6cb3e28ebb019136ed5fdb2e899ff",
    shapes.SHAPES_EASY: "ce9a99ed5ab6b7bb2ba9bc71a1f7cc84306f1ccc82aa8844187dbb3bbd49b788",
    shapes.FIGURES: "9050b34c8fbac0c515ceef0417de63605e3ec326c97be55efa19efcf2b7c3f1e",
}
WHOLE_SET = "576482fcfbf04621d08b40aa4bbfda3ed17f409e38678b6283e476d42ab804db"


def fingerprint(numbers, style=shapes.SHAPES) -> str:
    digest = hashlib.sha256()
    for number in numbers:
        picture = shapes.draw(number, style)
        height, width, _ = picture.pixels.shape
        digest.update(np.array([number, height, width], dtype="<i8").tobytes())
        digest.update(picture.boxes.astype("<i8").tobytes())
        digest.update(picture.labels.astype("<i8").tobytes())
        digest.update(picture.pixels.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("style", FIRST_TWENTY, ids=lambda style: style.name)
def test_first_images_are_pinned(style):
    numbers = [*range(1, 11), *range(shapes.FIRST_VAL_ID, shapes.FIRST_VAL_ID + 10)]
    assert fingerprint(numbers, style) == FIRST_TWENTY[style]


@pytest.mark.slow
def test_whole_set_is_pinned():
    train = range(1, shapes.SHAPES.train + 1)
    val = range(shapes.FIRST_VAL_ID, shapes.FIRST_VAL_ID + shapes.SHAPES.val)
    assert fingerprint([*train, *val]) == WHOLE_SET


def test_words_of_the_stream_become_integers_as_specified():
    draws = shapes._Draws(7)
    words = np.random.Philox(key=np.array([7, 0x736861706573], dtype=np.uint64)).random_raw(3)
    expected = [(int(word) >> 32) * 10 // 2**32 for word in words]
    assert [draws.below(10) for _ in range(3)] == expected


def test_boxes_are_the_extents_of_what_is_visible():
    """Without noise and clutter in the way: the changed pixels of an object drawn alone."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        number = int(rng.integers(1, 500))
        picture = shapes.draw(number)
        height, width, _ = picture.pixels.shape
        for x, y, w, h in picture.boxes:
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height


def test_figures_have_the_areas_of_their_geometry():
    """Against the formulas of the outlines, at a radius where pixels hardly matter."""
    radius = 400
    expected = {
        "disc": np.pi,
        "ring": np.pi * 0.7,
        "square": (2 * 181 / 256) ** 2,
        "triangle": 3 * np.sqrt(3) / 4,
        "cross": 2 * 1.9 * 0.6 - 0.36,
        "star": 1.1226,  # pentagram of circumradius 1
        "oval": np.pi * 5 / 9,
        "pentagon": 2.3776,
        "half": np.pi - np.arccos(1 / 4) + np.sqrt(15) / 16,
        "ell": 1.4**2 - 0.9**2,
        "tee": 1.4 * 0.5 + 0.9 * 0.5,
        "kite": 1.2,
        "frame": 1.4**2 - 0.8**2,
        "moon": np.pi * 5 / 8 - np.arccos(1 / 2) + np.sqrt(3) / 4,
    }
    for kind, area in expected.items():
        stamp = shapes._stamp(shapes._Draws(3), kind, radius)
        pixels = stamp.coverage.sum() / 4
        assert pixels * 16 / radius**2 == pytest.approx(area, rel=0.02), kind


def test_turning_table_is_the_cosine():
    expected = [round(1024 * np.cos(2 * np.pi * k / 32)) for k in range(-32, 33)]
    assert [shapes._cosine(k) for k in range(-32, 33)] == expected


def test_small_tables_are_the_first_images_of_the_large_one():
    small, _ = shapes.shapes(train=5, val=1)
    larger, val = shapes.shapes(train=8, val=2)
    assert len(larger) == 8
    assert val.image_id(0) == shapes.FIRST_VAL_ID
    for i in range(5):
        one, other = small.read(i), larger.read(i)
        assert one.image_id == other.image_id == i + 1
        assert (one.image == other.image).all()
        assert (one.boxes == other.boxes).all()


def test_contents_are_varied():
    train, _ = shapes.shapes(train=120, val=1)
    counts = np.diff(train.starts)
    assert (counts == 0).any()
    assert counts.max() >= 6
    assert set(train.labels.tolist()) == set(range(6))
    assert (train.areas < 32**2).mean() > 0.25
    assert (train.areas > 96**2).mean() > 0.02
    assert len(np.unique(train.sizes, axis=0)) >= 4
