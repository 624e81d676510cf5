import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from compare_cases import result, table
from detrlab.compare import curves
from detrlab.compare.curves import Crossing, Curve


def curve(name, x, y):
    return Curve(name, tuple(x), tuple(y), tuple(y), tuple(y))


def test_a_curve_is_the_mean_over_the_seeds():
    rows = table(result("a", 0, curve=(0.1, 0.2, 0.3)), result("a", 1, curve=(0.3, 0.4)))
    line = curves.charts(rows)[0].curves[0]
    assert line.x == (1, 2), "only epochs that every seed has"
    assert line.y == pytest.approx((20, 30))
    assert line.low == pytest.approx((10, 20))
    assert line.high == pytest.approx((30, 40))


def test_curves_cross_where_the_last_overtaking_is():
    slow = curve("slow", [1, 2, 3, 4], [0, 10, 20, 30])
    fast = curve("fast", [1, 2, 3, 4], [5, 12, 18, 20])
    (crossing,) = curves.crossings([slow, fast])
    assert crossing == Crossing("slow", "fast", 2.5)


def test_curves_that_never_change_places_do_not_cross():
    one, two = curve("a", [1, 2], [1, 2]), curve("b", [1, 2], [2, 3])
    assert curves.crossings([one, two]) == ()
    assert curves.crossings([one, one]) == ()


def test_touching_is_not_crossing():
    one, two = curve("a", [1, 2, 3], [1, 2, 3]), curve("b", [1, 2, 3], [2, 2, 4])
    assert curves.crossings([one, two]) == ()


def test_curves_are_compared_where_both_are():
    early = curve("early", [1, 2], [10, 20])
    late = curve("late", [1.5, 3], [0, 300])
    (crossing,) = curves.crossings([early, late])
    assert crossing.ahead == "late"
    assert 1.5 < crossing.x < 2


def test_the_front_holds_what_nothing_beats():
    points = [(1, 10), (2, 20), (3, 15), (2, 20), (4, 30)]
    assert curves.pareto_front(points) == [0, 1, 3, 4]


def test_pictures_open(tmp_path):
    rows = table(result("a"), result("b & <c>", curve=(0.1, 0.1), minutes=1.0))
    written = curves.write_pictures(rows, tmp_path)
    assert {path.name for path in written} >= {"ap-epochs.png", "loss-epochs.svg", "ap-cost.png"}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size > (500, 300)
        else:
            ElementTree.parse(path)


def test_a_comparison_without_curves_draws_none(tmp_path):
    assert curves.write_pictures(table(result("a", curve=(), minutes=None)), tmp_path) == ()
