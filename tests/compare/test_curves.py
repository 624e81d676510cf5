import math

import pytest

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


def test_epochs_whose_value_is_not_a_number_are_left_out():
    seeds = [{1: (1.0, 5.0), 2: (2.0, math.nan), 3: (3.0, 7.0)}, {2: (2.0, 1.0), 3: (3.0, 9.0)}]
    assert curves.mean_curve("a", seeds) == Curve("a", (3.0,), (8.0,), (7.0,), (9.0,))


def test_curves_cross_where_one_overtakes_the_other_for_the_last_time():
    slow = curve("slow", [1, 2, 3, 4], [0, 10, 20, 30])
    fast = curve("fast", [1, 2, 3, 4], [5, 12, 18, 20])
    assert curves.crossings([slow, fast]) == (Crossing("slow", "fast", 2.5),)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2, 3], [2, 3, 4]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [2, 2, 4]),
        ([0.1, 0.2, 0.3], [0.2, 0.1, 0.4]),
        ([0.2, 0.1, 0.3], [0.1, 0.2, 0.2]),
    ],
    ids=["never", "equal", "touching", "neither has learnt", "neither has learnt, reversed"],
)
def test_these_curves_do_not_cross(first, second):
    one, two = curve("a", [1, 2, 3], first), curve("b", [1, 2, 3], second)
    assert curves.crossings([one, two]) == ()


def test_curves_are_compared_where_both_are():
    early = curve("early", [1, 2], [10, 20])
    late = curve("late", [1.5, 3], [0, 300])
    (crossing,) = curves.crossings([early, late])
    assert crossing.ahead == "late"
    assert 1.5 < crossing.x < 2


def test_the_last_chart_is_ap_against_the_cost():
    rows = table(result("a", ap=0.2, minutes=3.0), result("b", minutes=None))
    (chart,) = (chart for chart in curves.charts(rows) if chart.name == "ap-cost")
    assert [(each.name, each.x, each.y) for each in chart.curves] == [("a", (3.0,), (20.0,))]


def test_a_comparison_without_curves_has_no_charts():
    assert curves.charts(table(result("a", curve=(), minutes=None))) == ()
