"""How time and memory of a detector grow with image side, queries, batch, objects and classes.

    python benchmarks/scaling.py --output docs/results/performance-scaling.json

The memory of each size is measured in a process of its own. The curves are drawn beside the
numbers, as FILE.svg; --draw draws them again.
"""

import argparse
import functools
import json
import math
import statistics
from pathlib import Path

import torch

from detrlab import files
from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import provenance
from detrlab.figures import new_figure, save_figure, styled
from detrlab.presets import model_config

SIDES = (320, 448, 640, 800, 1066, 1333)
QUERIES = (100, 300, 500, 700, 900)
BATCHES = (1, 2, 4)
OBJECTS = (1, 10, 100)
CLASSES = (3, 80, 1200)
AXES = ("side", "queries", "batch", "objects", "classes")
SIDE_OF_OTHERS = 320
"""All but the side is varied at this one, where the decoder weighs most."""
STRIDES = (8, 16, 32, 64)


def tokens(side: int, model: str) -> int:
    """How many cells the encoder reads."""
    strides = STRIDES if model.startswith("deformable") else (32,)
    return sum(math.ceil(side / stride) ** 2 for stride in strides)


def points(
    models: list[str], sides: list[int], varied: list[str], side_of_others: int
) -> list[dict]:
    """Every size to measure: what varies, and its value."""
    values = dict(zip(AXES, (sides, QUERIES, BATCHES, OBJECTS, CLASSES), strict=True))
    rows = []
    for model in models:
        usual = {"model": model, "side": side_of_others, "batch": 1, "classes": 91}
        usual["objects"] = subjects.OBJECTS
        usual["queries"] = model_config(model, 91).num_queries
        for axis in varied:
            rows += [{**usual, "varies": axis, axis: value} for value in values[axis]]
    return rows


def measure(row: dict, rounds: int) -> dict:
    """Milliseconds of inference and training step at one size, and memory of the step."""
    config = model_config(row["model"], row["classes"], num_queries=row["queries"])
    size = (row["side"], row["side"])
    make = functools.partial(subjects.ours, objects=row["objects"])
    subject = make(config, size, row["batch"])
    times = timing.in_turn({"inference": subject.infer, "training": subject.learn}, rounds)
    held = memory.peak_memory(make, config, size, row["batch"], learn=True)
    return {
        **row,
        "tokens": tokens(row["side"], row["model"]),
        **{
            f"{kind}_ms": {
                "median": 1e3 * statistics.median(taken.wall),
                "low": 1e3 * min(taken.wall),
                "high": 1e3 * max(taken.wall),
                "processor": 1e3 * statistics.median(taken.processor),
            }
            for kind, taken in times.items()
        },
        "training_mb": held["above_start_mb"],
    }


def exponent(rows: list[dict], axis: str, value: str) -> float:
    """The least-squares slope of log(value) over log(axis): 1 is linear; times are processor's."""
    xs = [math.log(row[axis]) for row in rows]
    ys = [math.log(_number(row[value], "processor")) for row in rows]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    above = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return above / sum((a - x) ** 2 for a in xs)


def _number(value: dict | float, kind: str = "median") -> float:
    return value[kind] if isinstance(value, dict) else value


def exponents(rows: list[dict]) -> list[dict]:
    """How each model's time and memory grow with each axis."""
    found = []
    axes = {axis: "tokens" if axis == "side" else axis for axis in AXES}
    for model in dict.fromkeys(row["model"] for row in rows):
        for varies, axis in axes.items():
            chosen = [row for row in rows if (row["model"], row["varies"]) == (model, varies)]
            if not chosen:
                continue
            found.append(
                {
                    "model": model,
                    "over": axis,
                    **{
                        value: exponent(chosen, axis, value)
                        for value in ("inference_ms", "training_ms", "training_mb")
                    },
                }
            )
    return found


@styled
def draw(report: dict, path: Path) -> None:
    """Time of a step and memory over the image side, queries and batch."""
    figure, axes = new_figure(11, 6, columns=3, rows=2)
    names = {"side": "image side in pixels", "queries": "queries", "batch": "images in a batch"}
    for column, (varies, label) in enumerate(names.items()):
        for row, (value, title) in enumerate(
            (("training_ms", "training step, s"), ("training_mb", "memory of a step, GB"))
        ):
            panel = axes[3 * row + column]
            for model in dict.fromkeys(each["model"] for each in report["points"]):
                chosen = [
                    each
                    for each in report["points"]
                    if (each["model"], each["varies"]) == (model, varies)
                ]
                xs = [each[varies] for each in chosen]
                ys = [_number(each[value]) / 1e3 for each in chosen]
                (line,) = panel.plot(xs, ys, marker="o", label=model)
                if varies == "side":
                    # Linear in the tokens, through the point in the middle.
                    middle = len(chosen) // 2
                    linear = [
                        ys[middle] * each["tokens"] / chosen[middle]["tokens"] for each in chosen
                    ]
                    panel.plot(xs, linear, ":", color=line.get_color(), linewidth=1)
            panel.set_xlabel(label)
            panel.set_ylabel(title)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
    axes[0].legend(title="dotted: linear in tokens")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["deformable-detr", "detr"])
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES))
    parser.add_argument("--vary", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--side-of-others", type=int, default=SIDE_OF_OTHERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draw", action="store_true", help="only draw what the file says")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.draw:
        draw(json.loads(options.output.read_text()), options.output.with_suffix(".svg"))
        return
    report = {**provenance(), "rounds": options.rounds, "points": []}
    for row in points(options.models, options.sides, options.vary, options.side_of_others):
        report["points"].append(measure(row, options.rounds))
        last = report["points"][-1]
        print(
            f"{last['model']} {last['varies']} {last[last['varies']]}: "
            f"inference {last['inference_ms']['median']:.0f} ms, "
            f"step {last['training_ms']['median']:.0f} ms, {last['training_mb']:.0f} MB",
            flush=True,
        )
    report["exponents"] = exponents(report["points"])
    files.write_json(options.output, report)
    if "side" in options.vary:
        draw(report, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
