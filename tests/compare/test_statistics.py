import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detrlab.compare.statistics import (
    OVERALL,
    Contender,
    Difference,
    Needed,
    _own_interval,
    _Sample,
    _Spread,
    compare,
    holm,
    quantities,
    quantity_names,
    verdict,
)
from detrlab.errors import UserError
from detrlab.evaluation.coco import accumulate
from detrlab.evaluation.matching import Resampler, average_precision, match
from detrlab.evaluation.records import Detected


def _load_simulation():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "simulated_detectors.py"
    spec = importlib.util.spec_from_file_location("simulated_detectors", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_detectors"] = module
    spec.loader.exec_module(module)
    return module


simulation = _load_simulation()
GOOD = simulation.Architecture()
BETTER = simulation.Architecture(skill=1.15, precision=0.075)
MUCH_BETTER = simulation.Architecture(skill=2.5, precision=0.03)


def contenders(seed, images, *detectors, seeds=1):
    rng = np.random.default_rng(seed)
    scenes = simulation.draw_scenes(rng, images)
    return [
        Contender(f"d{i}", simulation.trainings(rng, scenes, detector, seeds))
        for i, detector in enumerate(detectors)
    ]


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
    first = contenders(1, 15, GOOD)[0]
    result = compare([first, Contender("twin", first.runs)], replicates=50)
    (ap,) = result.of("ap")
    assert (ap.estimate, ap.low, ap.high, ap.p, ap.p_adjusted) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert "equal within 1 AP" in result.verdicts()[0]


def test_a_clear_difference_is_told_and_its_sign_is_right():
    result = compare(contenders(2, 40, GOOD, MUCH_BETTER), replicates=300)
    (ap,) = result.of("ap")
    assert 0 < ap.low < ap.estimate < ap.high
    assert ap.p_adjusted < 0.01
    assert result.verdicts()[0].startswith("this trained d1 beats this trained d0 by ")
    backwards = compare(contenders(2, 40, GOOD, MUCH_BETTER), [("d1", "d0")], replicates=300)
    assert backwards.of("ap")[0].estimate == pytest.approx(-ap.estimate)
    assert backwards.of("ap")[0].high == pytest.approx(-ap.low)
    assert backwards.verdicts() == result.verdicts()


def test_the_same_seed_gives_the_same_numbers_and_json_takes_them():
    pair = contenders(3, 10, GOOD, BETTER)
    a, b = (compare(pair, replicates=40, seed=7).to_dict() for _ in range(2))
    assert a == b
    assert a != compare(pair, replicates=40, seed=8).to_dict()
    json.dumps(a, allow_nan=False)


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
    drawn = dataclasses.replace(
        truth,
        image=np.repeat(np.arange(len(picks)), [len(each) for each in objects]),
        label=truth.label[rows],
        boxes=truth.boxes[rows],
        area=truth.area[rows],
        crowd=truth.crowd[rows],
    )
    return drawn, copies


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
        rows = compare(contenders(100 + trial, 29, GOOD, BETTER), replicates=300).differences
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
    return _Sample(full[:, 0], drawn, picks)


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
        spread = _Spread.of(pair, [-1, 1], images=500)
        low, high = spread.quantiles(0.95)
        covered.append(low <= 0 <= high)
        variances.append(spread.variance)
        assert (spread.p_value() > 0.05) == covered[-1] or abs(spread.p_value() - 0.05) < 0.02
    expected = 2 * (common**2 + (own**2 + training**2) / seeds)
    assert np.mean(variances) == pytest.approx(expected, rel=0.2)
    assert np.mean(covered) >= 0.9


def test_what_is_needed_follows_from_the_noise():
    rng = np.random.default_rng(7)
    kinds = {
        "images": (0.02, 0.0, 0.0),
        "seeds": (0.0005, 0.0, 0.007),
        "hopeless": (0.02, 0.0, 0.5),
    }
    needed = {
        name: _Spread.of(
            [synthetic(rng, 8, *noise, replicates=4000) for _ in range(2)], [-1, 1], 100
        ).needed(0.01, 0.95, 100)
        for name, noise in kinds.items()
    }
    allowed = (0.01 / (1.96 + 0.842)) ** 2
    assert needed["images"].images == pytest.approx(100 * 2 * 0.02**2 / allowed, rel=0.15)
    assert needed["images"].seeds is None
    assert 3 <= needed["seeds"].seeds <= 20
    assert needed["hopeless"] == Needed(0.01, None, None, None)


def test_holms_correction_in_an_example_from_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_more_planned_comparisons_make_each_stricter():
    group = contenders(8, 25, GOOD, BETTER, GOOD, BETTER)
    alone = compare(group, [("d0", "d1")], replicates=300).of("ap")[0]
    ladder = compare(group, replicates=300)
    assert [(d.first, d.second) for d in ladder.of("ap")] == list(
        itertools.pairwise(["d0", "d1", "d2", "d3"])
    )
    among = ladder.of("ap")[0]
    assert among.p == alone.p == alone.p_adjusted
    assert among.p_adjusted >= among.p


def difference(**changes):
    plain = Difference(
        first="plain",
        second="refine",
        quantity="ap",
        estimate=0.018,
        low=0.004,
        high=0.031,
        p=0.01,
        p_adjusted=0.02,
        images=29,
        seeds=(3, 3),
        needed=Needed(0.01, 396, 6, None),
    )
    return dataclasses.replace(plain, **changes)


VERDICTS = [
    ({}, "refine beats plain by 1.8 AP [0.4, 3.1]"),
    (
        {"estimate": -0.018, "low": -0.031, "high": -0.004},
        "plain beats refine by 1.8 AP [0.4, 3.1]",
    ),
    ({"seeds": (1, 1)}, "this trained refine beats this trained plain by 1.8 AP [0.4, 3.1]"),
    ({"seeds": (1, 3)}, "refine with 3 seeds beats this trained plain by 1.8 AP [0.4, 3.1]"),
    (
        {"p_adjusted": 0.08},
        "refine is ahead of plain by 1.8 AP [0.4, 3.1], but with several comparisons planned "
        "that may be chance (adjusted p = 0.080)",
    ),
    (
        {"estimate": 0.002, "low": -0.012, "high": 0.016, "p_adjusted": 0.7},
        "refine and plain are not distinguishable on 29 images with 3 seeds (0.2 AP [-1.2, 1.6]): "
        "to resolve 1 AP here you need about 400 images or 6 seeds",
    ),
    (
        {
            "estimate": 0.002,
            "low": -0.012,
            "high": 0.016,
            "p_adjusted": 0.7,
            "seeds": (1, 1),
            "needed": Needed(0.01, 12345, None, None),
        },
        "this trained refine and this trained plain are not distinguishable on 29 images "
        "(0.2 AP [-1.2, 1.6]): to resolve 1 AP here you need about 13,000 images",
    ),
    (
        {"low": -0.01, "p_adjusted": 0.2, "needed": Needed(0.01, None, None, (400, 9))},
        "refine and plain are not distinguishable on 29 images with 3 seeds (1.8 AP [-1.0, 3.1]): "
        "to resolve 1 AP here you need about 400 images and 9 seeds",
    ),
    (
        {"low": -0.01, "p_adjusted": 0.2, "needed": Needed(0.01, None, None, None)},
        "refine and plain are not distinguishable on 29 images with 3 seeds (1.8 AP [-1.0, 3.1]): "
        "seeds differ too much to resolve 1 AP, even with 20 of each",
    ),
    (
        {"estimate": 0.001, "low": -0.004, "high": 0.006, "p_adjusted": 0.7},
        "refine and plain are equal within 1 AP: 0.1 AP [-0.4, 0.6]",
    ),
    (
        {"quantity": "class:Goggles"},
        "refine beats plain by 1.8 AP on Goggles [0.4, 3.1]",
    ),
    (
        {"quantity": "ap_small", "estimate": None, "low": None, "high": None, "p_adjusted": None},
        "refine against plain: nothing to judge in AP on small objects",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), VERDICTS)
def test_verdicts_are_plain_words(changes, sentence):
    assert verdict(difference(**changes)) == sentence


def test_one_seed_is_explained_once():
    notes = compare(contenders(9, 10, GOOD, BETTER), replicates=20).notes()
    assert "only several seeds can tell" in notes[1]
    several = compare(contenders(9, 10, GOOD, BETTER, seeds=2), replicates=20)
    assert len(several.notes()) == 1
    assert several.of("ap")[0].seeds == (2, 2)


def test_a_class_without_objects_is_not_judged():
    rng = np.random.default_rng(10)
    scenes = simulation.draw_scenes(rng, 12)
    keep = scenes.truth.label != 2
    truth = dataclasses.replace(
        scenes.truth,
        image=scenes.truth.image[keep],
        label=scenes.truth.label[keep],
        boxes=scenes.truth.boxes[keep],
        area=scenes.truth.area[keep],
        crowd=scenes.truth.crowd[keep],
    )
    runs = [match(truth, simulation.detect(rng, scenes, each)) for each in (GOOD, BETTER)]
    result = compare([Contender(str(i), (run,)) for i, run in enumerate(runs)], replicates=30)
    (rare,) = result.of("class:class 2")
    assert rare.estimate is rare.p_adjusted is rare.needed is None
    assert result.of("ap")[0].estimate is not None
    assert result.intervals["0"]["class:class 2"].low is None


def test_what_cannot_be_compared_is_refused():
    pair = contenders(11, 10, GOOD, BETTER)
    with pytest.raises(UserError, match="other images or classes"):
        compare([pair[0], dataclasses.replace(contenders(11, 9, GOOD)[0], name="x")])
    with pytest.raises(UserError, match="'d7' is not compared here; known: d0, d1"):
        compare(pair, [("d0", "d7")])
    with pytest.raises(UserError, match="same name"):
        compare([pair[0], pair[0]])
    with pytest.raises(UserError, match="nothing to compare"):
        compare([])


@pytest.mark.parametrize(("estimate", "bound"), [(0.001, 0.0), (0.999, 1.0)])
def test_an_interval_of_ap_stays_between_0_and_1(estimate, bound):
    replicates = estimate + np.random.default_rng(0).normal(0, 0.05, size=500)
    spread = _Spread(estimate, replicates, 0.05**2, 20.0, 0.05**2, 0.0, None, 1)
    interval = _own_interval(spread, 0.95)
    assert bound in (interval.low, interval.high)
    assert 0 <= interval.low <= estimate <= interval.high <= 1
