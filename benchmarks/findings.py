"""The tables of docs/results.md and docs/recipe.md, from the committed results.

    python benchmarks/findings.py

Writes docs/results/findings.md; ``python docs/update_tables.py`` puts its tables into the pages.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import study_tables
from curves_and_points import curve, points

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
STUDIES = {"blood cells": RESULTS / "study-bccd"}
STUDY = RESULTS / "facemask-laptop"
SIZES = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
NUMBERS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", **SIZES}
EPOCHS = (2, 5, 10, 15, 18)


def main() -> None:
    parts = [
        "# Tables of the findings",
        "Written by `python benchmarks/findings.py` from the files beside it.",
        section("What each step changes, by size of object", steps()),
        section("Every rung of the ladder after the same 16 epochs, by size of object", rungs(16)),
        section("AP of each epoch", by_epoch()),
        section("Every seed that was trained to the end, of the two that matter most", seeds()),
        section("The lead of two-stage over refined in points of AP", lead()),
        section("The same seed in whole batches and in micro-batches", pieces()),
        section("What padding does to the same weights", padding()),
        section("The packaged detector, trained with its grid held", held_grid()),
        section("AP of each decoder layer and stability of the matching", layers()),
        section("One change at a time from the old recipe", search("first")),
        section("Changes together", search("second")),
    ]
    parts.append(section("Points of AP50 that mending each kind of error would bring", errors()))
    parts.append(section("The same weights on larger images", study_sizes()))
    parts.append(section("An hour on two cores: the two-stage detector", hour()))
    parts.append(section("An hour on two cores: each class", hour_classes()))
    parts.append(section("An hour on two cores: evaluated at several sizes", hour_sizes()))
    parts.append(section("The packaged detector, fine-tuned", photos()))
    parts.append(section("Two detectors from one start", same_start()))
    for what, folder in STUDIES.items():
        named = f"The study, {what}"
        parts.append(section(f"{named}: AP after equal time", study_tables.equal_time(folder)))
        parts.append(section(f"{named}: each at its best", study_tables.at_best(folder)))
        parts.append(section(f"{named}: how the matching settles", study_tables.matching(folder)))
    cells = STUDIES["blood cells"]
    parts.append(section("The study: before the photographs", study_tables.starts(cells)))
    parts.append(section("The study: without the start", study_tables.without_start(cells)))
    parts.append(section("Exported detectors", exported()))
    parts.append(section("Beside the authors' code", originals()))
    parts.append(section("Steps of four images and of two", batch_sizes()))
    parts.append(section("Strong augmentation at two image sizes", two_sizes()))
    parts.append(section("A hundred photographs: weight of the class loss", hundred()))
    parts.append(section("Minutes of one core for an epoch of the 677 photographs", epoch_cost()))
    gpu = json.loads((RESULTS / "gpu-check.json").read_text())
    parts.append(section("The same detector on CPU and GPU", agreement(gpu)))
    parts.append(section("A training step on the GPU", gpu_steps(gpu)))
    parts.append(section("Deformable attention on the GPU", gpu_op(gpu)))
    parts.append(section("Large data on a small machine", large_data()))
    parts.append(section("Images per second of one core", core_rates()))
    parts.append(section("How long a training step waits", waiting()))
    parts.append(section("Cores that one GPU needs", cores_of_a_gpu(gpu)))
    parts.append(section("Decoding at a fraction of the size", scaled_decoding()))
    (RESULTS / "findings.md").write_text("\n\n".join(parts) + "\n")


def section(title: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def numbers(row: dict[str, Any]) -> list[str]:
    """The columns of ``NUMBERS``."""
    return [points(row[key]) for key in NUMBERS]


def interval(row: dict[str, Any]) -> str:
    return f"{points(row['estimate'])} \\[{points(row['low'])}, {points(row['high'])}\\]"


def steps() -> list[list[str]]:
    """Differences of the planned pairs, with intervals."""
    found = json.loads((STUDY / "comparison-result.json").read_text())["verdicts"]["differences"]
    pairs = dict.fromkeys((each["first"], each["second"]) for each in found)
    table = [["step", *SIZES.values()]]
    for first, second in pairs:
        row = {
            each["quantity"]: each
            for each in found
            if (each["first"], each["second"]) == (first, second)
        }
        table.append([f"{first} → {second}", *(interval(row[size]) for size in SIZES)])
    return table


def ladder() -> Iterable[tuple[str, dict[int, dict[str, float]]]]:
    """Every detector of seed 42 and its epochs, finished or not."""
    order = ("detr", "detr-dc5", "detr-sigmoid", "deformable-detr-single-scale", "deformable-detr")
    order += ("deformable-detr-refine", "deformable-detr-two-stage")
    for name in order:
        (file,) = [
            *STUDY.glob(f"runs/{name}-seed42-*/metrics.csv"),
            *STUDY.glob(f"unfinished/{name}-seed42.csv"),
        ]
        yield name, curve(file)


def rungs(epoch: int) -> list[list[str]]:
    table = [["model", *NUMBERS.values()]]
    return table + [[name, *numbers(rows[epoch])] for name, rows in ladder()]


def by_epoch() -> list[list[str]]:
    table = [["model", *(f"epoch {epoch}" for epoch in EPOCHS), "last", "epochs"]]
    for name, rows in ladder():
        shown = [points(rows[epoch]["ap"]) if epoch in rows else "" for epoch in EPOCHS]
        table.append([name, *shown, points(rows[max(rows)]["ap"]), str(max(rows))])
    return table


def seeds() -> list[list[str]]:
    """The two detectors with several seeds, along the way and at the end."""
    table = [["model", "seed", "AP, epoch 2", "AP, epoch 10", *NUMBERS.values()]]
    for name in TWO:
        for seed in (42, 0, 1):
            folder = run_of(name, seed)
            rows = curve(folder / "metrics.csv")
            early = [points(rows[epoch]["ap"]) for epoch in (2, 10)]
            result = json.loads((folder / "result.json").read_text())["metrics"]
            table.append([name, str(seed), *early, *numbers(result)])
    return table


TWO = ("deformable-detr-refine", "deformable-detr-two-stage")
MORE_SEEDS = RESULTS / "facemask-seeds"


def run_of(name: str, seed: int) -> Path:
    """A run that came to its end: of seed 42 in the study, of the others on a CPU."""
    where = STUDY if seed == 42 else MORE_SEEDS
    (folder,) = where.glob(f"runs/{name}-seed{seed}-*")
    return folder


def lead() -> list[list[str]]:
    """By how many points of AP two-stage is ahead of refined in the same epoch of the same seed."""
    epochs = (2, 4, 6, 8, 10, 12, 14, 16, 18)
    table = [["seed, trained on", *(f"epoch {epoch}" for epoch in epochs)]]
    for title, find in {
        "42, GPU": lambda name: run_of(name, 42) / "metrics.csv",
        "0, GPU": lambda name: STUDY / f"unfinished/{name}-seed0.csv",
        "1, GPU": lambda name: STUDY / f"unfinished/{name}-seed1.csv",
        "0, CPU": lambda name: run_of(name, 0) / "metrics.csv",
        "1, CPU": lambda name: run_of(name, 1) / "metrics.csv",
    }.items():
        refined, two_stage = (curve(find(name)) for name in TWO)
        both = refined.keys() & two_stage.keys()
        gaps = [
            points(two_stage[epoch]["ap"] - refined[epoch]["ap"]) if epoch in both else ""
            for epoch in epochs
        ]
        table.append([title, *gaps])
    return table


def pieces() -> list[list[str]]:
    """AP of the same seed in whole batches, where it was given up, and in micro-batches."""
    table = [["model", "seed", "epoch", "whole batches, GPU", "micro-batches of 2, CPU"]]
    for name in TWO:
        for seed in (0, 1):
            whole = curve(STUDY / f"unfinished/{name}-seed{seed}.csv")
            pieced = curve(run_of(name, seed) / "metrics.csv")
            for epoch in (2, 4, 6, 8, 10):
                if epoch in whole and epoch in pieced:
                    values = [points(rows[epoch]["ap"]) for rows in (whole, pieced)]
                    table.append([name, str(seed), str(epoch), *values])
    return table


def padding() -> list[list[str]]:
    """The same weights on images as they are and on padded ones."""
    report = json.loads((RESULTS / "padding.json").read_text())
    table = [["weights", "judged", *NUMBERS.values()]]
    for title, ways in report["weights"].items():
        for way in ("alone", "alone, grid held", "in a square"):
            table += [[title, way, *numbers(ways[way])]]
    return table


def held_grid() -> list[list[str]]:
    """A small detector trained in both ways."""
    report = json.loads((RESULTS / "padding.json").read_text())["shapes"]
    table = [["convolutions pad", *NUMBERS.values()]]
    return table + [[way, *numbers(row)] for way, row in report.items()]


def layers() -> list[list[str]]:
    table = [["model", "epoch", "AP of layers 1, 2, 3", "objects that changed their query"]]
    for name in ("detr", "deformable-detr", "deformable-detr-refine", "deformable-detr-two-stage"):
        (file,) = STUDY.glob(f"runs/{name}-seed42-*/curves.json")
        rows = json.loads(file.read_text())["epochs"]
        for row in (rows[1], rows[9], rows[-1]):
            shown = ", ".join(points(value) for value in row["layer_ap"])
            table.append([name, str(row["epoch"]), shown, f"{100 * row['unstable'][-1]:.0f} %"])
    return table


def search(name: str) -> list[list[str]]:
    report = json.loads((RESULTS / f"recipe-search/{name}.json").read_text())
    runs: Iterable[tuple[str, Any]] = report["runs"].items()
    last = max(row["epochs"] for _, row in runs)
    table = [["variation", *(f"AP, epoch {epoch}" for epoch in range(1, last + 1))]]
    ordered = sorted(report["runs"].items(), key=lambda each: -max(each[1]["curve"]))
    for title, row in ordered:
        values = [points(value) for value in row["curve"]]
        table.append([title, *values, *[""] * (last - len(values))])
    return table


TWO_STAGE = RESULTS / "facemask-two-stage"
HOUR = RESULTS / "facemask-hour"
ERRORS = {
    "Cls": "wrong class",
    "Loc": "box too far off",
    "Both": "both",
    "Dupe": "found before",
    "Bkg": "nothing there",
    "Miss": "missed",
}


def errors() -> list[list[str]]:
    """TIDE's shares (arXiv 2008.08115), of the two-stage detectors."""
    table = [["", *ERRORS.values()]]
    for title, file in (
        ("the study, epoch 18", TWO_STAGE / "analysis.json"),
        ("class weight 2, epoch 11", HOUR / "first/analysis-epoch-11.json"),
        ("class weight 5 late, epoch 19", HOUR / "heavier/analysis.json"),
        ("class weight 5, epoch 20", HOUR / "whole/analysis.json"),
        ("larger at the end, epoch 18", HOUR / "larger/analysis.json"),
    ):
        cost = json.loads(file.read_text())["tide"]["cost"]
        table.append([title, *(points(cost[key]) for key in ERRORS)])
    return table


