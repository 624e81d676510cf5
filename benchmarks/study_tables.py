"""The tables of docs/study.md: the same detectors after equal time, and each at its best.

``findings.py`` calls these. Minutes are those of one core: steps times the processor time of a
step, which ``epoch_cost.py`` measured with all detectors taking turns. So they do not depend on
what else the machine did while a detector was trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from curves_and_points import curve, points

MOMENTS = (5, 10, 20, 30, 60, 120)
"""Minutes of the table of equal time."""
RISING = 0.01
"""One AP: a run that gained more over the last quarter of its steps was still rising."""


class Trained(NamedTuple):
    """One finished run: its curve by minutes of one core, and its entry in the results."""

    name: str
    seed: int | None
    minutes: list[float]
    rows: list[dict[str, float]]


def trained(folder: Path) -> Iterator[Trained]:
    """Every run of a comparison and every outside detector, in the order of its table."""
    costs = json.loads((folder / "epoch-cost.json").read_text())["recipe"]
    result = json.loads((folder / "comparison-result.json").read_text())
    for model in result["models"]:
        name = model["model"]
        for seed in model["seeds"] or [None]:
            if seed is None:
                file = folder / f"{name}.csv"
            else:
                (file,) = folder.glob(f"runs/{name}-seed{seed}-*/metrics.csv")
            rows = list(curve(file).values())
            if name in costs:
                second = costs[name]["seconds_a_step"]
            else:  # an outside detector: its own processor time
                second = rows[-1]["seconds"] / rows[-1]["step"]
            yield Trained(name, seed, [row["step"] * second / 60 for row in rows], rows)


def equal_time(folder: Path) -> list[list[str]]:
    """AP of each run when so many minutes of one core were spent."""
    runs = list(trained(folder))
    longest = max(run.minutes[-1] for run in runs)
    moments = [each for each in MOMENTS if each <= 1.02 * longest]
    table = [["model", "seed", *(f"{each} min" for each in moments), "trained for, min"]]
    for run in runs:
        cells = [reached(run, each) for each in moments]
        seed = "" if run.seed is None else str(run.seed)
        table.append([run.name, seed, *cells, f"{run.minutes[-1]:.0f}"])
    return table


def reached(run: Trained, minutes: float) -> str:
    """AP after the last epoch that had ended by then; empty where the run had ended long before."""
    ended = [row for spent, row in zip(run.minutes, run.rows, strict=True) if spent <= minutes]
    if not ended:
        return "0 epochs"
    if minutes > 1.1 * run.minutes[-1]:
        return ""
    return f"{100 * ended[-1]['ap']:.1f}"


def at_best(folder: Path) -> list[list[str]]:
    """Each run at its end, and whether AP was still rising."""
    result = json.loads((folder / "comparison-result.json").read_text())
    intervals = result["verdicts"]["intervals"]
    head = ["model", "seed", "AP", "95 %", "AP50", "AP75", "small", "medium", "large"]
    table = [[*head, "steps", "minutes", "last quarter"]]
    for run in trained(folder):
        last = run.rows[-1]
        names = ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        table.append(
            [
                run.name,
                "" if run.seed is None else str(run.seed),
                points(last["ap"]),
                interval(intervals[run.name]["ap"]),
                *(points(last.get(name)) for name in names),
                f"{last['step']:,.0f}",
                f"{run.minutes[-1]:.0f}",
                last_quarter(run),
            ]
        )
    return table


def starts(folder: Path) -> list[list[str]]:
    """What each detector learnt from generated pictures before it saw a photograph."""
    table = [["model", "from", "steps", "minutes", "AP on generated pictures"]]
    for name, row in json.loads((folder / "start.json").read_text()).items():
        steps, minutes = f"{row['steps']:,}", f"{row['minutes']:.0f}"
        table.append([name, row["started from"], steps, minutes, points(row["val"]["ap"])])
    return table


def without_start(folder: Path) -> list[list[str]]:
    """First and last AP on the photographs alone, and after the generated pictures."""
    table = [["model", "steps", "without the start", "with it"]]
    for file in sorted((folder / "without-start").glob("*.csv")):
        (after,) = (run for run in trained(folder) if run.name == file.stem)
        started = {row["step"]: row["ap"] for row in after.rows}
        first, *_, last = curve(file).values()
        for row in (first, last):
            pair = points(row["ap"]), points(started[row["step"]])
            table.append([file.stem, f"{row['step']:,.0f}", *pair])
    return table


def matching(folder: Path) -> list[list[str]]:
    """AP of each decoder layer, and objects matched to another query than an epoch before."""
    table = [["model", "minutes", "AP of layers 1, 2, 3", "objects that changed their query"]]
    for run in trained(folder):
        if run.seed is None:
            continue
        (file,) = folder.glob(f"runs/{run.name}-seed{run.seed}-*/curves.json")
        rows = json.loads(file.read_text())["epochs"]
        for index in (1, len(rows) - 1):
            row = rows[index]
            shown = ", ".join(points(value) for value in row["layer_ap"])
            moved = f"{100 * row['unstable'][-1]:.0f} %"
            table.append([run.name, f"{run.minutes[index]:.0f}", shown, moved])
    return table


def last_quarter(run: Trained) -> str:
    """What the last quarter of the steps gained, in points."""
    end = run.rows[-1]
    before = [row for row in run.rows if row["step"] <= 0.75 * end["step"]]
    gain = end["ap"] - max((row["ap"] for row in before), default=0.0)
    words = ", still rising" if gain > RISING else ""
    return f"{100 * gain:+.1f}{words}"


def interval(found: dict[str, Any]) -> str:
    return f"\\[{points(found['low'])}, {points(found['high'])}\\]"
