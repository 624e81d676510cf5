"""Sizes, boxes and draws of the transforms, against independent computations."""

import numpy as np
import pytest
import torch
from coco_folders import picture
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import transforms as T
from detrlab.data.augment import train_augmentation
from detrlab.data.keyed import keyed
from detrlab.structures import Sample


def official_size(width, height, size, max_size=None):
    """facebookresearch/detr's rule, in its own axis order."""
    if max_size is not None:
        low, high = float(min(width, height)), float(max(width, height))
        if high / low * size > max_size:
            size = round(max_size * low / high)
    if (width <= height and width == size) or (height <= width and height == size):
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


def sample(height=60, width=80, boxes=((10, 20, 30, 50),)):
    image = torch.from_numpy(np.array(picture(3, height, width))).permute(2, 0, 1)
    return Sample(
        image=image,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        image_id=1,
        original_size=(height, width),
    )


def test_size_rule_is_the_originals():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        width, height = (int(v) for v in rng.integers(40, 1500, 2))
        size = int(rng.integers(100, 900))
        for bound in (None, 1333):
            assert T.resized_size(height, width, size, bound) == official_size(
                width, height, size, bound
            )


def test_size_rule_examples():
    assert T.resized_size(480, 640, 800, 1333) == (800, 1066)
    assert T.resized_size(200, 340, 800, 1333) == (784, 1332)
    assert T.resized_size(800, 1200, 800, 1333) == (800, 1200)


def test_sizes_at_800_are_the_published_ones_and_scale():
    published = T.DetrAugmentation(800, 1333)
    assert published.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert published.scaled(400, 500, 600, 384) == (400, 500, 600, 384)
    half = T.DetrAugmentation(400, 700)
    assert half.short_sides == (240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400)
    assert half.scaled(400, 500, 600, 384) == (200, 250, 300, 192)


@pytest.mark.parametrize("size", [(100, 77), (31, 40), (120, 160)])
def test_resize_is_pillows_within_a_grey_level(size):
    original = picture(5, 60, 80)
    expected = np.array(original.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    pixels = torch.from_numpy(np.array(original)).permute(2, 0, 1)
    resized = T.resize_pixels(pixels, *size).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(resized - expected).max() <= 1
    assert (resized != expected).mean() < 0.001


def test_resize_scales_boxes_by_the_actual_ratio_of_each_axis():
    resized = T.resize_short_side(sample(200, 340), 800, 1333)
    assert resized.image.shape[1:] == (784, 1332)
    expected = torch.tensor([[10 * 1332 / 340, 20 * 784 / 200, 30 * 1332 / 340, 50 * 784 / 200]])
    assert torch.allclose(resized.boxes, expected)


def test_flip_mirrors_pixels_and_boxes_and_undoes_itself():
    original = sample()
    flipped = T.flip(original)
    assert flipped.boxes.tolist() == [[50, 20, 70, 50]]
    assert torch.equal(flipped.image[:, 25, 55], original.image[:, 25, 24])
    again = T.flip(flipped)
    assert torch.equal(again.image, original.image)
    assert torch.equal(again.boxes, original.boxes)


def test_crop_shifts_clamps_and_drops():
    boxes = ((10, 20, 30, 50), (0, 0, 5, 5), (20, 0, 40, 60), (0, 0, 15, 60))
    cropped = T.crop(sample(boxes=boxes), top=10, left=15, height=30, width=20)
    assert cropped.image.shape == (3, 30, 20)
    assert cropped.boxes.tolist() == [[0, 10, 15, 30], [5, 0, 20, 30]]
    assert cropped.labels.tolist() == [0, 2]  # the last one only touches the crop's edge
    assert torch.equal(cropped.image, sample().image[:, 10:40, 15:35])


def test_crop_without_objects_is_an_ordinary_sample():
    cropped = T.crop(sample(), top=0, left=60, height=10, width=10)
    target = T.to_target(cropped)
    assert target.boxes.shape == (0, 4)
    assert target.labels.shape == (0,)


@pytest.mark.parametrize("kind", ["detr", "light", "strong", "none"])
def test_augmentation_keeps_boxes_on_their_objects(kind):
    """A white rectangle on black stays under its box, whatever is drawn."""
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    image[:, 30:90, 40:120] = 255
    original = Sample(image, torch.tensor([[40.0, 30, 120, 90]]), torch.tensor([0]), 1, (120, 160))
    config = DataConfig(image_size=96, max_size=160, augmentation=kind)
    augment = train_augmentation(config)
    shapes = set()
    for epoch in range(60):
        changed = augment(original, keyed("test", epoch))
        shapes.add(tuple(changed.image.shape))
        bright = (changed.image.float().mean(0) > 90).nonzero()
        if not len(changed.boxes):
            assert not len(bright)
            continue
        top, left = bright.min(0).values.tolist()
        bottom, right = (bright.max(0).values + 1).tolist()
        assert changed.boxes[0].tolist() == pytest.approx([left, top, right, bottom], abs=1.1)
    assert len(shapes) > 5 or kind == "none"


def test_detr_draws_have_the_published_frequencies():
    """Half flipped; half cropped; eleven sizes evenly; crops within their bounds."""
    config = DataConfig(image_size=80, max_size=133, augmentation="detr")
    augment = train_augmentation(config)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, :, :40] = 255
    original = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1, (60, 80))
    flipped, short_sides, whole = 0, [], 0
    for n in range(400):
        changed = augment(original, keyed("frequencies", n)).image
        height, width = changed.shape[1:]
        short_sides.append(min(height, width))
        whole += (height, width) == T.resized_size(60, 80, height, 133)
        flipped += bool(changed[0, 0, 0] < changed[0, 0, -1])
    assert 120 < flipped < 240  # some crops are of one colour
    assert 170 < whole < 280
    assert set(short_sides) >= set(T.DetrAugmentation(80, 133).short_sides)


