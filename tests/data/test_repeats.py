"""Repeat-factor sampling, against the rule of its paper."""

import math
from collections import Counter

import numpy as np
import pytest

from detrlab.config import DataConfig
from detrlab.data import batches, num_batches
from detrlab.data.batching import Loader, train_order
from detrlab.data.repeats import epoch_length, repeat_factors, times_before
from detrlab.data.shapes import shapes

CONFIG = DataConfig(image_size=64, max_size=96, augmentation="light", workers=0)


@pytest.fixture(scope="module")
def table():
    return shapes(train=40, val=1)[0]


def by_the_paper(table, threshold):
    classes = [
        {
            int(label)
            for label, crowd in zip(table.labels[a:b], table.crowd[a:b], strict=True)
            if not crowd
        }
        for a, b in zip(table.starts, table.starts[1:], strict=False)
    ]
    share = {c: sum(c in each for each in classes) / len(table) for c in range(table.num_classes)}
    return [max([1.0, *(math.sqrt(threshold / share[c]) for c in each)]) for each in classes]


def test_factors_are_the_papers(table):
    for threshold in (0.001, 0.3, 0.9):
        expected = by_the_paper(table, threshold)
        assert repeat_factors(table, threshold).tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 1.2


def test_images_come_as_often_as_their_factor_and_epochs_are_equally_long(table):
    factors = repeat_factors(table, 0.9)
    length = epoch_length(table, 0.9)
    assert len(table) < length == int(factors.sum())
    total = Counter()
    for epoch in range(300):
        (order,) = train_order(table, batch=10**6, seed=1, epoch=epoch, repeat_threshold=0.9)
        assert len(order) == length
        counts = np.bincount(order, minlength=len(table))
        assert (counts <= np.ceil(factors)).all()
        assert (counts < np.floor(factors)).sum() <= 1  # one may be left out
        total.update(order.tolist())
    found = np.array([total[i] / 300 for i in range(len(table))])
    assert np.abs(found - factors).max() < 0.12


def test_no_threshold_changes_nothing(table):
    plain = train_order(table, batch=4, seed=1, epoch=2)
    again = train_order(table, batch=4, seed=1, epoch=2, repeat_threshold=0.0)
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert num_batches(table, CONFIG, batch=4, train=True) == 10


def test_an_epoch_of_several_passes(table):
    whole = train_order(table, batch=4, seed=1, epoch=2, passes=3)
    seen = np.bincount(np.concatenate(whole), minlength=len(table))
    config = CONFIG.change(passes=3)
    assert len(whole) == num_batches(table, config, batch=4, train=True) == 3 * len(table) // 4
    assert set(seen) <= {2, 3}  # the partial batch at the end is left out
    assert seen.sum() == 4 * len(whole)
    first = np.concatenate(whole)[: len(table)]
    assert sorted(first) == list(range(len(table)))  # every image before any comes again
    again = Loader(table, config, batch=4, train=True, seed=1).order(2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_batches_are_counted_and_a_repeated_image_has_other_draws(table):
    config = CONFIG.change(repeat_threshold=0.9)
    count = num_batches(table, config, batch=4, train=True)
    assert count == epoch_length(table, 0.9) // 4 > 10
    assert len(Loader(table, config, batch=4, train=True).order(3)) == count
    seen = {}
    repeated = 0
    for batch in batches(table, config, batch=4, train=True, seed=2):
        for i, image_id in enumerate(batch.image_ids):
            pixels = batch.images.pixels[i][:, ~batch.images.padding[i]]
            if image_id in seen:
                repeated += 1
                assert not np.array_equal(pixels, seen[image_id])
            seen[image_id] = pixels
    assert repeated > 5


def test_times_before():
    order = [np.array([3, 1, 3]), np.array([1, 3, 0])]
    assert [part.tolist() for part in times_before(order)] == [[0, 0, 1], [1, 2, 0]]
