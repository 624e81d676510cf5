import numpy as np
import pytest
import torch
from PIL import Image

from detrlab.detections import Detections
from detrlab.drawing import draw_boxes, draw_detections
from detrlab.palette import colour_of


def detections(boxes, scores=None, labels=None, classes=("a", "b")):
    count = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores if scores is not None else [0.9] * count),
        labels=torch.tensor(labels if labels is not None else [0] * count, dtype=torch.int64),
        classes=classes,
        category_ids=(1, 2),
        size=(200, 300),
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P"])
def test_any_picture_is_copied_and_drawn_on(mode):
    image = Image.new(mode, (300, 200))
    before = image.tobytes()
    drawn = draw_detections(image, detections([[50, 60, 150, 160]], labels=[1]))
    assert image.tobytes() == before
    assert drawn.mode == "RGB"
    assert drawn.size == (300, 200)
    assert drawn.getpixel((50, 110)) == colour_of(1)
    assert drawn.getpixel((100, 110)) == Image.new(mode, (1, 1)).convert("RGB").getpixel((0, 0))


def test_nothing_to_draw_changes_nothing():
    image = Image.effect_noise((60, 40), 50).convert("RGB")
    assert draw_detections(image, detections([])).tobytes() == image.tobytes()


@pytest.mark.parametrize("box", [[-50, -50, 400, 400], [10, 10, 10, 10], [90, 90, 20, 20]])
def test_odd_boxes_are_drawn(box):
    image = Image.new("RGB", (300, 200))
    assert draw_detections(image, detections([box])).tobytes() != image.tobytes()


def test_boxes_outside_are_left_out():
    image = Image.new("RGB", (300, 200))
    assert draw_detections(image, detections([[310, 10, 400, 50]])).tobytes() == image.tobytes()


@pytest.mark.parametrize("box", [[0, 0, 40, 20], [250, 150, 299, 199], [0, 0, 299, 199]])
def test_captions_stay_inside_at_every_edge(box):
    """The caption has as many pixels in a corner as in the middle, but for the outline's."""
    size = (300, 200)
    colour = (255, 0, 255)
    middle = _caption_pixels(size, [120, 90, 180, 120], colour)
    assert _caption_pixels(size, box, colour) == pytest.approx(middle, rel=0.15)


def _caption_pixels(size, box, colour):
    with_caption = np.asarray(draw_boxes(Image.new("RGB", size), [box], ["name 0.50"], [colour]))
    without = np.asarray(draw_boxes(Image.new("RGB", size), [box], [""], [colour]))
    return (with_caption != without).any(-1).sum()


def test_captions_never_cover_one_another():
    size, colours = (300, 200), [colour_of(k) for k in range(6)]
    boxes = [[20 + 3 * k, 80, 90 + 3 * k, 120] for k in range(6)]
    captions = [f"thing {k}" for k in range(6)]
    everything = np.asarray(draw_boxes(Image.new("RGB", size), boxes, captions, colours))
    alone = np.asarray(draw_boxes(Image.new("RGB", size), boxes, [captions[0], *[""] * 5], colours))
    bare = np.asarray(draw_boxes(Image.new("RGB", size), boxes, [""] * 6, colours))
    first_caption = (alone != bare).any(-1)
    assert first_caption.any()
    assert (everything[first_caption] == alone[first_caption]).all()


def test_lines_and_letters_grow_with_the_picture():
    def coverage(scale):
        size = (200 * scale, 100 * scale)
        drawn = draw_boxes(
            Image.new("RGB", size), [[v * scale for v in (40, 40, 160, 90)]], ["x"], [(255, 0, 0)]
        )
        return (np.asarray(drawn) > 0).any(-1).mean()

    assert coverage(16) == pytest.approx(coverage(8), rel=0.15)


def test_names_in_other_scripts_do_not_fail():
    image = Image.new("RGB", (300, 200))
    draw_detections(image, detections([[10, 40, 90, 90]], classes=("口罩", "护目镜")))


def test_captions_do_not_hide_small_neighbours():
    size = (300, 200)
    boxes = [[100, 100, 140, 140], [105, 88, 115, 97], [104, 144, 112, 153]]
    bare = np.asarray(draw_boxes(Image.new("RGB", size), boxes, [""] * 3, [(0, 158, 115)] * 3))
    drawn = draw_boxes(Image.new("RGB", size), boxes, ["a name 0.9", "", ""], [(0, 158, 115)] * 3)
    changed = (np.asarray(drawn) != bare).any(-1)
    assert changed.any()
    for left, top, right, bottom in boxes[1:]:
        assert changed[top : bottom + 1, left : right + 1].mean() <= 0.3


def test_captions_are_smaller_where_the_objects_are():
    """As in a large picture that was seen in tiles."""
    picture = Image.new("RGB", (1800, 1200))

    def drawn(side):
        boxes = [[x, y, x + side, y + side] for x in (300, 900, 1500) for y in (300, 900)]
        colours = [(255, 0, 0)] * len(boxes)
        canvas = np.asarray(draw_boxes(picture, boxes, ["person"] * len(boxes), colours))
        return int((canvas[..., 0] > 0).sum())

    assert drawn(60) < 0.5 * drawn(200)
