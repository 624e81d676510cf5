"""Tiles: every object is found once, also where tiles meet."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from detrlab.detections import Detections
from detrlab.errors import UserError
from detrlab.images import as_pixels
from detrlab.predicting.tiles import Tiled, merge, tiles_of

SIZE = (400, 520)


class Blobs:
    """Finds bright rectangles at least 2 px wide; of a cut one, what it is shown."""

    classes = ("blob", "other")

    def __init__(self, smallest=0):
        self.smallest = smallest  # a smaller share of the picture's long side is not seen
        self.shown = []

    def predict_each(self, images, *, threshold="auto", limit=100, keep_image=True):  # noqa: ARG002
        for image in images:
            pixels = as_pixels(image)
            self.shown.append(tuple(pixels.shape[1:]))
            labelled, _ = ndimage.label(pixels[0].numpy() > 127)
            least = max(2, self.smallest * max(pixels.shape[1:]))
            boxes = [
                (x.start, y.start, x.stop, y.stop)
                for y, x in ndimage.find_objects(labelled)
                if min(x.stop - x.start, y.stop - y.start) >= least
            ]
            yield detections(boxes, pixels.shape[1:])


def detections(boxes, size, scores=None, labels=None):
    count = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores or [0.9] * count),
        labels=torch.tensor(labels or [0] * count, dtype=torch.int64),
        classes=("blob", "other"),
        category_ids=(1, 2),
        size=tuple(size),
    )


def picture(boxes, size=SIZE):
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    return pixels


def found_in(boxes, detector=None, side=160, overlap=0.2, size=SIZE):
    tiled = Tiled(detector or Blobs(), side, overlap)
    found = tiled.predict(picture(boxes, size))
    return sorted(tuple(int(side) for side in box) for box in found.boxes.tolist())


def test_tiles_cover_the_picture_and_overlap():
    whole, *tiles = tiles_of(400, 520, 160, 0.2)
    assert whole == (0, 0, 520, 400)
    seen = np.zeros((400, 520), dtype=int)
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (160, 160)
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    xs = sorted({x0 for x0, *_ in tiles})
    assert all(160 - (b - a) >= 0.2 * 160 for a, b in itertools.pairwise(xs))


def test_a_small_picture_is_seen_once():
    assert tiles_of(100, 150, 160, 0.2) == [(0, 0, 150, 100)]
    assert tiles_of(100, 200, 160, 0.2)[1:] == [(0, 0, 160, 100), (40, 0, 200, 100)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_object_is_found_once_with_its_box(data):
    """Anywhere, also over the seams; larger and smaller than the strip that two tiles share."""
    size = 20, 20
    cells = data.draw(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 6)), max_size=6))
    boxes = []
    for column, row in cells:  # a gap keeps them apart
        x, y = column * 57 + data.draw(st.integers(1, 8)), row * 57 + data.draw(st.integers(1, 8))
        w, h = (data.draw(st.integers(4, 46)) for _ in size)
        boxes.append((x, y, min(x + w, 519), min(y + h, 399)))
    assert found_in(boxes) == sorted(boxes)


def test_an_object_on_a_seam_that_the_whole_picture_does_not_show():
    """Cut by both tiles, since it is larger than what they share: the parts are put together."""
    seam = tiles_of(*SIZE, 160, 0.2)[2][0]  # where the second column starts
    box = (seam - 30, 20, seam + 60, 60)
    blind = Blobs(smallest=0.1)  # sees 52 px and more of the whole picture, 16 px in a tile
    assert found_in([box], blind) == [box]
    assert blind.shown[0] == SIZE


def test_small_objects_are_found_in_tiles_only():
    box = (300, 200, 320, 220)
    blind = Blobs(smallest=0.1)
    assert not len(next(blind.predict_each([picture([box])])))
    assert found_in([box], blind) == [box]


def test_neighbours_that_a_tile_tells_apart_stay_two():
    """Crowded objects of one class: their boxes overlap by more than any threshold."""
    areas = [(0, 0, 200, 200), (0, 0, 160, 200), (40, 0, 200, 200)]
    two = [(60, 50, 120, 150), (66, 50, 126, 150)]
    shifted = [(x0 - 40, y0, x1 - 40, y1) for x0, y0, x1, y1 in two]
    found = [
        detections(two, (200, 200), [0.9, 0.8]),
        detections(two, (200, 160), [0.85, 0.8]),
        detections(shifted, (200, 160), [0.7, 0.95]),
    ]
    merged = merge(found, areas, (200, 200))
    assert merged.scores.tolist() == pytest.approx([0.95, 0.9])
    assert sorted(map(tuple, merged.boxes.int().tolist())) == two


def test_many_detections_are_compared_in_parts(monkeypatch):
    boxes = [(x, y, x + 30, y + 30) for x in range(5, 500, 57) for y in range(5, 370, 57)]
    whole = found_in(boxes)
    monkeypatch.setattr("detrlab.predicting.tiles._ROWS", 7)
    assert found_in(boxes) == whole == sorted(boxes)


def test_classes_are_not_merged():
    areas = [(0, 0, 100, 100), (0, 0, 80, 100)]
    same = [(10, 10, 50, 50)]
    found = [detections(same, (100, 100)), detections(same, (100, 80), labels=[1])]
    assert len(merge(found, areas, (100, 100))) == 2


def test_impossible_tiles():
    with pytest.raises(UserError, match="tiles of 8 px"):
        Tiled(Blobs(), 8)
    with pytest.raises(UserError, match=r"overlap by 1\.5"):
        Tiled(Blobs(), 64, 1.5)
