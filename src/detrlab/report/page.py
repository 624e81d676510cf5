"""One self-contained HTML page: no network, nothing beside it, whole without its script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from detrlab import files
from detrlab.compare import curves
from detrlab.compare.curves import Chart, Crossing, Curve
from detrlab.compare.entrants import recipe_differences
from detrlab.compare.results import Row, RunResult
from detrlab.compare.statistics import Difference, verdict
from detrlab.compare.tables import NOTHING, Grid
from detrlab.explain.curves import CURVES_FILE, Curves
from detrlab.report.charts import (
    NUM_HUES,
    Estimate,
    Group,
    Level,
    Line,
    bars,
    dot_plot,
    forest,
    hue,
    levels,
    line_chart,
    marker,
)
from detrlab.report.explorer import exploration
from detrlab.report.gallery import Exhibit, choose, exhibits, view_of
from detrlab.report.health import Health, describe

if TYPE_CHECKING:
    from detrlab.compare.study import Comparison
    from detrlab.data import DataSet
    from detrlab.evaluation.records import GroundTruth

SIZES = ("small", "medium", "large")
LAYER = "decoder layer"
SHARED = ("epoch", LAYER)
"""Units of x at which all curves have their points."""
MOST_GROUPS = 12
"""More classes than this are shown as dots, one line each, instead of bars."""
MOST_SENTENCES = 4
"""Of those on crossing curves; more are folded away."""


def write_page(
    comparison: Comparison, truth: GroundTruth, data: DataSet | None, pictures: int
) -> None:
    """Write a comparison's page to ``comparison.report``.

    Args:
        comparison: what was found.
        truth: what was to be found.
        data: for the pixels of the pictures; None leaves them out.
        pictures: how many validation images it shows.

    Raises:
        UserError: the file cannot be written.
    """
    shown: tuple[Exhibit, ...] = ()
    explored: dict[str, Any] | None = None
    if data is not None and pictures:
        folder, table = comparison.folder, data.val
        views = [view_of(row, truth, folder) for row in comparison.rows]
        chosen = choose(truth, pictures)
        shown = exhibits(views, truth, table, chosen)
        explored = exploration(comparison.rows, views, truth, table, chosen, shown, folder)
    health = () if data is None else describe((data.train, data.val))
    files.write_text(comparison.report, render(comparison, shown, explored, health))


def render(
    comparison: Comparison,
    shown: Sequence[Exhibit] = (),
    explored: dict[str, Any] | None = None,
    health: Sequence[Health] = (),
) -> str:
    """The page as text; everything that comes from the data is escaped.

    Args:
        comparison: what was found.
        shown: images with every detector's boxes.
        explored: what the image browser holds, see ``explorer.exploration``.
        health: of the data.
    """
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("detrlab.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8").replace("SERIES", _series_style())
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return template.render(
        style=Markup(style),
        script=Markup(script),
        # No other script may run, whatever a class name tries.
        script_hash="sha256-" + base64.b64encode(digest).decode("ascii"),
        exploration=explored and Markup(in_script(explored)),
        exhibits=shown,
        health=health,
        **_context(comparison, shown, health),
    )


def in_script(values: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _context(
    comparison: Comparison, shown: Sequence[Exhibit], health: Sequence[Health]
) -> dict[str, Any]:
    definition = comparison.definition
    facts, recipe = definition.data, definition.recipe
    forests = _forests(comparison)
    series = {row.name: index for index, row in enumerate(comparison.rows)}
    charts = [
        (chart.title, _line_chart(chart, series), _numbers(chart))
        for chart in (*curves.charts(comparison.rows), *_watched(comparison))
    ]
    crossings = _crossing_sentences(comparison.crossings)
    *grids, original = comparison.grids
    sections = [
        ("verdict", "Verdict", True),
        ("table", "Table", True),
        ("differences", "Differences", bool(forests)),
        ("curves", "Curves", bool(charts)),
        ("classes", "Classes and sizes", True),
        ("images", "Images", bool(shown)),
        ("data", "Data", bool(health)),
        ("fairness", "Fairness", True),
        ("again", "Doing it again", True),
    ]
    count = len(comparison.rows)
    return {
        "title": f"{count} detector{'s' * (count != 1)} on {facts['name']}",
        "subtitle": (
            f"{facts['train_images']:,} images to train on, {facts['val_images']:,} images and "
            f"{facts['val_boxes']:,} objects to judge by, {len(facts['classes'])} classes; recipe "
            f"{recipe.name}, {_spent(comparison)}"
        ),
        "description": recipe.description,
        "sections": [(name, words) for name, words, there in sections if there],
        "sentences": comparison.verdicts.sentences,
        "failures": comparison.failures,
        "missing": _missing(comparison),
        "reading": _reading(comparison),
        "levels": _levels(comparison),
        "grids": grids,
        "seed_grid": _seed_grid(comparison.rows),
        "original": original,
        "forests": forests,
        "more_sentences": _more_sentences(comparison),
        "legend": _legend(comparison.rows),
        "crossings": crossings[:MOST_SENTENCES],
        "more_crossings": crossings[MOST_SENTENCES:],
        "charts": charts,
        "comparisons": _by_size_and_class(comparison),
        "first_seed": _first_seed(comparison.rows),
        "fairness": _fairness(comparison),
        "steps": comparison.steps,
        "command": comparison.command,
        "recipe": yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True),
        "recipe_differences": recipe_differences(recipe),
        "assumed": recipe.assumed,
        "data_notes": [
            f"{facts['name']}: {facts['train_images']:,} training images with "
            f"{facts['train_boxes']:,} boxes",
            *facts["notes"],
            *(f"licence of the images, as stated: {text}" for text in facts.get("licences", ())),
        ],
        "environment": _environment([run for row in comparison.rows for run in row.runs]),
    }


def _reading(comparison: Comparison) -> str:
    counts = sorted({len(row.seeds) for row in comparison.rows if row.seeds})
    if not counts:
        about = "Only predictions are known, so this is about these models."
    elif counts == [1]:
        about = (
            "With one seed each this is about these trained models, not about the architectures."
        )
    elif len(counts) == 1:
        about = (
            f"Each detector was trained with {counts[0]} seeds; intervals are over seeds and "
            "images."
        )
    else:
        about = (
            f"Detectors were trained with {_words(counts)} seeds; intervals are over seeds and "
            "images. Where a detector has one seed, it is about that trained model."
        )
    return (
        f"AP is the mean over IoU .50 to .95 in points from 0 to 100, of the weights at the end "
        f"of training. Brackets hold 95 % intervals. {about}"
    )


def _words(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _spent(comparison: Comparison) -> str:
    definition = comparison.definition
    counts = sorted({len(row.seeds) for row in comparison.rows if row.seeds}) or [0]
    seeds = f"{_words(counts)} seed{'s' * (counts != [1])}"
    if definition.budget:
        return f"{definition.budget} each, {seeds}"
    epochs = sorted({len(run.epochs) for row in comparison.rows for run in row.runs if run.epochs})
    return f"{_words(epochs) or 'no'} epochs, {seeds}"


def _missing(comparison: Comparison) -> str:
    """The runs that belong to the comparison, have no result and were not tried just now."""
    known = {(run.entrant, run.seed) for row in comparison.rows for run in row.runs}
    known |= {(failure.entrant, failure.seed) for failure in comparison.failures}
    definition = comparison.definition
    found = []
    for entrant in definition.entrants:
        seeds = [seed for seed in definition.seeds if (entrant.name, seed) not in known]
        if seeds:
            several = "s" * (len(seeds) > 1)
            found.append(f"{entrant.name}, seed{several} {', '.join(map(str, seeds))}")
    return "; ".join(found)


# --- charts -------------------------------------------------------------------------------


def _line_chart(chart: Chart, series: Mapping[str, int]) -> Markup:
    lines = [
        Line(curve.name, curve.x, curve.y, curve.low, curve.high, series[curve.name])
        for curve in chart.curves
    ]
    return line_chart(
        chart.title,
        chart.x_label,
        chart.y_label,
        lines,
        log=chart.log,
        shared=chart.x_label in SHARED,
        start=1.0 if chart.x_label == LAYER else 0.0,
    )


def _numbers(chart: Chart) -> Grid | None:
    """A chart as a table, for those who do not see it or want to copy it."""
    if chart.x_label not in SHARED:
        return None
    columns = [dict(zip(curve.x, curve.y, strict=True)) for curve in chart.curves]
    places = sorted({x for column in columns for x in column})
    cells = [
        (f"{x:g}", *(f"{column[x]:.4g}" if x in column else NOTHING for column in columns))
        for x in places
    ]
    headers = (chart.x_label, *(curve.name for curve in chart.curves))
    return Grid(chart.y_label, headers, tuple(cells))


def _levels(comparison: Comparison) -> Markup | None:
    """AP of every detector with its interval, as one picture."""
    rows = []
    for row in comparison.rows:
        interval = comparison.verdicts.found.intervals[row.name]["ap"]
        value = row.metrics["ap"]
        if value is None or interval.low is None or interval.high is None:
            return None
        parts = [100 * run.metrics["ap"] for run in row.runs]
        rows.append(Level(row.name, 100 * value, 100 * interval.low, 100 * interval.high, parts))
    return levels("AP of each detector with its 95 % interval", "AP in points", rows)


def _seed_grid(rows: Sequence[Row]) -> Grid | None:
    """AP of each single run, where there are several of a detector."""
    seeds = list(dict.fromkeys(seed for row in rows for seed in row.seeds))
    if len(seeds) < 2:
        return None
    cells = []
    for row in rows:
        known = {run.seed: run.metrics["ap"] for run in row.runs}
        values = [known.get(seed) for seed in seeds]
        if row.seeds:
            words = [NOTHING if value is None else f"{100 * value:.1f}" for value in values]
            cells.append((row.name, *words))
    return Grid(
        "AP of each run, in points", ("model", *(f"seed {seed}" for seed in seeds)), tuple(cells)
    )


def _first_seed(rows: Sequence[Row]) -> int | None:
    """The seed whose weights the pictures show; None where nobody has several."""
    if not any(len(row.seeds) > 1 for row in rows):
        return None
    return next(row.seeds[0] for row in rows if row.seeds)


def _watched(comparison: Comparison) -> tuple[Chart, ...]:
    """What was recorded beside the training: AP of each layer, stability of the matching."""
    layers = []
    stability = []
    for row in comparison.rows:
        paths = [comparison.folder / run.folder / CURVES_FILE for run in row.runs if run.folder]
        seen = [Curves.load(path).epochs for path in paths if path.is_file()]
        last = [dict(enumerate(epochs[-1].layer_ap, 1)) for epochs in seen if epochs]
        unstable = [{e.epoch: e.unstable[-1] for e in epochs if e.unstable} for epochs in seen]
        layers.append(_curve(row.name, last))
        stability.append(_curve(row.name, unstable))
    found = (
        Chart("layers", "AP of each decoder layer, at the end", LAYER, "AP in points",
              tuple(filter(None, layers))),
        Chart("stability", "Objects matched to another query than an epoch before", "epoch",
              "% of objects", tuple(filter(None, stability))),
    )  # fmt: skip
    return tuple(chart for chart in found if chart.curves)


def _curve(name: str, seeds: Sequence[Mapping[int, float | None]]) -> Curve | None:
    """Shares as points of a hundred, the mean of the seeds; None where there is nothing to draw."""
    known = [{x: 100 * y for x, y in each.items() if y is not None} for each in seeds]
    shared = sorted(set.intersection(*map(set, known))) if known else []
    if not shared:
        return None
    columns = [[each[x] for each in known] for x in shared]
    return Curve(
        name,
        tuple(map(float, shared)),
        tuple(sum(column) / len(column) for column in columns),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
    )


def _forests(comparison: Comparison) -> list[tuple[str, Markup]]:
    names = {"ap": "AP", "ap_small": "AP on small objects", "ap_medium": "AP on medium objects",
             "ap_large": "AP on large objects"}  # fmt: skip
    found = []
    for quantity, words in names.items():
        rows = [
            _estimate(each, comparison.verdicts.found.level)
            for each in comparison.verdicts.differences(quantity)
        ]
        if rows:
            found.append((words, forest(f"Differences in {words}", "points of AP", rows)))
    return found


def _estimate(difference: Difference, level: float) -> Estimate:
    d = difference
    assert d.estimate is not None
    assert d.low is not None
    assert d.high is not None
    return Estimate(
        label=f"{d.second} − {d.first}",
        value=100 * d.estimate,
        low=100 * d.low,
        high=100 * d.high,
        clear=d.p_adjusted is not None and d.p_adjusted <= 1 - level,
    )


def _more_sentences(comparison: Comparison) -> list[str]:
    found = comparison.verdicts.found
    return [
        verdict(each, found.level)
        for each in found.differences
        if each.quantity != "ap" and each.estimate is not None
    ]


def _by_size_and_class(comparison: Comparison) -> list[tuple[str, Markup]]:
    rows = comparison.rows
    names = [row.name for row in rows]
    sizes = [
        Group(
            f"{size} objects",
            [_points(row.metrics[f"ap_{size}"]) for row in rows],
            _bounds(comparison, f"ap_{size}"),
        )
        for size in SIZES
    ]
    classes = [
        Group(
            label,
            [_points(row.per_class.get(label)) for row in rows],
            _bounds(comparison, f"class:{label}"),
        )
        for label in rows[0].per_class
    ]
    draw = bars if len(classes) <= MOST_GROUPS else dot_plot
    return [
        ("AP by object size", bars("AP by object size", "AP in points", names, sizes)),
        ("AP by class", draw("AP by class", "AP in points", names, classes)),
    ]


def _bounds(comparison: Comparison, quantity: str) -> list[tuple[float, float] | None]:
    """Each detector's interval in points."""
    found: list[tuple[float, float] | None] = []
    for row in comparison.rows:
        interval = comparison.verdicts.found.intervals[row.name].get(quantity)
        if interval is None or interval.low is None or interval.high is None:
            found.append(None)
        else:
            found.append((100 * interval.low, 100 * interval.high))
    return found


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


