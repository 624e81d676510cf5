import csv
import io

import pytest

from compare_cases import result, table
from detrlab.compare import curves, tables
from detrlab.compare.results import RunResult
from detrlab.presets import FIVE


def test_numbers_are_in_points_and_nothing_is_a_dash():
    grid = tables.quality_grid(
        table(result("detr", ap=0.2, ap_small=None), result("b", ap=0.25)), {}
    )
    assert grid.headers[:3] == ("model", "AP", "AP50")
    assert "APs" not in grid.headers, "a column without any number is left out"
    assert grid.cells[0][:3] == ("detr", "20.0", "40.0")
    assert (1, 1) in grid.best
    assert (0, 1) not in grid.best


def test_costs_that_nobody_measured_are_left_out():
    grid = tables.cost_grid(table(result("detr", minutes=2.25), result("b")))
    assert grid.headers == ("model", "params", "epochs", "minutes")
    assert grid.cells[0] == ("detr", "1.2 M", "3", "2.2")


def test_seeds_are_averaged():
    (row,) = table(result("a", seed=0, ap=0.1), result("a", seed=1, ap=0.3))
    assert row.seeds == (0, 1)
    assert abs(row.metrics["ap"] - 0.2) < 1e-12
    assert row.per_class == {"cat": 0.2, "dog": 0.2}
    assert row.metrics["ap_small"] is None


def test_minutes_are_those_of_the_first_seed():
    (row,) = table(*(result("a", seed, minutes=minutes) for seed, minutes in enumerate((2, 60))))
    assert row.cost.minutes == 2
    (line,) = next(chart for chart in curves.charts([row]) if chart.name == "ap-minutes").curves
    assert line.x[-1] == 2


def test_equal_numbers_have_no_best():
    grid = tables.quality_grid(table(result("a"), result("b")), {})
    assert grid.best == frozenset()


def test_the_original_layout_has_metrics_down_and_detectors_across():
    grid = tables.original_grid(table(result("detr", ap=0.232), result("two", ap=0.327)))
    assert grid.headers == ("metric", "detr", "two")
    assert [cells[0] for cells in grid.cells] == [
        "mAP", "mAP_50", "mAP_75", "mAP_cat", "mAP_dog", "mAP_small", "mAP_medium", "mAP_large",
    ]  # fmt: skip
    assert grid.cells[0][1:] == ("0.2320", "0.3270")


def test_markup_in_names_stays_text():
    hostile = "<script>|`$\\x_1\n&{}"
    grid = tables.class_grid(table(result("a", classes=(hostile,)), result("b", ap=0.3)))
    line = grid.markdown().splitlines()[0]
    assert "<script>" not in line
    assert len(grid.markdown().splitlines()) == 4
    assert r"\&\{\}" in grid.latex()
    assert r"\textbackslash{}x\_1" in grid.latex()


def test_the_terminal_shows_names_as_they_are():
    text = shown(tables.class_grid(table(result("a", classes=("[red]x[/]", "\x1b[31mred")))), 120)
    assert "[red]x[/]" in text
    assert "\x1b" not in text


def shown(grid, width):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(grid.terminal(width))
    return console.file.getvalue()


def five(classes):
    return table(*(result(name, ap=0.2, classes=classes) for name in FIVE))


def quality(rows):
    return tables.quality_grid(rows, dict.fromkeys(FIVE, "[30.1, 45.2]"))


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("classes", [("cat", "dog"), [f"light number {n}" for n in range(80)]])
@pytest.mark.parametrize(
    "grid", [quality, tables.original_grid, tables.cost_grid, tables.class_grid]
)
def test_a_narrow_terminal_shows_everything(grid, classes, width):
    """Numbers are whole, names are readable, and no line is wider than the terminal."""
    grid = grid(five(classes))
    text = shown(grid, width)
    assert max(map(len, text.splitlines())) <= width
    for row in grid.cells:
        assert all(text.count(cell) >= row.count(cell) for cell in row[1:])
        pieces = [row[0]] if width > 40 else [row[0][start : start + 8] for start in (0, 8)]
        assert all(piece in text for piece in pieces)
    words = " ".join(grid.headers).replace("-", "- ").split()
    assert all(word in text for word in words)


def test_many_classes_become_rows():
    grid = tables.class_grid(five([f"light {number}" for number in range(80)]))
    assert (len(grid.headers), len(grid.cells)) == (6, 80)


def test_a_turned_table_keeps_what_is_best():
    grid = tables.quality_grid(table(result("a", ap=0.1), result("b", ap=0.2)), {})
    turned = grid.turned()
    assert turned.turned() == grid
    assert all(turned.cells[c - 1][r + 1] == grid.cells[r][c] for r, c in grid.best)
    assert (0, 2) in turned.best


def test_csv_has_one_line_a_run_at_full_precision():
    text = tables.csv_text(table(result("a", 0, ap=1 / 3), result("a", 1), result("=b", 0)))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["model"], line["seed"]) for line in lines] == [
        ("a", "0"), ("a", "1"), ("'=b", "0"),
    ]  # fmt: skip
    assert float(lines[0]["ap"]) == 1 / 3
    assert lines[0]["ap_small"] == ""
    assert float(lines[0]["ap_class_cat"]) == 1 / 3


def test_a_result_comes_back_from_its_file(tmp_path):
    folder = tmp_path / "a-1"
    before = result("a", 1, ap=1 / 3)
    before.save(folder)
    assert RunResult.load(folder) == before
    assert RunResult.load(tmp_path / "nowhere") is None