@pytest.mark.parametrize(("kind", "largest"), [("none", 1.0), ("light", 1.43), ("strong", 2.5)])
def test_zooming_magnifies_what_is_small(kind, largest):
    """How large an object gets at most, as a part of its size in evaluation."""
    original = sample(height=300, width=400, boxes=((180, 130, 220, 170),))
    augment = train_augmentation(DataConfig(image_size=300, max_size=400, augmentation=kind))
    drawn = [augment(original, keyed("zoom", n)) for n in range(200)]
    heights = [float(each.boxes[0, 3] - each.boxes[0, 1]) for each in drawn if len(each.boxes)]
    # Both sides must be cropped most for the full effect, so few draws come near it.
    assert 0.75 * largest <= max(heights) / 40 <= 1.02 * largest
    assert all(max(each.image.shape) <= 401 for each in drawn)


def test_normalisation_is_the_originals():
    config = DataConfig()
    pixels = T.normalize(torch.full((3, 2, 2), 128, dtype=torch.uint8), config)
    expected = (128 / 255 - np.array(config.mean)) / np.array(config.std)
    assert np.allclose(pixels[:, 0, 0].numpy(), expected, atol=1e-6)


def test_eval_transform_is_what_evaluation_batches_do():
    config = DataConfig(image_size=64, max_size=100)
    original = sample()
    expected = T.normalize(T.evaluation_resize(original, config).image, config)
    assert torch.equal(T.eval_transform(config)(original.image), expected)


def test_jitter_does_not_hang_on_the_number_of_threads():
    image = torch.from_numpy(np.array(picture(1, 333, 517))).permute(2, 0, 1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(T.jitter(image, 0.9, 1.17, 0.83))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_jitter_by_one_changes_nothing():
    image = sample().image
    assert torch.equal(T.jitter(image, 1.0, 1.0, 1.0), image)
    assert T.jitter(image, 1.2, 1.0, 1.0).float().mean() > image.float().mean()
    grey = T.jitter(image, 1.0, 1.0, 0.0)
    assert torch.equal(grey[0], grey[1])
