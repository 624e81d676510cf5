import math

import pytest

from compare_cases import result, table
from detrlab.compare import curves
from detrlab.compare.curves import Curve


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


def test_the_last_chart_is_ap_against_the_cost():
    rows = table(result("a", ap=0.2, minutes=3.0), result("b", minutes=None))
    (chart,) = (chart for chart in curves.charts(rows) if chart.name == "ap-cost")
    assert [(each.name, each.x, each.y) for each in chart.curves] == [("a", (3.0,), (20.0,))]


def test_a_comparison_without_curves_has_no_charts():
    assert curves.charts(table(result("a", curve=(), minutes=None))) == ()
