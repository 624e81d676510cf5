import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detrlab.compare.resampling import OVERALL, Sample, quantities, quantity_names
from detrlab.compare.statistics import Difference, Needed, Spread, _own_interval, compare, holm
from detrlab.compare.verdicts import Verdicts, verdict
from detrlab.evaluation.coco import accumulate
from detrlab.evaluation.matching import Resampler, average_precision, match
from detrlab.evaluation.records import Detected

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
simulation = importlib.import_module("simulated_detectors")
GOOD = simulation.Architecture()
BETTER = simulation.Architecture(skill=1.15, precision=0.075)
MUCH_BETTER = simulation.Architecture(skill=2.5, precision=0.03)


def simulated(seed, images, *detectors, seeds=1):
    rng = np.random.default_rng(seed)
    scenes = simulation.draw_scenes(rng, images)
    return {
        f"d{i}": simulation.trainings(rng, scenes, detector, seeds)
        for i, detector in enumerate(detectors)
    }


PAIR = [("d0", "d1")]


def test_estimates_are_the_metrics():
    rng = np.random.default_rng(0)
    scenes = simulation.draw_scenes(rng, 20)
    detected = simulation.detect(rng, scenes, GOOD)
    metrics = accumulate(scenes.truth, detected).metrics(scenes.truth.classes)
    row = quantities(average_precision(match(scenes.truth, detected))[None])[0]
    expected = [metrics.to_dict()[name] for name in OVERALL] + list(metrics.per_class.values())
    np.testing.assert_allclose(row, expected, atol=1e-12)
    assert quantity_names(scenes.truth.classes)[6] == "class:class 0"


def test_equal_detections_differ_by_nothing():
    runs = simulated(1, 15, GOOD)["d0"]
    (ap,) = compare({"d0": runs, "d1": runs}, PAIR, replicates=50).of("ap")
    assert (ap.estimate, ap.low, ap.high, ap.p, ap.p_adjusted) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert "equal within 1 AP" in verdict(ap)


def test_a_clear_difference_is_found_and_its_sign_is_right():
    detectors = simulated(2, 40, GOOD, MUCH_BETTER)
    (ap,) = compare(detectors, PAIR, replicates=300).of("ap")
    assert 0 < ap.low < ap.estimate < ap.high
    assert ap.p_adjusted < 0.01
    assert "trained d1 beats this trained d0" in verdict(ap)
    (back,) = compare(detectors, [("d1", "d0")], replicates=300).of("ap")
    assert back.estimate == pytest.approx(-ap.estimate)
    assert back.high == pytest.approx(-ap.low)
    assert verdict(back) == verdict(ap)


def test_the_same_seed_gives_the_same_numbers_and_json_takes_them():
    detectors = simulated(3, 10, GOOD, BETTER)
    a, b, c = (
        Verdicts(compare(detectors, PAIR, replicates=40, seed=seed), ()).to_dict()
        for seed in (7, 7, 8)
    )
    assert a == b != c
    json.dumps(a, allow_nan=False)
    assert "several seeds" in a["notes"][1]


def test_an_image_drawn_twice_counts_twice():
    """Each replicate is what hotcoco says of the data set that was drawn, copies and all.

    (hotcoco's own paired bootstrap counts such an image once, so its intervals are too narrow.)
    """
    rng = np.random.default_rng(4)
    scenes = simulation.draw_scenes(rng, 25)
    detected = simulation.detect(rng, scenes, GOOD)
    resampler = Resampler(match(scenes.truth, detected))
    for _ in range(5):
        picks = rng.integers(0, 25, 25)
        weights = np.bincount(picks, minlength=25)[None].astype(float)
        mine = quantities(resampler.average_precision(weights))[0]
        truth, copies = copied(scenes.truth, detected, picks)
        metrics = accumulate(truth, copies).metrics(truth.classes)
        theirs = [metrics.to_dict()[name] for name in OVERALL]
        np.testing.assert_allclose(mine[:6], np.array(theirs, dtype=float), atol=1e-12)


def copied(truth, detected, picks):
    objects = [np.flatnonzero(truth.image == old) for old in picks]
    rows = np.concatenate(objects)
    parts = [detected.select(detected.image == old) for old in picks]
    copies = Detected.join(
        dataclasses.replace(part, image=np.full(len(part), new)) for new, part in enumerate(parts)
    )
    image = np.repeat(np.arange(len(picks)), [len(each) for each in objects])
    return dataclasses.replace(chosen(truth, rows), image=image), copies


def chosen(truth, rows):
    """Only some of the annotated objects."""
    names = ("image", "label", "boxes", "area", "crowd")
    return dataclasses.replace(truth, **{name: getattr(truth, name)[rows] for name in names})


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """The short form of benchmarks/statistics_coverage.py."""
    rng = np.random.default_rng(5)
    scenes = simulation.draw_scenes(rng, 6000)
    true = np.subtract(
        *(
            quantities(average_precision(simulation.trainings(rng, scenes, each, 1)[0])[None])[0]
            for each in (BETTER, GOOD)
        )
    )
    covered = []
    for trial in range(50):
        rows = compare(simulated(100 + trial, 29, GOOD, BETTER), PAIR, replicates=300).differences
        covered.append([row.low <= t <= row.high for row, t in zip(rows, true, strict=True)])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)
    assert np.mean(covered, axis=0).min() > 0.85


