"""What each step bought: every number from the comparison, the paper's beside it."""

import re
from pathlib import Path

from detrlab.compare.results import METRICS, Cost, Epoch, Row, RunResult
from detrlab.compare.statistics import Difference, Findings, Interval
from detrlab.compare.steps import steps_grid
from detrlab.presets import BESIDE_THE_LADDER, LADDER
from detrlab.presets.ladder import PUBLISHED_GAINS

NAMES = ("mixed-deformable-detr", "dino-4scale")


def row(name, curve):
    metrics = dict.fromkeys(METRICS, curve[-1])
    epochs = tuple(Epoch(i + 1, i + 1.0, metrics={"ap": ap}) for i, ap in enumerate(curve))
    cost = Cost(parameters=47_000_000, minutes=12.34)
    run = RunResult(name, 0, "k", {**metrics, "per_class": {}}, "p", epochs=epochs, cost=cost)
    return Row(name, (run,), metrics, {}, cost)


def test_the_table():
    rows = [row(NAMES[0], [0.1, 0.2, 0.3]), row(NAMES[1], [0.2, 0.31, 0.4])]
    intervals = {
        each.name: {
            name: Interval(each.metrics[name], 0.1, 0.5)
            for name in ("ap", "ap_small", "ap_medium", "ap_large")
        }
        for each in rows
    }
    gain = Difference(*NAMES, "ap", 0.1, 0.05, 0.15, 0.01, 0.01, 9, (1, 1), None)
    grid = steps_grid(rows, Findings(intervals, (gain,), 9))
    first, last = (dict(zip(grid.headers, cells, strict=True)) for cells in grid.cells)
    assert first["step"] == NAMES[0]
    assert first["gain"] == first["epochs to the AP before"] == "–"
    assert last["AP"] == last["APs"] == "40.0 [10.0, 50.0]"
    assert last["gain"] == "+10.0 [+5.0, +15.0]"
    assert last["epochs to the AP before"] == "2"
    assert (last["minutes"], last["params"]) == ("12.3", "47.0 M")
    assert last["published gain"] == PUBLISHED_GAINS["dino-4scale"].words
    assert first["published gain"] == "–", "what it is over did not take part"
    assert steps_grid(rows[:1], Findings(intervals, (), 9)) is None


def test_the_page_lists_every_step_and_its_published_gain():
    page = (Path(__file__).parents[2] / "docs" / "line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| `([\w-]+)` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    told = {name: (words, source) for name, words, source in rows if "not publ" not in words}
    assert told == PUBLISHED_GAINS
    assert {name for name, *_ in rows} <= {*LADDER, *BESIDE_THE_LADDER}
    steps = [name for name, *_ in rows if name in LADDER]
    assert steps == list(LADDER[LADDER.index("deformable-detr") :])
