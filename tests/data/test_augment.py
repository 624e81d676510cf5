"""``mild``, ``dense`` and square images: boxes stay on their objects, draws as published."""

import numpy as np
import pytest
import torch
from coco_folders import picture
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import mixing
from detrlab.data.augment import (
    GREY,
    Window,
    iou_crop,
    photometric,
    recolour,
    show,
    train_augmentation,
    zoom_out,
)
from detrlab.data.keyed import keyed
from detrlab.data.transforms import eval_transform, jitter
from detrlab.errors import UserError
from detrlab.structures import Sample

SQUARE = DataConfig(image_size=96, resize="square")
DENSE = SQUARE.change(augmentation="dense")


def sample(image, *boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(image, boxes, torch.arange(len(boxes)), 1, tuple(image.shape[1:]))


def rectangle(height=120, width=160, box=(40, 30, 120, 90), colour=(255, 0, 0)):
    """A coloured rectangle on black, with its box."""
    left, top, right, bottom = box
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return sample(image, box)


def photograph(height=60, width=80):
    return torch.from_numpy(np.array(picture(3, height, width))).permute(2, 0, 1).contiguous()


def around(mask):
    """The box of the pixels that are set."""
    rows, columns = mask.nonzero().T
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(each) for each in edges]


def test_square_images_are_pillows_and_boxes_follow_each_axis():
    original = sample(photograph(), [10, 20, 30, 50])
    changed = train_augmentation(SQUARE.change(augmentation="none"))(original, keyed("x"))
    expected = picture(3, 60, 80).resize((96, 96), Image.Resampling.BILINEAR)
    found = changed.image.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - np.array(expected).astype(int)).max() <= 1
    assert changed.boxes[0].tolist() == pytest.approx([12, 32, 36, 80])
    assert changed.original_size == (60, 80)


@pytest.mark.parametrize("kind", ["detr", "light", "strong", "mild", "dense", "none"])
@pytest.mark.parametrize("phase", ["plain", "single", "whole"])
def test_every_augmentation_ends_in_the_square_that_is_asked_for(kind, phase):
    original = rectangle()
    config = SQUARE.change(augmentation=kind)
    augment = train_augmentation(config, phase=phase, side=128, partner=lambda _: original)
    for n in range(5):
        assert augment(original, keyed("square", n)).image.shape == (3, 128, 128)


@pytest.mark.parametrize("resize", ["short_side", "square"])
def test_mild_keeps_boxes_on_their_objects(resize):
    original = rectangle(colour=(255, 255, 255))
    config = DataConfig(image_size=96, max_size=160, resize=resize, augmentation="mild")
    augment = train_augmentation(config)
    fills, shares = 0, []
    for n in range(80):
        changed = augment(original, keyed("mild", n))
        image = changed.image.int()
        filled = (image == torch.tensor(GREY)[:, None, None]).all(0)
        fills += bool(filled.any())
        bright = (image.sum(0) > 380) & ~filled
        assert changed.boxes[0].tolist() == pytest.approx(around(bright), abs=1.1)
        shares.append(float(bright.float().mean()))
    assert 20 < fills < 60
    # An object of a quarter of the image: 2.25 times smaller, or magnified by a crop.
    assert min(shares) < 0.17
    assert max(shares) > 0.4


def test_single_dense_images_keep_boxes_on_their_objects():
    config = DENSE.change(copy_blend=0.0)
    original = rectangle(colour=(255, 255, 255))
    augment = train_augmentation(config, phase="single", partner=lambda _: original)
    widths = []
    for n in range(60):
        changed = augment(original, keyed("dense", n))
        if len(changed.boxes):
            bright = changed.image.int().sum(0) > changed.image.int().sum(0).max() / 2
            assert changed.boxes[0].tolist() == pytest.approx(around(bright), abs=1.6)
            widths.append(float(changed.boxes[0, 2] - changed.boxes[0, 0]))
    # Zoomed out up to 4 times, or cropped.
    assert min(widths) < 20
    assert max(widths) > 70