def study_sizes() -> list[list[str]]:
    """The study's two-stage detector, evaluated as trained and at another size."""
    files = {"416 px, as trained": "metrics.json", "512 px": "metrics-512px.json"}
    table = [["evaluated at", *NUMBERS.values()]]
    for title, file in files.items():
        table.append([title, *numbers(json.loads((TWO_STAGE / file).read_text()))])
    return table


# The trainings of an hour on two cores: title, folder, and the epochs that came before it.
HOURS = (
    ("class weight 2", "first", 0),
    ("class weight 5 late", "heavier", 13),
    ("class weight 5", "whole", 0),
    ("larger at the end", "larger", 10),
)


def hour() -> list[list[str]]:
    """How each of the trainings went, some epochs of them."""
    shown = (2, 4, 7, 10, 11, 13, 15, 16, 18, 19, 20)
    table = [["training", "epoch", *NUMBERS.values()]]
    for title, folder, before in HOURS:
        for epoch, row in curve(HOUR / folder / "metrics.csv").items():
            if before + epoch in shown:
                table.append([title, str(before + epoch), *numbers(row)])
    return table


def photos() -> list[list[str]]:
    rows = [["epoch", "minutes", *NUMBERS.values()]]
    file = RESULTS / "facemask-photos" / "runs" / "deimv2-femto" / "metrics.csv"
    for row in csv.DictReader(file.open()):
        if int(row["epoch"]) in (1, 3, 6, 9, 12, 15, 18, 21, 24):
            minutes = f"{float(row['seconds']) / 60:.0f}"
            values = {name: float(row[name]) for name in NUMBERS}
            rows.append([row["epoch"], minutes, *numbers(values)])
    return rows


