import dataclasses

import numpy as np
import pytest
from scenes import judged, objects

from detrlab.evaluation.coco import accumulate
from detrlab.evaluation.matching import FOUND, Resampler, average_precision, match
from detrlab.evaluation.records import Detected, GroundTruth


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decimals": 1, "crowd_share": 0.3},
        {"on_grid": True, "jitter": 0.15},
        {"num_classes": 30},
        {"num_images": 3, "num_classes": 1, "false_alarms": 200},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_averaging_the_matches_gives_cocos_ap_again(seed, options):
    truth, detected = judged(seed, **options)
    precision = accumulate(truth, detected).precision[..., 2]  # (T, R, K, A)
    expected = np.where((precision > -1).all(1), precision.mean(1), np.nan).transpose(1, 2, 0)
    table = average_precision(match(truth, detected))
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_a_copy_of_the_image(seed):
    """AP with multiplicities equals AP of a data set that holds the copies."""
    # Without equal scores, whose order among copies is nobody's business.
    truth, detected = judged(seed, crowd_share=0.2, decimals=9)
    weights = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12))
    copies = np.repeat(np.arange(12), weights)
    parts, rows = [], []
    for new, old in enumerate(copies):
        mine = detected.select(detected.image == old)
        parts.append(dataclasses.replace(mine, image=np.full(len(mine), new)))
        rows += [(new, row) for row in np.flatnonzero(truth.image == old)]
    owners, chosen = np.array(rows).T
    resampled = dataclasses.replace(objects(truth, chosen), image=owners)
    expected = average_precision(match(resampled, Detected.join(parts)))
    by_weight = Resampler(match(truth, detected)).average_precision(weights[None])[0]
    np.testing.assert_allclose(by_weight, expected, rtol=0, atol=1e-12)


def test_owners_are_objects_of_the_same_image_and_class():
    truth, detected = judged(0)
    matches = match(truth, detected)
    for level in range(10):
        found = matches.verdict[:, 0, level] == FOUND
        owners = matches.owner[found, level]
        assert len(set(owners)) == len(owners)
        assert (truth.image[owners] == matches.image[found]).all()
        assert (truth.label[owners] == matches.label[found]).all()
    np.testing.assert_array_equal(detected.score[matches.row], matches.score)
    np.testing.assert_array_equal(detected.image[matches.row], matches.image)
    assert (np.diff(matches.label) >= 0).all()


def test_nothing_to_match_is_no_error():
    truth, detected = judged(0)
    empty = detected.select(np.zeros(0, np.int64))
    table = average_precision(match(truth, empty))
    assert (table[:, 0] == 0).all()
    no_objects = GroundTruth.from_coco({"images": [{"id": 1}], "annotations": [], "categories": []})
    assert average_precision(match(no_objects, empty)).shape == (0, 4, 10)
