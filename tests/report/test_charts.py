import re
import xml.etree.ElementTree as ElementTree

import pytest

from detrlab.compare.curves import Chart, Curve
from detrlab.report import charts
from detrlab.report.charts import MANY_POINTS, MANY_ROWS, Estimate

HOSTILE = "<script>alert(1)</script>&\"' $x_1$\x01\u4e2d"


def curve(name, y, low=None, high=None):
    x = tuple(map(float, range(1, len(y) + 1)))
    return Curve(name, x, tuple(y), tuple(low or y), tuple(high or y))


def drawn(*curves, **options):
    chart = Chart("name", "title", "epoch", "AP", curves, **options)
    return parsed(charts.curves(chart, {each.name: index for index, each in enumerate(curves)}))


def parsed(svg):
    return ElementTree.fromstring(re.sub(' xmlns="[^"]*"', "", svg))


def marks(chart, series=0):
    """(x, y, words) of a detector's markers."""
    groups = [g for g in chart.iter("g") if g.get("data-series") == str(series)]
    return [
        (float(use.get("x")), float(use.get("y")), "".join(use.itertext()))
        for group in groups
        for use in group.iter("use")
    ]


def test_markers_stand_at_their_values_and_say_them():
    points = marks(drawn(curve("a", [10, 20, 40]), curve("b", [1, 1, 1])))
    (x1, y1, words), (x2, y2, _), (x3, y3, _) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.01)
    assert 2 * (y1 - y2) == pytest.approx(y2 - y3, abs=0.01)
    assert words == "a: 10 at epoch 1"


def test_a_logarithmic_axis_shows_ratios_as_distances():
    chart = drawn(curve("a", [16, 4, 1]), log=True)
    y = [point[1] for point in marks(chart)]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.01)
    assert {"1", "2", "5", "10"} <= {text.text for text in chart.iter("text")}


def test_long_curves_have_no_markers_and_seeds_have_a_band():
    chart = drawn(curve("a", range(MANY_POINTS + 1)))
    assert not marks(chart)
    assert [title.text for title in chart.iter("title")] == ["a"]
    chart = drawn(curve("a", [1, 2], [0, 1], [2, 3]))
    assert [g.get("data-series") for g in chart.iter("g") if g.get("data-series")] == ["0", "0"]


def test_the_same_content_gives_the_same_bytes_for_page_and_file():
    chart = Chart("name", "title", "epoch", "AP", (curve("a", [1, 2]),))
    svg = charts.curves(chart, {"a": 0})
    assert svg == charts.curves(chart, {"a": 0})
    assert "var(" not in svg
    assert "var(--s0)" in charts.embedded(svg)


def test_estimates_stand_where_their_values_are_with_their_numbers_beside():
    rows = [Estimate("a", "a", 0, 10, 5, 20, (9, 11)), Estimate("b", "b", 1, 20, 15, 30)]
    svg = charts.intervals("name", "t", "AP", rows)
    chart = parsed(svg)
    (nine, *_), (eleven, *_), (ten, _, words) = marks(chart, 0)
    (twenty, *_), = marks(chart, 1)  # fmt: skip
    assert (nine + eleven) / 2 == pytest.approx(ten, abs=0.01)
    assert twenty - ten == pytest.approx(5 * (eleven - nine), abs=0.05)
    assert words == "a: 10.0 [5.0, 20.0]"
    assert {"10.0 [5.0, 20.0]", "20.0 [15.0, 30.0]"} <= {text.text for text in chart.iter("text")}


def test_differences_are_signed_and_filled_where_they_are_clear():
    rows = [Estimate("c", "c", None, 2, 0.5, 3.5, clear=True),
            Estimate("d", "d", None, -1, -4, 2, clear=False)]  # fmt: skip
    svg = charts.intervals("name", "t", "AP", rows)
    assert "+2.0 [+0.5, +3.5]" in svg
    assert "−1.0 [−4.0, +2.0]" in svg
    assert "data-series" not in svg, "no detector of the legend"
    clear, unclear = (
        use.get("style") for use in parsed(svg).iter("use") if use.find("title") is not None
    )
    assert f"fill: {charts.DETECTORS[0]}" in clear
    assert f"fill: {charts.PAPER}" in unclear


def test_many_classes_take_one_line_each():
    rows = [Estimate(f"class {k}", "a", s, k, 0, 99) for k in range(MANY_ROWS + 1) for s in (0, 1)]
    chart = parsed(charts.intervals("name", "t", "AP", rows))
    assert len(marks(chart, 0)) == len(marks(chart, 1)) == MANY_ROWS + 1
    assert [y for _, y, _ in marks(chart, 0)] == [y for _, y, _ in marks(chart, 1)]
    assert not [text for text in chart.iter("text") if "[" in text.text]


def test_eight_detectors_have_eight_marks():
    styles = {re.sub("-[0-7]|#[mp][0-9a-f]+", "", charts.key(series)) for series in range(8)}
    assert len(styles) == 8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "svg",
    [
        lambda: charts.curves(
            Chart("n", "t", "epoch", "AP", (curve(HOSTILE, [1, 2]),)), {HOSTILE: 0}
        ),
        lambda: charts.intervals("n", "t", "AP", [Estimate(HOSTILE, HOSTILE, 0, 1, 0, 2)]),
    ],
)
def test_names_from_the_data_stay_text(svg):
    chart = parsed(svg())
    assert not list(chart.iter("script"))
    texts = ["".join(each.itertext()) for each in chart.iter() if each.tag in ("text", "title")]
    assert [text for text in texts if "<script>alert(1)</script>&\"' $x_1$ \u4e2d" in text]