_DASHES = {"solid": "none", "dashed": "9 4", "dashdot": "9 3 2 3", "dotted": "2 4"}


def _series_style() -> str:
    """Colour and dash of each detector, the same in all charts."""
    lines = []
    for index in range(NUM_HUES):
        _, dash = curves.style(index)
        name = hue(index)
        lines.append(
            f".{name} {{ --own: var(--{name}); }} "
            f".{name} .line {{ stroke-dasharray: {_DASHES[dash]}; }}"
        )
    return "\n".join(lines)


def _legend(rows: Sequence[Row]) -> Markup:
    items = Markup("").join(
        Markup(
            '<li class="{}" data-series="{}"><svg viewBox="0 0 44 16" aria-hidden="true">'
            '<polyline class="line" points="0,8 44,8"/>{}</svg>{}</li>'
        ).format(hue(index), index, marker(index, 22, 8), row.name)
        for index, row in enumerate(rows)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _crossing_sentences(crossings: dict[str, tuple[Crossing, ...]]) -> list[str]:
    units = {"ap-epochs": "epoch", "ap-minutes": "minute"}
    return [
        f"{crossing.ahead} overtakes {crossing.behind} at {units[name]} {crossing.x:.1f} "
        "and stays ahead."
        for name, found in crossings.items()
        for crossing in found
    ]


# --- facts --------------------------------------------------------------------------------


def _fairness(comparison: Comparison) -> list[tuple[str, str]]:
    trained = [run for row in comparison.rows for run in row.runs if run.seed is not None]
    cost = {row.name: row.cost for row in comparison.rows if row.cost.parameters}
    facts = [
        ("Data", "the same images and annotations for all, by fingerprint"),
        ("Evaluator", "one for all: COCO's protocol, 100 detections an image, nothing padded"),
        ("Order of images", _same(trained, "order", "the same images in the same order")),
        (
            "Augmentation",
            "drawn from (seed, epoch, image), so every detector sees the same pictures",
        ),
        (
            "First backbone",
            _same(trained, "initial_backbone", "the same initial backbone weights"),
        ),
        ("Seeds", _by_name(comparison.rows, lambda run: run.seed, ", ")),
        ("Epochs", _by_name(comparison.rows, lambda run: len(run.epochs), " or ")),
        (
            "Parameters",
            "; ".join(f"{name} {each.parameters:,}" for name, each in cost.items()) or "unknown",
        ),
    ]
    foreign = [row.name for row in comparison.rows if not row.seeds]
    if foreign:
        facts.append(
            (
                "Other tools",
                f"{', '.join(foreign)}: only their predictions are known; what they were trained "
                "on, how long and from which weights is not",
            )
        )
    return facts


def _same(trained: Sequence[RunResult], key: str, words: str) -> str:
    """Whether all detectors of each seed share a fingerprint."""
    by_seed: dict[int | None, set[str]] = {}
    for run in trained:
        by_seed.setdefault(run.seed, set()).add(str(run.environment.get(key, "unknown")))
    if all(len(prints) == 1 for prints in by_seed.values()):
        return f"{words}, by fingerprint"
    return "NOT the same for all: " + "; ".join(
        f"{run.entrant}, seed {run.seed}: {str(run.environment.get(key, 'unknown'))[:12]}"
        for run in trained
    )


def _by_name(rows: Sequence[Row], value: Callable[[RunResult], Any], joint: str) -> str:
    found = {
        row.name: joint.join(map(str, sorted({value(run) for run in row.runs})))
        for row in rows
        if row.seeds
    }
    if len(set(found.values())) == 1:
        return f"{next(iter(found.values()))} for each"
    return "; ".join(f"{name} {words}" for name, words in found.items())


def _environment(trained: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Versions and machines; where runs differ, all that occur."""
    names = {
        "packages": "Packages",
        "python": "Python",
        "platform": "System",
        "processor": "Processor",
        "device": "Device",
        "processes": "Processes",
        "deformable_attention": "Deformable attention",
    }
    facts = []
    for key, words in names.items():
        found = _distinct(_flat(run.environment.get(key)) for run in trained)
        if found:
            mixed = " (the runs differ)" if len(found) > 1 else ""
            facts.append((words + mixed, " | ".join(found)))
    machines = _distinct(run.cost.machine for run in trained)
    if machines:
        facts.append(("Latency measured on", " | ".join(machines)))
    return facts


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items() if version)
    return "" if value is None else str(value)


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]
