import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from detrlab.report import charts
from detrlab.report.charts import Dots, Estimate, Line

HOSTILE = "<script>alert(1)</script>&\"'"


def line(name, x, y, series=0):
    return Line(name, x, y, y, y, series)


def parsed(chart):
    return ElementTree.fromstring(str(chart))


def numbers(chart, element, attribute):
    return [float(each.get(attribute)) for each in parsed(chart).iter(element)]


def test_points_lie_where_their_values_are():
    chart = charts.line_chart("t", "epoch", "AP", [line("a", [1, 2, 4], [10, 20, 40])])
    x, y = numbers(chart, "circle", "cx"), numbers(chart, "circle", "cy")
    assert x[1] - x[0] == pytest.approx((x[2] - x[1]) / 2, abs=0.2)
    assert y[0] - y[1] == pytest.approx((y[1] - y[2]) / 2, abs=0.2)
    assert y[0] > y[1] > y[2], "larger values stand higher"


def test_a_logarithmic_axis_shows_ratios_as_distances():
    chart = charts.line_chart("t", "epoch", "loss", [line("a", [1, 2, 3], [16, 4, 1])], log=True)
    y = numbers(chart, "circle", "cy")
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)


def test_epochs_have_no_ticks_between_whole_numbers():
    chart = charts.line_chart("t", "epoch", "AP", [line("a", [1, 2, 3], [0, 0, 0])], whole=True)
    labels = [each.text for each in parsed(chart).iter("text")]
    assert "0.5" not in labels
    assert {"0", "1", "2", "3"} <= set(labels)


@pytest.mark.parametrize("values", [[0.0], [1e-9], [5.0], [100.0, 100.0], [-3.0, 4.0], [1e6]])
def test_any_values_give_a_chart_inside_its_frame(values):
    x = list(range(1, len(values) + 1))
    chart = charts.line_chart("t", "epoch", "AP", [line("a", x, values)])
    for place in numbers(chart, "circle", "cy"):
        assert math.isfinite(place)
        assert 0 <= place <= 310


def test_a_forest_shows_zero_and_every_interval():
    rows = [Estimate("b - a", 2.0, 0.5, 3.5, True), Estimate("c - b", -1.0, -4.0, 2.0, False)]
    chart = charts.forest("t", "AP", rows)
    tree = parsed(chart)
    zero = next(each for each in tree.iter("line") if each.get("class") == "zero")
    groups = [each for each in tree.iter("g") if "estimate" in each.get("class")]
    assert [each.get("class") for each in groups] == ["estimate clear", "estimate"]
    first, second = (each.find("line") for each in groups)
    at = float(zero.get("x1"))
    assert float(first.get("x1")) > at, "all of the first interval lies above zero"
    assert float(second.get("x1")) < at < float(second.get("x2"))
    assert "+2.0 [+0.5, +3.5]" in str(chart)


def test_dots_without_a_value_are_left_out():
    chart = charts.dot_plot("t", "AP", ["a", "b"], [Dots("cat", [10.0, None]), Dots("dog", [1, 2])])
    assert len(numbers(chart, "circle", "cx")) == 3


@pytest.mark.parametrize(
    "chart",
    [
        charts.line_chart(HOSTILE, HOSTILE, HOSTILE, [line(HOSTILE, [1, 2], [1, 2])]),
        charts.forest(HOSTILE, HOSTILE, [Estimate(HOSTILE, 1, 0, 2, True)]),
        charts.dot_plot(HOSTILE, HOSTILE, [HOSTILE], [Dots(HOSTILE, [1.0])]),
    ],
)
def test_names_from_the_data_stay_text(chart):
    assert "<script" not in str(chart)
    assert not list(parsed(chart).iter("script"))
    assert re.search("&lt;script&gt;", str(chart))
