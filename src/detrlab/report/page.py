"""The page of a comparison: one HTML file that loads nothing and is complete without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from detrlab import files
from detrlab.compare import curves
from detrlab.compare.curves import Chart, Curve, mean_curve
from detrlab.compare.entrants import recipe_differences
from detrlab.compare.tables import NOTHING, Grid
from detrlab.data.check_report import Summary, summarize
from detrlab.explain.curves import CURVES_FILE, Curves
from detrlab.palette import SIZES
from detrlab.report import charts
from detrlab.report.charts import Estimate
from detrlab.report.explorer import exploration
from detrlab.report.gallery import Exhibit, choose, exhibits, view_of
from detrlab.report.parts import marks, stylesheet, text_of

if TYPE_CHECKING:
    from detrlab.compare.results import Row, RunResult
    from detrlab.compare.study import Comparison
    from detrlab.data import DataSet
    from detrlab.evaluation.records import GroundTruth

POINTS = "AP in points"
ENVIRONMENT = (
    "packages", "python", "platform", "processor", "device", "processes", "deformable_attention",
)  # fmt: skip
"""What the page shows of a run's environment."""


def write_page(
    comparison: Comparison, truth: GroundTruth, data: DataSet | None, pictures: int
) -> None:
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

    script = f"{marks()}{text_of('page.js')}"
    # The policy allows this script only, whatever a name from the data contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    rows, definition = comparison.rows, comparison.definition
    verdicts = comparison.verdicts.to_dict()
    intervals = verdicts["intervals"]
    first_seed = next((row.seeds[0] for row in rows if len(row.seeds) > 1), None)
    levels = "AP with its 95 % interval" + "; small dots: each seed" * (first_seed is not None)
    sizes = {f"ap_{size}": f"{size} objects" for size in SIZES}
    labels = {f"class:{label}": label for label in rows[0].per_class}
    quality, cost, classes, original = comparison.grids
    return environment.from_string(text_of("page.html.j2")).render(
        style=Markup(stylesheet()),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        comparison=comparison,
        facts=definition.data,
        missing=_missing(comparison),
        verdicts=verdicts,
        levels=_values(rows, intervals, levels, {"ap": ""}),
        grids=[quality, cost, classes, *filter(None, [comparison.ladder])],
        original=original,
        differences=_differences(verdicts),
        legend=[(row.name, charts.embedded(charts.key(i))) for i, row in enumerate(rows)],
        charts=[(charts.embedded(svg), numbers) for svg, numbers in drawn.values()],
        by_size_and_class=[
            *_values(rows, intervals, "AP by object size", sizes),
            *_values(rows, intervals, "AP by class", labels),
        ],
        exhibits=shown,
        exploration=explored,
        first_seed=first_seed,
        splits=splits,
        fairness=_fairness(rows),
        recipe=yaml.safe_dump(definition.recipe.to_dict(), sort_keys=False, allow_unicode=True),
        recipe_differences=recipe_differences(definition.recipe),
        environment=_environment([run for row in rows for run in row.runs]),
    )


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


# --- charts and tables --------------------------------------------------------------------


def _observed(comparison: Comparison) -> list[Chart]:
    """What was recorded during training: AP of each layer, stability of the matching."""
    layers: list[Curve] = []
    unstable: list[Curve] = []
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
        Chart("stability", "Objects whose query changed since the last epoch", "epoch",
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


def _values(
    rows: Sequence[Row], intervals: dict[str, Any], title: str, quantities: dict[str, str]
) -> list[Markup]:
    """A chart of some quantities of every detector; the quantities come with their headings."""
    found = [
        _estimate(heading or row.name, row.name, index, interval, seeds=_seeds(row, quantity))
        for quantity, heading in quantities.items()
        for index, row in enumerate(rows)
        if (interval := intervals[row.name].get(quantity)) and interval["estimate"] is not None
    ]
    return [charts.embedded(charts.intervals(title, title, POINTS, found))] if found else []


def _seeds(row: Row, quantity: str) -> list[float]:
    return [100 * run.metrics["ap"] for run in row.runs] if quantity == "ap" else []


def _differences(verdicts: dict[str, Any]) -> list[Markup]:
    names = {"ap": "AP", **{f"ap_{size}": f"AP on {size} objects" for size in SIZES}}
    drawn = []
    for quantity, words in names.items():
        found = []
        for each in verdicts["differences"]:
            if each["quantity"] == quantity and each["estimate"] is not None:
                name, p = f"{each['second']} − {each['first']}", each["p_adjusted"]
                if not any(each["learnt"]):
                    name += " (neither has learnt)"
                clear = p is not None and p <= 1 - verdicts["level"]
                found.append(_estimate(name, name, None, each, clear=clear))
        if found:
            title = f"Differences in {words}"
            drawn.append(charts.embedded(charts.intervals(title, title, "points of AP", found)))
    return drawn


def _estimate(
    row: str, name: str, series: int | None, found: dict[str, Any], **more: Any
) -> Estimate:
    value, low, high = (100 * found[key] for key in ("estimate", "low", "high"))
    return Estimate(row, name, series, value, low, high, **more)


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
        "Seeds": _of_each(rows, lambda run: run.seed),
        "Epochs": _of_each(rows, lambda run: len(run.epochs)),
        "Parameters": "; ".join(f"{name} {n:,}" for name, n in parameters) or "unknown",
    }
    if foreign := [row.name for row in rows if not row.seeds]:
        facts["Other tools"] = (
            f"{', '.join(foreign)}: only their predictions are known, not their training data, "
            "training time or initial weights"
        )
    for row in rows:
        if how := row.runs[0].environment.get("read as"):
            notes = row.runs[0].environment.get("notes") or ()
            facts[row.name] = "; ".join(map(str, (how, *notes)))
    return facts


def _same(rows: Sequence[Row], key: str, words: str) -> str:
    """Whether all detectors share a fingerprint, seed by seed."""
    prints = {
        (run.seed, run.entrant): str(run.environment.get(key, "unknown"))
        for row in rows
        for run in row.runs
        if run.seed is not None
    }
    if len({(seed, text) for (seed, _), text in prints.items()}) == len({s for s, _ in prints}):
        return f"{words}, by fingerprint"
    return "NOT the same for all: " + "; ".join(
        f"{name}, seed {seed}: {text[:12]}" for (seed, name), text in prints.items()
    )


def _of_each(rows: Sequence[Row], value: Callable[[RunResult], Any]) -> str:
    """A value of the runs of each detector."""
    found = {
        row.name: ", ".join(map(str, sorted({value(run) for run in row.runs})))
        for row in rows
        if row.seeds
    }
    if len(set(found.values())) == 1:
        return f"{next(iter(found.values()))} for each"
    return "; ".join(f"{name}: {words}" for name, words in found.items())


def _environment(runs: Sequence[RunResult]) -> dict[str, str]:
    """Versions and machines; all that occur where the runs differ."""
    facts: dict[str, list[str]] = {}
    for run in runs:
        values = {key: run.environment.get(key) for key in ENVIRONMENT}
        for key, value in {**values, "latency measured on": run.cost.machine}.items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {version}" for name, version in value.items() if version)
            if value and str(value) not in facts.setdefault(key, []):
                facts[key].append(str(value))
    return {key.replace("_", " "): " | ".join(found) for key, found in facts.items() if found}
