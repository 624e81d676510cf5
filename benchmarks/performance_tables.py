"""The tables of docs/results/performance.md, from the JSON files beside it.

    python benchmarks/performance_tables.py [--check]

``--check`` changes nothing and fails if the page is not what the measurements say.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGE = RESULTS / "performance.md"
COMMANDS = {
    "op": "detrlab benchmark --op --rounds 9 --output docs/results/performance-op.json",
    "step": "detrlab benchmark --model deformable-detr detr detr-dc5 deformable-detr-two-stage "
    "deformable-detr-refine --rounds 5 --against transformers "
    "--output docs/results/performance-step.json",
    "step-avx2": "detrlab benchmark --model detr-dc5 deformable-detr deformable-detr-two-stage "
    "detr deformable-detr-refine --rounds 3 --threads 2 --against transformers "
    "--output docs/results/performance-step-avx2.json",
    "profile": "python benchmarks/step_profile.py --steps 2 "
    "--output docs/results/performance-profile.json",
    "products": "python benchmarks/products.py --rounds 3 "
    "--output docs/results/performance-products.json",
    "onnxruntime": "detrlab benchmark --against onnxruntime --model deimv2-femto --imgsz 416 "
    "--threads 1 --rounds 9 --output docs/results/performance-onnxruntime.json",
    "matching": "python benchmarks/step_profile.py --models dino-4scale --side 320 --steps 2 "
    "--objects 100 --output docs/results/performance-matching.json",
    "scaling": "python benchmarks/scaling.py --models deformable-detr --vary side queries batch "
    "--rounds 2 --output docs/results/performance-scaling.json",
}
ORDER = (
    "detr",
    "detr-dc5",
    "deformable-detr",
    "deformable-detr-refine",
    "deformable-detr-two-stage",
)


def read(name: str) -> Any:
    """One measurement."""
    return json.loads((RESULTS / f"performance-{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def op_tables(report: dict[str, Any]) -> list[str]:
    """Every backend at both sizes."""
    lines = []
    for form, title in (
        ("attend", "Deformable attention from offsets and logits, as the models call it"),
        ("sample", "Deformable sampling from locations and weights, as other libraries call it"),
    ):
        rows = []
        for size in ("encoder", "decoder"):
            chosen = [r for r in report["rows"] if (r["size"], r["form"]) == (size, form)]
            own = next(row for row in chosen if row["backend"] == "cpu")
            for row in chosen:
                both = row["forward_backward_ms"]
                low, high = both["quartiles"]
                ratio = both["median"] / own["forward_backward_ms"]["median"]
                name = (
                    "reference (grid_sample)" if row["backend"] == "reference" else row["backend"]
                )
                rows.append(
                    [
                        f"{size}, {name}",
                        milliseconds(row["forward_ms"]["median"]),
                        milliseconds(both["median"]),
                        f"{milliseconds(low)} to {milliseconds(high)}",
                        "1" if row is own else f"{ratio:.1f}",
                    ]
                )
        head = ["size, backend", "forward, ms", "forward + backward, ms", "quartiles"]
        lines += [title, "", *table([*head, "times cpu"], rows), ""]
    return lines


def step_tables(reports: list[dict[str, Any]], on: str = "") -> list[str]:
    """Inference and training step beside transformers."""
    by_model = {report["model"]: report for report in reports}
    chosen = [by_model[name] for name in ORDER if name in by_model]
    lines = []
    for kind, title in (
        ("training", "Training step beside transformers"),
        ("inference", "Inference beside transformers"),
    ):
        rows = []
        for report in chosen:
            ratio = report["ratios"][kind]
            own, other = (report["libraries"][n][kind] for n in ("detrlab", "transformers"))
            wall, processor = ratio["wall"], ratio["processor"]
            rows.append(
                [
                    report["model"],
                    f"{own['p50_ms']:,.0f}",
                    f"{other['p50_ms']:,.0f}",
                    f"{wall['median']:.2f}",
                    f"{wall['low']:.2f} to {wall['high']:.2f}",
                    f"{processor['median']:.2f}",
                    f"{own['above_start_mb']:,.0f}",
                    f"{ratio['memory']:.2f}",
                ]
            )
        head = ["model", "detrlab, ms", "transformers, ms", "times faster", "quartiles"]
        head += ["by processor time", "memory, MB", "of transformers'"]
        lines += [f"{title}{on}", "", *table(head, rows), ""]
    rows = []
    for report in chosen:
        cells = [report["model"], f"{report['matrix_peak_gflops']:.0f}"]
        for kind in ("training", "inference"):
            own, other = (report["libraries"][n][kind] for n in ("detrlab", "transformers"))
            products = own["multiply_adds_g"]
            at_peak = 1e3 * products / report["matrix_peak_gflops"]
            cells += [f"{products:.0f}", f"{at_peak:,.0f}"]
            cells += [f"{each['share_of_peak']['wall']:.0%}" for each in (own, other)]
        rows.append(cells)
    head = ["model", "peak, G/s", "step, G", "at the peak, ms", "detrlab", "transformers"]
    head += ["inference, G", "at the peak, ms", "detrlab", "transformers"]
    return [*lines, f"Share of the matrix peak{on}", "", *table(head, rows), ""]


def profile_table(report: dict[str, Any]) -> list[str]:
    """What takes the time of a training step."""
    by_model = {row["model"]: row["shares"] for row in report["rows"]}
    chosen = [name for name in ORDER if name in by_model]
    kinds = {kind for shares in by_model.values() for kind in shares}
    total = {kind: sum(shares.get(kind, 0.0) for shares in by_model.values()) for kind in kinds}
    rows = [
        [kind, *(f"{by_model[name].get(kind, 0.0):.1%}" for name in chosen)]
        for kind in sorted(kinds, key=lambda kind: -total[kind])
    ]
    steps = {row["model"]: row["step_ms"] for row in report["rows"]}
    matching = {row["model"]: row["matching_ms"] for row in report["rows"]}
    rows.append(["the whole step, ms", *(f"{steps[name]:,.0f}" for name in chosen)])
    rows.append(["of it matching, ms", *(f"{matching[name]:.1f}" for name in chosen)])
    head = ["part", *(name.replace("deformable-detr", "deformable") for name in chosen)]
    return ["Where a training step's time goes", "", *table(head, rows), ""]


def scaling_tables(report: dict[str, Any]) -> list[str]:
    """Times and memory at every size, and how they grow."""
    lines = []
    side = min(point["side"] for point in report["points"])
    titles = {
        "side": "Cost over the side of the image (batch 1)",
        "queries": f"Cost over the number of queries ({side} px, batch 1)",
        "batch": f"Cost over the batch ({side} px)",
        "objects": f"Cost over the objects of an image ({side} px, batch 1)",
        "classes": f"Cost over the number of classes ({side} px, batch 1)",
    }
    for varies, title in titles.items():
        rows = []
        for point in report["points"]:
            if point["varies"] != varies:
                continue
            step = point["training_ms"]
            rows.append(
                [
                    f"{point['model']}, {point[varies]}",
                    f"{point['tokens']:,}",
                    f"{point['inference_ms']['median']:,.0f}",
                    f"{step['median']:,.0f}",
                    f"{step['low']:,.0f} to {step['high']:,.0f}",
                    f"{step['processor']:,.0f}",
                    f"{point['training_mb']:,.0f}",
                ]
            )
        if not rows:
            continue
        head = [f"model, {varies}", "tokens", "inference, ms", "training step, ms", "range"]
        head += ["processor, ms"]
        lines += [title, "", *table([*head, "step's memory, MB"], rows), ""]
    rows = [
        [
            f"{row['model']}, {row['over']}",
            *(f"{row[value]:.2f}" for value in ("inference_ms", "training_ms", "training_mb")),
        ]
        for row in report["exponents"]
    ]
    head = ["model, over", "inference time", "training time", "training memory"]
    over = ", ".join(dict.fromkeys(row["over"] for row in report["exponents"]))
    title = f"Exponents of growth over {over} (1 is linear)"
    return [*lines, title, "", *table(head, rows), ""]


def onnxruntime_table(reports: list[dict[str, Any]]) -> list[str]:
    """Inference from resized pictures to detections."""
    rows = [
        [
            f"{report['model']}, {row['batch']} of {report['picture'][1]} x {report['picture'][0]}",
            str(row["threads"]),
            f"{row['PyTorch']['processor_ms']:.1f}",
            f"{row['ONNX Runtime']['processor_ms']:.1f}",
            f"{row['times_as_long']['wall']['median']:.2f}",
            f"{row['times_as_long']['processor']['median']:.2f}",
        ]
        for report in reports
        for row in report["rows"]
    ]
    head = ["detector, images", "threads", "PyTorch, processor ms", "ONNX Runtime, processor ms"]
    head += ["times as long", "by processor time"]
    return ["Inference beside ONNX Runtime", "", *table(head, rows), ""]


def matching_table(report: dict[str, Any]) -> list[str]:
    """What matching and losses take of a step."""
    rows = [
        [
            f"{row['model']}, {row['side']} px, {row['queries']} queries",
            f"{row['objects']}",
            *(f"{each:,.0f}" for each in row["processor_ms"].values()),
            f"{row['share']:.1%}",
        ]
        for row in report["rows"]
    ]
    head = ["detector", "objects", "matching, ms", "matching and losses, ms", "step, ms", "share"]
    return ["Matching and losses, forward and backward", "", *table(head, rows), ""]


def products_table(report: dict[str, Any]) -> list[str]:
    """oneDNN's time for a linear layer over MKL's, and layouts of convolutions."""
    rows = []
    for row in report["rows"]:
        forward, both = row["forward_ms"], row["both_ms"]
        rows.append(
            [
                f"{row['tokens']:,} x {row['in']} to {row['out']}",
                f"{forward['mkl']:.2f}",
                f"{forward['convolution'] / forward['mkl']:.2f}",
                f"{forward['fused'] / forward['mkl']:.2f}",
                f"{both['mkl']:.2f}",
                f"{both['convolution'] / both['mkl']:.2f}",
            ]
        )
    head = ["tokens, channels", "forward by MKL, ms", "as a convolution", "oneDNN's layer"]
    head += ["both passes by MKL, ms", "as a convolution"]
    last, usual = (report["resnet50_ms"][way] for way in ("channels_last", "contiguous_format"))
    told = f"ResNet-50 at 480 px, both passes: channels last takes {last / usual:.2f} of the time"
    title = "Linear layers: oneDNN's processor time over MKL's"
    return [title, "", *table(head, rows), "", f"{told} of PyTorch's usual layout.", ""]


def where(report: dict[str, Any]) -> str:
    """Where a measurement was made, in one line."""
    load = report["load_before"]
    words = [report["machine"], f"torch {report['torch']}"]
    if "capability" in report:
        words.append(report["capability"])
    if "threads" in report:
        words.append(f"{report['threads']} threads")
    if "transformers" in report:
        words.append(f"transformers {report['transformers']}")
    return ", ".join([*words, f"load before {load:.1f}"])


def page() -> str:
    """The whole page."""
    op, steps, avx2, profile, products, deployed, matching, scaling = map(read, COMMANDS)
    lines = ["# What it costs, measured", ""]
    lines += [
        "Written by `python benchmarks/performance_tables.py` from the JSON files beside it.",
        "",
    ]
    for name, report, tables in (
        ("op", op, op_tables(op)),
        ("step", steps[0], step_tables(steps)),
        ("step-avx2", avx2[0], step_tables(avx2, ", AVX2")),
        ("profile", profile, profile_table(profile)),
        ("products", products, products_table(products)),
        ("onnxruntime", deployed[0], onnxruntime_table(deployed)),
        ("matching", matching, matching_table(matching)),
        ("scaling", scaling, scaling_tables(scaling)),
    ):
        lines += [f"`{COMMANDS[name]}` ({where(report)})", "", *tables]
    return "\n".join(lines).rstrip() + "\n"


def main(check: bool) -> int:
    """Write the page, or only say whether it is out of date."""
    text = page()
    if check:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        if stale:
            print(f"{PAGE.name}: out of date")
        return int(stale)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
