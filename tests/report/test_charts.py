import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from detrlab.report import charts
from detrlab.report.charts import MANY, Estimate, Group, Level, Line

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
    chart = charts.line_chart("t", "epoch", "AP", [line("a", [1, 2, 3], [0, 0, 0])], shared=True)
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
    assert "−1.0 [−4.0, +2.0]" in str(chart)


def test_levels_stand_where_their_values_are():
    rows = [Level("a", 10.0, 5.0, 20.0, (9.0, 11.0)), Level("b", 20.0, 15.0, 30.0, (20.0,))]
    groups = list(parsed(charts.levels("t", "AP", rows)).iter("g"))
    (ten, twenty) = (
        float(re.search(r"translate\(([\d.]+)", each.find("path").get("transform"))[1])
        for each in groups
    )
    first, second = (each.find("line") for each in groups)
    assert float(first.get("x2")) == pytest.approx(twenty, abs=0.2), "20 is one place for all"
    assert float(first.get("x1")) < ten < float(second.get("x1")) < twenty
    seeds = [float(each.get("cx")) for each in groups[0].iter("circle")]
    assert sum(seeds) / 2 == pytest.approx(ten, abs=0.2)
    assert not list(groups[1].iter("circle")), "one seed is the value itself"


def test_bars_are_as_long_as_their_values():
    groups = [Group("cat", [10.0, 20.0], [(5.0, 40.0), None]), Group("dog", [None, 40.0])]
    bars = list(parsed(charts.bars("t", "AP", ["a", "b"], groups)).iter("g"))
    widths = [float(each.find("rect").get("width")) for each in bars]
    assert widths == pytest.approx([widths[0], 2 * widths[0], 4 * widths[0]], abs=0.2)
    left = float(bars[0].find("rect").get("x"))
    whisker = bars[0].find("line")
    assert float(whisker.get("x1")) - left == pytest.approx(widths[0] / 2, abs=0.2)
    assert float(whisker.get("x2")) - left == pytest.approx(widths[2], abs=0.2)
    assert [each.find("title").text for each in bars] == [
        "a, cat: 10.0 [5.0, 40.0]", "b, cat: 20.0", "b, dog: 40.0",
    ]  # fmt: skip


def test_a_long_curve_keeps_its_points_for_reading():
    values = list(range(MANY + 1))
    chart = parsed(charts.line_chart("t", "epoch", "AP", [line("a", values, values)]))
    (curve,) = (each for each in chart.iter("g"))
    assert "many" in curve.get("class").split()
    points = list(curve.iter("circle"))
    assert [float(each.get("data-y")) for each in points] == values
    assert not list(chart.iter("title")), "a table says what so many points are"


def test_dots_without_a_value_are_left_out():
    groups = [Group("cat", [10.0, None]), Group("dog", [1, 2])]
    chart = charts.dot_plot("t", "AP", ["a", "b"], groups)
    assert len(numbers_of(chart)) == 3


def numbers_of(chart):
    return [each for each in parsed(chart).iter("path") if "mark" in each.get("class")]


def test_eight_detectors_have_eight_marks():
    marks = {re.sub(r"translate\(.*?\)", "", str(charts.marker(index, 0, 0))) for index in range(8)}
    assert len(marks) == 8


@pytest.mark.parametrize(
    "chart",
    [
        charts.line_chart(HOSTILE, HOSTILE, HOSTILE, [line(HOSTILE, [1, 2], [1, 2])]),
        charts.forest(HOSTILE, HOSTILE, [Estimate(HOSTILE, 1, 0, 2, True)]),
        charts.dot_plot(HOSTILE, HOSTILE, [HOSTILE], [Group(HOSTILE, [1.0])]),
        charts.bars(HOSTILE, HOSTILE, [HOSTILE], [Group(HOSTILE, [1.0], [(0.0, 2.0)])]),
        charts.levels(HOSTILE, HOSTILE, [Level(HOSTILE, 1, 0, 2)]),
    ],
)
def test_names_from_the_data_stay_text(chart):
    assert "<script" not in str(chart)
    assert not list(parsed(chart).iter("script"))
    assert re.search("&lt;script&gt;", str(chart))
