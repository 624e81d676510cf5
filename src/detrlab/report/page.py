"""The page of a comparison: one HTML file that loads nothing and is complete without scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from detrlab import files
from detrlab.compare import curves
from detrlab.compare.curves import Chart, mean_curve
from detrlab.compare.entrants import recipe_differences
from detrlab.compare.statistics import verdict
from detrlab.compare.tables import NOTHING, Grid
from detrlab.data.check_report import Summary, summarize
from detrlab.explain.curves import CURVES_FILE, Curves
from detrlab.report import charts
from detrlab.report.charts import Estimate
from detrlab.report.explorer import exploration
from detrlab.report.gallery import Exhibit, choose, exhibits, view_of

if TYPE_CHECKING:
    from detrlab.compare.results import Row, RunResult
    from detrlab.compare.statistics import Difference, Interval
    from detrlab.compare.study import Comparison
    from detrlab.data import DataSet
    from detrlab.evaluation.records import GroundTruth

POINTS = "AP in points"
SIZES = ("small", "medium", "large")
MANY_CLASSES = 12
"""A table of more classes has a line for each of them instead of a column."""


def write(comparison: Comparison, truth: GroundTruth, data: DataSet | None, pictures: int) -> None:
    """Write a comparison's page to ``comparison.report``, and its curves to ``pictures/``.

    Args:
        comparison: its results.
        truth: the annotations of the validation split.
        data: for the pixels of the images; None leaves the images out.
        pictures: number of validation images on the page.

    Raises:
        UserError: a file cannot be written.
    """
    shown: list[Exhibit] = []
    explored: dict[str, Any] | None = None
    if data is not None and pictures:
        views = [view_of(row, truth, comparison.folder) for row in comparison.rows]
        shown = exhibits(views, truth, data.val, choose(truth, pictures))
        explored = exploration(views, shown, truth, data.val)
    drawn = draw(comparison)
    for name, (svg, _) in drawn.items():
        files.write_text(comparison.folder / "pictures" / f"{name}.svg", svg)
    splits = [] if data is None else [summarize(data.train), summarize(data.val)]
    files.write_text(comparison.report, render(comparison, drawn, shown, explored, splits))


def draw(comparison: Comparison) -> dict[str, tuple[str, Grid | None]]:
    """The curves of a comparison: by name an SVG and its numbers."""
    series = {row.name: index for index, row in enumerate(comparison.rows)}
    return {
        chart.name: (charts.curves(chart, series), _numbers(chart))
        for chart in (*curves.charts(comparison.rows), *_observed(comparison))
    }


def render(
    comparison: Comparison,
    drawn: dict[str, tuple[str, Grid | None]],
    shown: Sequence[Exhibit] = (),
    explored: dict[str, Any] | None = None,
    splits: Sequence[Summary] = (),
) -> str:
    """The page as text. Everything that comes from the data is escaped."""
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("detrlab.report")
    page, style, script = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.html.j2", "page.css", "page.js")
    )
    for name, colours in (("LIGHT", charts.DETECTORS), ("DARK", charts.DETECTORS_ON_DARK)):
        values = " ".join(f"--s{index}: {colour};" for index, colour in enumerate(colours))
        style = style.replace(f"--{name}: 0;", values)
    # The policy allows this script only, whatever a name from the data contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows, definition, found = comparison.rows, comparison.definition, comparison.verdicts.found
    quality, cost, classes, original = comparison.grids
    return environment.from_string(page).render(
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        comparison=comparison,
        facts=definition.data,
        spent=_spent(comparison),
        missing=_missing(comparison),
        reading=_reading(rows),
        levels=_levels(comparison),
        grids=[quality, cost, _turned(classes)],
        original=original,
        differences=_differences(comparison),
        more_sentences=[
            verdict(each, found.level)
            for each in found.differences
            if each.quantity != "ap" and each.estimate is not None
        ],
        legend=[(row.name, charts.embedded(charts.key(i))) for i, row in enumerate(rows)],
        crossings=_crossings(comparison),
        charts=[(charts.embedded(svg), numbers) for svg, numbers in drawn.values()],
        by_size_and_class=_by_size_and_class(comparison),
        exhibits=shown,
        exploration=explored and Markup(in_script(explored)),
        first_seed=next((row.seeds[0] for row in rows if len(row.seeds) > 1), None),
        splits=splits,
        fairness=_fairness(rows),
        recipe=yaml.safe_dump(definition.recipe.to_dict(), sort_keys=False, allow_unicode=True),
        recipe_differences=recipe_differences(definition.recipe),
        environment=_environment([run for row in rows for run in row.runs]),
    )


def in_script(values: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# --- sentences ----------------------------------------------------------------------------


def _reading(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.seeds) for row in rows if row.seeds})
    if not counts:
        return "Only predictions are known, so the verdicts are about these models."
    if counts == [1]:
        return (
            "With one seed each, the verdicts are about these trained models, not about the "
            "architectures."
        )
    text = f"Detectors were trained with {_either(counts)} seeds; intervals cover seeds and images."
    if counts[0] == 1:
        text += " A detector with one seed is judged as that trained model."
    return text


def _spent(comparison: Comparison) -> str:
    counts = sorted({len(row.seeds) for row in comparison.rows if row.seeds}) or [0]
    seeds = f"{_either(counts)} seed{'s' * (counts != [1])}"
    if comparison.definition.budget:
        return f"{comparison.definition.budget} each, {seeds}"
    epochs = sorted({len(run.epochs) for row in comparison.rows for run in row.runs if run.epochs})
    return f"{_either(epochs) or 'no'} epochs, {seeds}"


def _either(numbers: Iterable[object]) -> str:
    return " or ".join(map(str, numbers))


def _missing(comparison: Comparison) -> str:
    """The runs of the comparison that have no result and did not just fail."""
    known = {(run.entrant, run.seed) for row in comparison.rows for run in row.runs}
    known |= {(failure.entrant, failure.seed) for failure in comparison.failures}
    return "; ".join(
        f"{entrant.name}, seed {seed}"
        for entrant in comparison.definition.entrants
        for seed in comparison.definition.seeds
        if (entrant.name, seed) not in known
    )


def _crossings(comparison: Comparison) -> list[str]:
    units = {"ap-epochs": "epoch", "ap-minutes": "minute"}
    return [
        f"{crossing.ahead} overtakes {crossing.behind} at {units[name]} {crossing.x:.1f} "
        "and stays ahead."
        for name, found in comparison.crossings.items()
        for crossing in found
    ]


# --- charts and tables --------------------------------------------------------------------


def _observed(comparison: Comparison) -> list[Chart]:
    """What was recorded during training: AP of each layer, stability of the matching."""
    layers, unstable = [], []
    for row in comparison.rows:
        paths = [comparison.folder / run.folder / CURVES_FILE for run in row.runs if run.folder]
        seeds = [
            epochs for path in paths if path.is_file() and (epochs := Curves.load(path).epochs)
        ]
        last = [enumerate(epochs[-1].layer_ap, 1) for epochs in seeds]
        changes = [((each.epoch, each.unstable[-1]) for each in epochs if each.unstable)
                   for epochs in seeds]  # fmt: skip
        for found, values in ((layers, last), (unstable, changes)):
            points = [{x: (x, 100 * y) for x, y in seed if y is not None} for seed in values]
            if curve := mean_curve(row.name, points):
                found.append(curve)
    drawn = [
        Chart("layers", "AP of each decoder layer, last epoch", "decoder layer", POINTS,
              tuple(layers)),
        Chart("stability", "Objects matched to another query than one epoch before", "epoch",
              "% of objects", tuple(unstable)),
    ]  # fmt: skip
    return [chart for chart in drawn if chart.curves]


def _numbers(chart: Chart) -> Grid | None:
    """A chart as a table, where the curves share their x."""
    if "minutes" in chart.x_label:
        return None
    columns = [dict(zip(curve.x, curve.y, strict=True)) for curve in chart.curves]
    cells = [
        (f"{x:g}", *(f"{column[x]:.4g}" if x in column else NOTHING for column in columns))
        for x in sorted({x for column in columns for x in column})
    ]
    headers = (chart.x_label, *(curve.name for curve in chart.curves))
    return Grid(f"{chart.title}: {chart.y_label}", headers, tuple(cells))


def _turned(grid: Grid) -> Grid:
    """A table of many classes with a line for each class."""
    if len(grid.headers) <= MANY_CLASSES + 1:
        return grid
    headers, *cells = zip(grid.headers, *grid.cells, strict=True)
    best = frozenset((column - 1, row + 1) for row, column in grid.best)
    return Grid(grid.title, ("class", *headers[1:]), tuple(cells), best)


def _levels(comparison: Comparison) -> Markup | None:
    known = comparison.verdicts.found.intervals
    found = []
    for index, row in enumerate(comparison.rows):
        seeds = [100 * run.metrics["ap"] for run in row.runs]
        found += _estimate(row.name, row.name, index, known[row.name]["ap"], seeds=seeds)
    title = "AP of each detector with its 95 % interval"
    if any(len(each.seeds) > 1 for each in found):
        title += "; small dots: each seed"
    return charts.embedded(charts.intervals("levels", title, POINTS, found)) if found else None


def _by_size_and_class(comparison: Comparison) -> list[Markup]:
    known = comparison.verdicts.found.intervals
    wanted = {
        "AP by object size": {f"ap_{size}": f"{size} objects" for size in SIZES},
        "AP by class": {f"class:{label}": label for label in comparison.rows[0].per_class},
    }
    drawn = []
    for title, quantities in wanted.items():
        found = []
        for quantity, label in quantities.items():
            for index, row in enumerate(comparison.rows):
                if interval := known[row.name].get(quantity):
                    found += _estimate(label, row.name, index, interval)
        if found:
            drawn.append(charts.embedded(charts.intervals(title, title, POINTS, found)))
    return drawn


def _differences(comparison: Comparison) -> list[Markup]:
    names = {"ap": "AP", **{f"ap_{size}": f"AP on {size} objects" for size in SIZES}}
    least = 1 - comparison.verdicts.found.level
    drawn = []
    for quantity, words in names.items():
        found = []
        for d in comparison.verdicts.differences(quantity):
            name = f"{d.second} − {d.first}"
            clear = d.p_adjusted is not None and d.p_adjusted <= least
            found += _estimate(name, name, 0, d, clear=clear)
        if found:
            title = f"Differences in {words}"
            drawn.append(charts.embedded(charts.intervals(title, title, "points of AP", found)))
    return drawn


def _estimate(
    row: str, name: str, series: int, found: Interval | Difference, **more: Any
) -> list[Estimate]:
    """A value with its interval in points; nothing where there were no objects."""
    if found.estimate is None or found.low is None or found.high is None:
        return []
    value, low, high = 100 * found.estimate, 100 * found.low, 100 * found.high
    return [Estimate(row, name, series, value, low, high, **more)]


# --- facts --------------------------------------------------------------------------------


def _fairness(rows: Sequence[Row]) -> dict[str, str]:
    """What was the same for all detectors, and what was not."""
    parameters = [(row.name, row.cost.parameters) for row in rows if row.cost.parameters]
    facts = {
        "Data": "the same images and annotations for all, by fingerprint",
        "Evaluator": "one for all: COCO's protocol, 100 detections per image, no padding",
        "Order of images": _same(rows, "order", "the same images in the same order"),
        "Augmentation": "drawn from (seed, epoch, image): all detectors see the same pictures",
        "First backbone": _same(rows, "initial_backbone", "the same initial backbone weights"),
        "Seeds": _of_each(rows, lambda run: run.seed, ", "),
        "Epochs": _of_each(rows, lambda run: len(run.epochs), " or "),
        "Parameters": "; ".join(f"{name} {n:,}" for name, n in parameters) or "unknown",
    }
    if foreign := [row.name for row in rows if not row.seeds]:
        facts["Other tools"] = (
            f"{', '.join(foreign)}: only their predictions are known, not their training data, "
            "training time or initial weights"
        )
    return facts


def _same(rows: Sequence[Row], key: str, words: str) -> str:
    """Whether all detectors share a fingerprint, seed by seed."""
    trained = [run for row in rows for run in row.runs if run.seed is not None]
    prints = {(run.entrant, run.seed): str(run.environment.get(key, "unknown")) for run in trained}
    if len({(seed, text) for (_, seed), text in prints.items()}) == len({s for _, s in prints}):
        return f"{words}, by fingerprint"
    return "NOT the same for all: " + "; ".join(
        f"{name}, seed {seed}: {text[:12]}" for (name, seed), text in prints.items()
    )


def _of_each(rows: Sequence[Row], value: Callable[[RunResult], Any], joint: str) -> str:
    found = {
        row.name: joint.join(map(str, sorted({value(run) for run in row.runs})))
        for row in rows
        if row.seeds
    }
    if len(set(found.values())) == 1:
        return f"{next(iter(found.values()))} for each"
    return "; ".join(f"{name} {words}" for name, words in found.items())


def _environment(runs: Sequence[RunResult]) -> dict[str, str]:
    """Versions and machines; all that occur where the runs differ."""
    keys = ("packages", "python", "platform", "processor", "device", "processes",
            "deformable_attention")  # fmt: skip
    values = {key: [_flat(run.environment.get(key)) for run in runs] for key in keys}
    values["latency measured on"] = [run.cost.machine for run in runs]
    return {
        key.replace("_", " ").capitalize(): " | ".join(found)
        for key, texts in values.items()
        if (found := list(filter(None, dict.fromkeys(texts))))
    }


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items() if version)
    return "" if value is None else str(value)