def same_start() -> list[list[str]]:
    """Each epoch of the slower detector, and what the faster one had by then."""
    folder = RESULTS / "facemask-same-start"
    spent = json.loads((folder / "minutes.json").read_text())
    curves = {}
    for name, minutes in spent.items():
        rows = list(csv.DictReader((folder / "runs" / name / "metrics.csv").open()))
        curves[name] = [(minutes * (i + 1) / len(rows), row) for i, row in enumerate(rows)]
    slow, fast = sorted(curves, key=lambda name: len(curves[name]))
    titles = [f"{name}: epoch, AP, AP50" for name in (slow, fast)]
    table = [["processor minutes", *titles]]
    for end, row in curves[slow]:
        before = [each for minutes, each in curves[fast] if minutes <= end * 1.02]
        pair = (row, before[-1]) if before else (row, None)
        table.append([f"{end:.0f}", *(_reached(each) for each in pair)])
    return table


def _reached(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    ap, ap50 = (100 * float(row[name]) for name in ("ap", "ap50"))
    return f"{row['epoch']}: {ap:.1f}, {ap50:.1f}"


def exported() -> list[list[str]]:
    """Latency of each runtime, and what its file keeps of PyTorch's detections."""
    table = [["detector", "runtime", "MB", "ms, one thread", "ms, two threads", "AP"]]
    for name, report in json.loads((RESULTS / "exported.json").read_text()).items():
        kept = report.get("photographs", {}).get("rows", {})
        for runtime in report["threads"]["1"]:
            size = report["megabytes"].get(runtime)
            table.append(
                [
                    name,
                    runtime,
                    "" if size is None else f"{size:.1f}",
                    f"{report['threads']['1'][runtime]['processor_ms']:.0f}",
                    f"{report['threads']['2'][runtime]['p50_ms']:.0f}",
                    f"{100 * kept[runtime]['ap']:.1f}" if runtime in kept else "",
                ]
            )
    return table


def originals() -> list[list[str]]:
    """Detectors whose authors' code runs on a CPU: medians of rounds in turn."""
    heads = ["ours, ms", "theirs, ms", "times as fast", "of its memory"]
    rows = [["detector", "images", "threads", "", *heads]]
    for file in sorted(RESULTS.glob("*-beside-original.json")):
        report = json.loads(file.read_text())
        images = f"{report['batch']} of {' x '.join(map(str, report['picture']))}"
        for kind in ("inference", "training"):
            row = report[kind]
            times = [f"{row[who]['p50_ms']:,.0f}" for who in ("ours", "original")]
            ratio = f"{row['times_as_fast']['median']:.2f}"
            share = f"{row['share_of_memory']:.2f}"
            rows.append(
                [report["model"], images, str(report["threads"]), kind, *times, ratio, share]
            )
    return rows


def hour_sizes() -> list[list[str]]:
    """The end of each of the trainings, evaluated at several sizes."""
    table = [["training", "evaluated at", *NUMBERS.values()]]
    for title, folder, _ in HOURS:
        for file in sorted(HOUR.glob(f"{folder}/metrics-*px.json")):
            size = file.stem.removeprefix("metrics-").removesuffix("px")
            table.append([title, f"{size} px", *numbers(json.loads(file.read_text()))])
    return table


def hour_classes() -> list[list[str]]:
    """AP of each class, of the study's detector and of these."""
    files = {
        "in the study": TWO_STAGE / "metrics.json",
        "class weight 5 late": HOUR / "heavier/metrics-512px.json",
        "class weight 5": HOUR / "whole/metrics-512px.json",
        "larger at the end": HOUR / "larger/metrics-640px.json",
    }
    found = {title: json.loads(file.read_text())["per_class"] for title, file in files.items()}
    names = found["in the study"]
    table = [["", *names]]
    return table + [[title, *(points(row[name]) for name in names)] for title, row in found.items()]


def two_sizes() -> list[list[str]]:
    report = json.loads((RESULTS / "recipe-search/third.json").read_text())
    epoch = f"epoch {report['epoch']}"
    table = [["size", f"AP, {epoch}", f"AP50, {epoch}", f"small, {epoch}", f"minutes, {epoch}"]]
    for name, run in report["runs"].items():
        row = run["at_common_epoch"]
        values = [points(row[key]) for key in ("ap", "ap50", "ap_small")]
        table.append([name.replace("-", " "), *values, f"{row['seconds'] / 60:.0f}"])
    return table


def batch_sizes() -> list[list[str]]:
    """The recipe with its steps of four images, and with twice as many steps of two."""
    report = json.loads((RESULTS / "recipe-search/fourth.json").read_text())
    table = [["images a step", *(f"AP, epoch {each + 1}" for each in range(report["epoch"]))]]
    for name, run in report["runs"].items():
        table.append([name, *map(points, run["curve"][: report["epoch"]])])
    return table


def hundred() -> list[list[str]]:
    """AP and AP50 on the tutorial's photographs."""
    report = json.loads((RESULTS / "recipe-search/hundred.json").read_text())
    common = f"epoch {report['epoch']}"
    table = [["variation", f"AP, {common}", f"AP50, {common}", "AP, last", "AP50, last", "epochs"]]
    for name, run in report["runs"].items():
        both = (run["at_common_epoch"], run["at_last_epoch"])
        values = [points(row[key]) for row in both for key in ("ap", "ap50")]
        table.append([name, *values, str(run["epochs"])])
    return table


def epoch_cost() -> list[list[str]]:
    report = json.loads((RESULTS / "epoch-cost.json").read_text())
    sizes = [key for key in report if " px" in key]
    table = [["model", *sizes]]
    for name in report[sizes[0]]:
        minutes = [report[size][name]["minutes_an_epoch"] for size in sizes]
        table.append([name, *(f"{value:.1f}" for value in minutes)])
    return table


def agreement(gpu: dict[str, Any]) -> list[list[str]]:
    table = [["model", "logits", "boxes", "loss, relative", "gradient norms, relative"]]
    for name, row in gpu["agreement"].items():
        keys = ("logits", "boxes", "loss_relative", "gradient_norms_relative")
        table.append([name, *(f"{row[key]:.1e}" for key in keys)])
    return table


def gpu_steps(gpu: dict[str, Any]) -> list[list[str]]:
    table = [["model", *(f"{kind}, ms and GiB" for kind in KINDS)]]
    for name, row in gpu["steps"].items():
        cells = [
            f"{1000 * row[kind]['seconds']:.0f}, {row[kind]['peak_gib']:.1f}" for kind in KINDS
        ]
        table.append([name, *cells])
    return table


def large_data() -> list[list[str]]:
    """Seconds and memory; what is not anonymous can be given back at any time."""
    table = [["step", "seconds", "of a processor", "peak, MB", "of it anonymous, MB"]]
    report = json.loads((RESULTS / "large-data.json").read_text())
    titles = {
        "opened": "opened and split for the first time",
        "opened_again": "opened again",
        "checked": "checked without images",
        "evaluated": "evaluated as they are found, and saved",
        "read_from_a_file": "read from that file and evaluated",
    }
    for key, title in titles.items():
        row = report["open"].get(key) or report["evaluate"][key]
        keys = ("seconds", "cpu_seconds", "peak_megabytes", "anonymous_megabytes")
        table.append([title, *(f"{row[key]:,.0f}" for key in keys)])
    return table


def _loading() -> dict[str, Any]:
    return json.loads((RESULTS / "data-loading.json").read_text())


def core_rates() -> list[list[str]]:
    rates = _loading()["rates"]["images_per_second_of_one_core"]
    sizes = list(next(iter(rates.values())))
    table = [["recipe", *(f"files of {size}" for size in sizes)]]
    return [*table, *([name, *(f"{v:.1f}" for v in row.values())] for name, row in rates.items())]


def waiting() -> list[list[str]]:
    """Shares of the time; the step is twice as long as reading its batch took."""
    row = _loading()["waiting"]
    shares = [f"{100 * share:.0f} %" for share in row["share_waiting_by_workers"].values()]
    return [
        ["a step of", "read in", "no worker", "one worker", "two workers", "load of the machine"],
        [f"{row['step_seconds']} s", f"{row['reading_seconds']} s", *shares, row["load_before"]],
    ]


def cores_of_a_gpu(gpu: dict[str, Any]) -> list[list[str]]:
    """Computed: what the GPU trains, by what a core reads; nobody has run both together."""
    rate = _loading()["rates"]["images_per_second_of_one_core"]["detr, 800 to 1333 px"]
    table = [["model", "images a second (bfloat16)", *(f"cores, files of {size}" for size in rate)]]
    for name, row in gpu["steps"].items():
        images = gpu["step_batch"] / row["bfloat16"]["seconds"]
        cores = [f"{images / each:.1f}" for each in rate.values()]
        table.append([name, f"{images:.0f}", *cores])
    return table


def scaled_decoding() -> list[list[str]]:
    keys = ("whole_ms", "scaled_ms", "mean_difference", "largest_difference")
    table = [["files", "ms, whole", "ms, scaled", "grey levels, mean", "grey levels, largest"]]
    for name, row in _loading()["scaled"].items():
        if isinstance(row, dict):
            table.append([name, *(f"{row[key]:.1f}" for key in keys)])
    return table


KINDS = ("float32 plain form", "float32", "bfloat16 plain form", "bfloat16")


def gpu_op(gpu: dict[str, Any]) -> list[list[str]]:
    table = [["call", "by", "forward, ms", "forward and backward, ms", "faster than plain"]]
    for row in gpu["op"]["rows"]:
        by = {"reference": "plain form", "cuda": gpu["sampling_by"]}[row["backend"]]
        both = row["forward_backward_ms"]["median"]
        forward = row["forward_ms"]["median"]
        title = f"{row['size']}, {row['form']}"
        table.append([title, by, f"{forward:.2f}", f"{both:.2f}", f"{row['speedup']:.1f}x"])
    return table


if __name__ == "__main__":
    main()
