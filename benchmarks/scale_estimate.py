"""An estimate of what the whole ladder costs on COCO and on Objects365.

    python benchmarks/scale_estimate.py --output docs/results/scale-estimate.md

Multiply-adds and memory are counted on PyTorch's meta device, which knows shapes only. GPU time is
that of the measured training steps in ``docs/results/gpu-check.json`` where there is one, otherwise
the multiply-adds at the speed that two-stage Deformable DETR reached there.
"""

import argparse
import json
from pathlib import Path

import torch
from cppe5_estimate import GIB, fused_kernels, kept_for_backward

from detrlab.benchmark.cost import gflops
from detrlab.compare import Entrant, ladder
from detrlab.presets import build_network, model_config

MEASURED = Path(__file__).resolve().parents[1] / "docs/results/gpu-check.json"
TITLE = "Estimated for one H200 in float32, except for the training steps marked as measured"
CLASSES, IMAGES = 80, 4
LARGE, SQUARE = (800, 1066), (640, 640)
REAL_TIME = ("rt-detr", "d-fine", "deim", "dino-hybrid")
"""Families that are trained on squares of 640 pixels."""
COCO, OBJECTS365 = 118_287, 1_742_289
"""Training images: arXiv 1405.0312 (train2017); Shao et al., ICCV 2019 (v2, as D-FINE uses it)."""
EPOCHS = 50
"""Of the original experiment, for every detector alike."""
STATES, VALUES = 2, 4
"""Saved states of a run; numbers of each weight in one: itself, average, two moments."""


def row(
    entrant: Entrant, seconds_per_gflop: float, steps: dict[str, dict[str, float]]
) -> list[str]:
    size = SQUARE if entrant.preset.startswith(REAL_TIME) else LARGE
    with torch.device("meta"):
        network = build_network(model_config(entrant.preset, CLASSES))
    weights = sum(each.nbytes for each in network.parameters())
    count = gflops(network, size)
    known = steps.get(entrant.preset)
    seconds = known["seconds"] / IMAGES if known else count * seconds_per_gflop
    with fused_kernels():
        kept = kept_for_backward(network, IMAGES, size)
    epoch = seconds * COCO / 3600
    return [
        entrant.name,
        f"{size[0]} x {size[1]}",
        f"{count:.0f}",
        f"{1000 * seconds:.0f}{' (measured)' if known else ''}",
        f"{epoch:.2f}",
        f"{epoch * EPOCHS:.0f}",
        f"{seconds * OBJECTS365 / 3600:.1f}",
        f"{(kept + VALUES * weights) / GIB:.1f}",
        f"{weights * (2 + STATES * VALUES) / 1e9:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    measured = json.loads(MEASURED.read_text())
    assert (tuple(measured["step_size"]), measured["step_batch"]) == (LARGE, IMAGES)
    steps = {name: by["float32"] for name, by in measured["steps"].items()}
    with torch.device("meta"):
        network = build_network(model_config("deformable-detr-two-stage", CLASSES))
    reached = steps["deformable-detr-two-stage"]["seconds"] / IMAGES / gflops(network, LARGE)
    head = [
        "detector",
        "image",
        "GFLOPs",
        "ms a training image",
        "GPU hours an epoch of COCO",
        f"{EPOCHS} epochs",
        "an epoch of Objects365",
        f"GiB for {IMAGES} images",
        "GB of a run's weights and states",
    ]
    rows = [row(entrant, reached, steps) for entrant in ladder()]
    sums = [f"{sum(float(each[column]) for each in rows):.0f}" for column in (4, 5, 6, 8)]
    lines = [
        head,
        ["---", *["---:"] * (len(head) - 1)],
        *rows,
        ["together", "", "", "", *sums[:3], "", sums[3]],
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    options.output.write_text(f"{TITLE}\n\n{table}\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