def synthetic(rng, seeds, common, own, training, mean=0.0, replicates=400):
    """A contender by its law: image noise shared by seeds, each seed's own, and training."""
    skill = mean + training * rng.standard_normal((seeds, 1))
    full = skill + common * rng.standard_normal() + own * rng.standard_normal((seeds, 1))
    drawn = (
        full
        + common * rng.standard_normal((1, replicates))
        + own * rng.standard_normal((seeds, replicates))
    )
    picks = rng.integers(0, seeds, (replicates, seeds))
    return Sample(full[:, 0], drawn, picks)


@pytest.mark.parametrize(
    ("common", "own", "training"),
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.3, 0.3, 1.0)],
)
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_each_source_of_noise_is_counted_once(common, own, training, seeds):
    if seeds == 1 and training > 0:
        pytest.skip("one seed says nothing about training")
    rng = np.random.default_rng(6)
    covered, variances = [], []
    for _ in range(120):
        pair = [synthetic(rng, seeds, common, own, training) for _ in range(2)]
        spread = Spread.of(pair, [-1, 1], images=500)
        low, high = spread.interval()
        covered.append(low <= 0 <= high)
        variances.append(spread.variance)
        assert (spread.p_value() > 0.05) == covered[-1] or abs(spread.p_value() - 0.05) < 0.02
    expected = 2 * (common**2 + (own**2 + training**2) / seeds)
    assert np.mean(variances) == pytest.approx(expected, rel=0.2)
    assert np.mean(covered) >= 0.9


def test_what_is_needed_follows_from_the_noise():
    rng = np.random.default_rng(7)

    def needed(*noise):
        pair = [synthetic(rng, 8, *noise, replicates=4000) for _ in range(2)]
        return Spread.of(pair, [-1, 1], 100).needed(100)

    allowed = (0.01 / (1.96 + 0.842)) ** 2
    images = needed(0.02, 0.0, 0.0)
    assert images.images == pytest.approx(100 * 2 * 0.02**2 / allowed, rel=0.15)
    assert images.seeds is None
    assert 3 <= needed(0.0005, 0.0, 0.007).seeds <= 20
    assert needed(0.02, 0.0, 0.5) == Needed(None, None)


def test_holms_correction_in_an_example_from_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def difference(**changes):
    plain = Difference(
        "plain", "refine", "ap", estimate=0.018, low=0.004, high=0.031, p=0.01, p_adjusted=0.02,
        images=29, seeds=(3, 3), needed=Needed(396, 6),
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


UNCLEAR = {"estimate": 0.002, "low": -0.012, "high": 0.016, "p_adjusted": 0.7}
VERDICTS = [
    ({}, ["refine beats plain", "1.8 AP [0.4, 3.1]"]),
    ({"estimate": -0.018, "low": -0.031, "high": -0.004}, ["plain beats refine", "[0.4, 3.1]"]),
    ({"seeds": (1, 1)}, ["this trained refine beats this trained plain"]),
    ({"seeds": (1, 3)}, ["refine with 3 seeds beats this trained plain"]),
    ({"p_adjusted": 0.08}, ["refine is ahead of plain", "may be chance", "0.080"]),
    (UNCLEAR, ["not distinguishable", "29 images with 3 seeds", "[-1.2, 1.6]", "400 images or 6"]),
    (
        {**UNCLEAR, "seeds": (1, 1), "needed": Needed(12345, None)},
        ["this trained refine and", "not distinguishable on 29 images (", "about 13,000 images"],
    ),
    ({**UNCLEAR, "needed": Needed(None, None)}, ["neither more images nor 20 seeds"]),
    (
        {"estimate": 0.001, "low": -0.004, "high": 0.006, "p_adjusted": 0.7},
        ["equal within 1 AP", "[-0.4, 0.6]"],
    ),
    ({"quantity": "class:Goggles"}, ["1.8 AP on Goggles"]),
    (
        {
            "estimate": 0.001,
            "low": -0.004,
            "high": 0.006,
            "p_adjusted": 0.7,
            "learnt": (False,) * 2,
        },
        ["neither plain nor refine has learnt", "less than 1 AP", "nothing can be said"],
    ),
    ({"learnt": (False, True)}, ["refine beats plain, which has not learnt, by 1.8 AP"]),
    (
        {"quantity": "ap_small", "estimate": None, "low": None, "high": None, "p_adjusted": None},
        ["nothing to judge", "AP on small objects"],
    ),
]


@pytest.mark.parametrize(("changes", "facts"), VERDICTS)
def test_verdicts_are_plain_words(changes, facts):
    sentence = verdict(difference(**changes))
    assert [fact for fact in facts if fact not in sentence] == [], sentence


def test_a_class_without_objects_is_not_judged():
    rng = np.random.default_rng(10)
    scenes = simulation.draw_scenes(rng, 12)
    truth = chosen(scenes.truth, np.flatnonzero(scenes.truth.label != 2))
    detectors = {
        name: [match(truth, simulation.detect(rng, scenes, each))]
        for name, each in (("d0", GOOD), ("d1", BETTER))
    }
    result = compare(detectors, PAIR, replicates=30)
    (rare,) = result.of("class:class 2")
    assert rare.estimate is rare.p_adjusted is rare.needed is None
    assert result.of("ap")[0].estimate is not None
    assert result.intervals["d0"]["class:class 2"].low is None


@pytest.mark.parametrize(("estimate", "bound"), [(0.001, 0.0), (0.999, 1.0)])
def test_an_interval_of_ap_stays_between_0_and_1(estimate, bound):
    replicates = estimate + np.random.default_rng(0).normal(0, 0.05, size=500)
    spread = Spread(estimate, replicates, 0.05**2, 20.0, 0.05**2, 0.0, None, 1)
    interval = _own_interval(spread)
    assert bound in (interval.low, interval.high)
    assert 0 <= interval.low <= estimate <= interval.high <= 1