def test_a_mosaic_keeps_boxes_around_their_objects():
    """Four rectangles of four colours, upright in the source: boxes lie around the turned ones."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    four = [rectangle(colour=colour) for colour in colours]
    four = [each._replace(labels=torch.tensor([i])) for i, each in enumerate(four)]
    seen = []
    for n in range(40):
        made = mixing.mosaic(four, 200, keyed("mosaic", n))
        assert made.image.shape == (3, 200, 200)
        for box, label in zip(made.boxes, made.labels.tolist(), strict=True):
            found = made.image.movedim(0, -1).int() - torch.tensor(colours[label])
            mask = found.abs().sum(-1) < 120
            if (box[2:] - box[:2]).min() < 8:  # cut off at an edge
                continue
            # The box of a rectangle that is cut off after turning may be larger than what is left.
            inside = torch.tensor(around(mask))
            assert (inside - box >= torch.tensor([-2, -2, -99, -99])).all(), n
            assert (inside - box <= torch.tensor([99, 99, 2, 2])).all(), n
            if box.min() > 2 and box.max() < 198:
                assert inside.tolist() == pytest.approx(box.tolist(), abs=3)
                seen.append(label)
    assert set(seen) == {0, 1, 2, 3}


def test_mixup_is_an_average_with_all_objects():
    one = rectangle(colour=(200, 100, 0))
    other = rectangle(box=(0, 0, 10, 10), colour=(0, 0, 250))
    mixed = mixing.mixup(one, other, keyed("mixup"))
    part = keyed("mixup").uniform(0.45, 0.55)
    expected = one.image.double() * part + other.image.double() * (1 - part)
    assert (mixed.image.double() - expected).abs().max() < 1.5  # a step of 1/256, and rounding
    assert torch.equal(mixed.boxes, torch.cat([one.boxes, other.boxes]))
    assert mixed.image_id == one.image_id


def test_copy_blend_puts_objects_where_it_says():
    empty = sample(torch.zeros(3, 96, 96, dtype=torch.uint8))
    other = rectangle(96, 96, box=(20, 30, 50, 60), colour=(0, 240, 0))
    other = other._replace(
        boxes=torch.cat([other.boxes, torch.tensor([[0.0, 0, 9, 9]])]), labels=torch.tensor([4, 5])
    )
    for n in range(20):
        made = mixing.copy_blend(empty, other, keyed("copy", n))
        assert made.labels.tolist() == [4]  # the other one is too small
        assert made.boxes[0].tolist() == around(made.image[1] > 60)
        assert 100 < made.image.max() < 140
    assert not empty.image.any()
    assert mixing.copy_blend(empty, empty, keyed("copy")) is empty


def test_dense_shares_follow_their_settings():
    original = rectangle()

    def objects(phase="whole", **changes):
        config = DENSE.change(**{"mosaic": 0, "mixup": 0, "copy_blend": 0, **changes})
        partners = []

        def partner(draws):
            partners.append(draws)
            return original

        augment = train_augmentation(config, phase=phase, partner=partner)
        for n in range(60):
            augment(original, keyed("shares", n))
        return len(partners)

    assert objects() == 0
    assert objects(mosaic=1) == 180
    assert objects(mixup=1) == 60
    assert 20 < objects(copy_blend=0.5) < 40
    assert objects("single", mosaic=1, mixup=1) == 0
    assert objects("single", copy_blend=1) == 60
    assert objects("plain", mosaic=1, mixup=1, copy_blend=1) == 0


def test_plain_images_are_flipped_or_not():
    original = sample(photograph(), [10, 20, 30, 50])
    whole = train_augmentation(SQUARE.change(augmentation="none"))(original, keyed("x"))
    augment = train_augmentation(SQUARE.change(augmentation="mild"), phase="plain")
    drawn = [augment(original, keyed("plain", n)).image for n in range(20)]
    same = [torch.equal(image, whole.image) for image in drawn]
    assert 3 < sum(same) < 17
    turned = train_augmentation(SQUARE.change(augmentation="none"))(
        original._replace(image=original.image.flip(-1)), keyed("x")
    )
    for image, kept in zip(drawn, same, strict=True):
        assert kept or torch.equal(image, turned.image)


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (700, 3), (33, 32)])
@pytest.mark.parametrize("kind", ["mild", "dense"])
def test_strange_images_are_augmented_too(shape, kind):
    """With and without objects; one image alone is its own partner."""
    height, width = shape
    for boxes in ([], [[0, 0, width, height], [0, 0, 0.5, height]]):
        original = sample(torch.full((3, height, width), 9, dtype=torch.uint8), *boxes)
        augment = train_augmentation(
            SQUARE.change(augmentation=kind), partner=lambda _, one=original: one
        )
        for n in range(20):
            changed = augment(original, keyed("strange", n))
            assert changed.image.shape == (3, 96, 96)
            assert ((changed.boxes[:, 2:] - changed.boxes[:, :2]) >= 1).all()
            assert (changed.boxes >= 0).all()
            assert (changed.boxes <= 96.001).all()
            assert len(changed.boxes) == len(changed.labels)


def test_small_boxes_are_dropped_by_their_trained_size():
    original = sample(photograph(96, 96), [0, 0, 5, 40], [10, 10, 20, 20])
    for bound, kept in ((1, 2), (6, 1), (11, 0)):
        config = SQUARE.change(augmentation="mild", min_size=bound)
        changed = train_augmentation(config, phase="plain")(original, keyed("small"))
        assert len(changed.boxes) == len(changed.labels) == kept


def test_zooming_out_keeps_the_image_inside():
    for n in range(50):
        window = zoom_out(Window(0, 0, 80, 60), 4, keyed("zoom", n))
        assert 1 <= window.width / 80 <= 4
        assert window.left <= 0
        assert window.left + window.width >= 80
        assert window.top <= 0
        assert window.top + window.height >= 60
        assert abs(window.width / 80 - window.height / 60) < 0.02


def test_what_lies_beyond_the_image_is_filled():
    original = sample(torch.full((3, 10, 20), 7, dtype=torch.uint8), [0, 0, 20, 10])
    shown = show(original, Window(-20, -10, 40, 20), 40, 80, (1, 2, 3))
    assert shown.boxes.tolist() == [[40, 20, 80, 40]]
    assert (shown.image[:, 20:, 40:] == 7).all()
    assert (shown.image[:, :20] == torch.tensor([1, 2, 3])[:, None, None]).all()


def test_crops_overlap_an_object_as_drawn_and_keep_its_center():
    boxes = np.array([[20.0, 20, 70, 60], [60, 50, 64, 54]])
    cropped = 0
    for n in range(60):
        window = iou_crop(Window(0, 0, 80, 60), boxes, keyed("crop", n))
        cropped += window != (0, 0, 80, 60)
        left, top, width, height = window
        assert 0.5 <= width / height <= 2
        assert width >= 0.3 * 80 - 1
        assert height >= 0.3 * 60 - 1
        x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
        assert ((left < x) & (x < left + width) & (top < y) & (y < top + height)).any()
    assert 30 < cropped < 60
    nothing = Window(0, 0, 80, 60)
    assert iou_crop(nothing, np.zeros((0, 4)), keyed("crop")) == nothing


def test_colours_are_those_of_the_other_implementation():
    image = photograph()
    assert torch.equal(recolour(image), image)
    soft = (image // 2) + 60  # nothing is cut off
    ours = recolour(soft, brightness=1.05, contrast=0.8, saturation=0.7)
    assert (ours.int() - jitter(soft, 1.05, 0.8, 0.7).int()).abs().max() <= 1
    turned = recolour(soft, hue=0.25)
    assert not torch.equal(turned, soft)
    assert (recolour(soft, hue=1.0).int() - soft.int()).abs().max() <= 1
    luminance = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((turned - soft.float()) * luminance).sum(0).abs().max() < 1.6
    assert torch.equal(recolour(image, order=(2, 0, 1)), image[[2, 0, 1]])
    same = [torch.equal(photometric(image, keyed("colour", n)), image) for n in range(200)]
    assert 0 < sum(same) < 25  # one in 32, and identical orders


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"scales": 4}, "scales 4 .*data.resize=square"),
        ({"augmentation": "dense"}, "'dense' .*data.resize=square"),
        ({"mixup": 1.5}, "mixup: .*1.5"),
        ({"resize": "round"}, "resize: .*'short_side' or 'square'.*'round'"),
    ],
)
def test_impossible_settings_are_refused(changes, facts):
    with pytest.raises(UserError, match=facts):
        DataConfig().change(**changes)


def test_square_sizes_have_no_long_side_and_scale():
    large = DataConfig(image_size=1600, resize="square")
    assert large.longest_side == 1600
    assert large.resized(32).image_size == 32
    normal = DataConfig(image_size=32, resize="square", mean=(0, 0, 0), std=(1, 1, 1))
    image = torch.full((3, 9, 5), 255, dtype=torch.uint8)
    assert torch.equal(eval_transform(normal)(image), torch.ones(3, 32, 32))
