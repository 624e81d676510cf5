"""Where the time of a training step goes.

    python benchmarks/step_profile.py --output docs/results/performance-profile.json
    python benchmarks/step_profile.py --models dino-4scale --objects 100 --output FILE

The parts are the operators of torch's profiler, grouped by what they do. The rest is the time
between them: Python, autograd, allocation.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from detrlab import files
from detrlab.benchmark import subjects
from detrlab.benchmark.cost import provenance
from detrlab.benchmark.timing import in_turn
from detrlab.config import TrainConfig
from detrlab.presets import FIVE, model_config

# An operator belongs to the first group that has a prefix of its name (without "aten::").
KINDS = {
    "convolutions": ("mkldnn_convolution", "convolution", "_slow_conv2d", "thnn_conv"),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"),
    "deformable attention": ("detrlab::deformable", "GeneratedBackwardFor_detrlab"),
    "dropout (with its ReLU or sum)": ("_Dropout", "_ActivationDropout", "_AddDropout"),
    "norms and softmax": (
        "native_layer_norm",
        "native_group_norm",
        "_softmax",
        "_log_softmax",
        "_scaled_dot_product",
    ),
    "ReLU and pooling": ("clamp_min", "threshold_backward", "relu", "max_pool2d"),
    "optimiser": ("_fused_adamw", "linalg_vector_norm", "_foreach", "Optimizer"),
    "copies and layouts": ("copy_", "clone", "cat", "contiguous", "gather", "fill_", "zero_"),
    "sums and products of elements": ("mul", "add", "sub", "div", "sum", "masked_fill", "where"),
}
REST = "everything else in PyTorch"


def kind_of(name: str) -> str:
    """What an operator of the profile does."""
    bare = name.removeprefix("aten::")
    for kind, beginnings in KINDS.items():
        exact = kind in ("matrix products", "sums and products of elements")
        for beginning in beginnings:
            if bare.startswith(beginning) if not exact else bare.rstrip("_") == beginning:
                return kind
    return REST


def profile_step(model: str, side: int, steps: int) -> dict[str, Any]:
    """Shares of the wall time of a training step."""
    subject = subjects.ours(model_config(model, 91), (side, side), 1)
    for _ in range(2):
        subject.learn()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        for _ in range(steps):
            subject.learn()
        wall = time.perf_counter() - start
    seconds: dict[str, float] = {}
    for row in recorded.key_averages():
        kind = kind_of(row.key)
        seconds[kind] = seconds.get(kind, 0.0) + row.self_cpu_time_total / 1e6
    shares = {kind: spent / wall for kind, spent in seconds.items()}
    between = 1 - sum(shares.values())
    shares[REST] = shares.get(REST, 0.0) + max(0.0, between)
    return {
        "model": model,
        "side": side,
        "step_ms": 1e3 * wall / steps,
        "matching_ms": matching_ms(model, side, subject),
        "shares": shares,
    }


def learning_share(model: str, side: int, rounds: int, objects: int) -> dict[str, Any]:
    """What matching and losses, forward and backward, take of a step's processor time."""
    config = model_config(model, 91, num_queries=300)
    subject = subjects.ours(config, (side, side), objects=objects)
    images, targets = subjects.pictures((side, side), 1, objects=objects)
    criterion = config.criterion(TrainConfig())
    output = subject.network.train()(images, targets)
    made = [each.predictions for each in output.sets]
    predicted = [part for each in made for part in (each.logits, each.boxes)]
    predicted = [part for part in predicted if part.requires_grad]

    def learn_from_output() -> None:
        total = criterion(output, targets).total
        torch.autograd.grad(total, predicted, retain_graph=True, allow_unused=True)

    matched = [each.predictions for each in output.sets if each.pairs is None]
    matched = [each for each in matched if each.logits.shape == matched[-1].logits.shape]
    calls = {
        "matching": lambda: criterion.matcher(matched, targets),
        "matching and losses": learn_from_output,
        "step": subject.learn,
    }
    times = in_turn(calls, rounds)
    spent = {name: 1e3 * statistics.median(each.processor) for name, each in times.items()}
    return {
        "model": model,
        "side": side,
        "queries": 300,
        "objects": objects,
        "processor_ms": spent,
        "share": spent["matching and losses"] / spent["step"],
    }


def matching_ms(model: str, side: int, subject: subjects.Subject) -> float:
    """Time of matching the predictions of all decoder layers to the objects."""
    matcher = model_config(model, 91).criterion(TrainConfig()).matcher
    images, targets = subjects.pictures((side, side), 1)
    with torch.no_grad():
        layers = subject.network(images).layers
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        matcher(layers, targets)
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(FIVE))
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--objects", type=int, help="measure matching and losses with so many")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {**provenance(), "rows": []}
    for model in options.models:
        if options.objects:
            row = learning_share(model, options.side, options.steps, options.objects)
            report["rows"].append(row)
            print(row, flush=True)
            continue
        row = profile_step(model, options.side, options.steps)
        report["rows"].append(row)
        print(
            f"{model}: {row['step_ms']:.0f} ms with the profiler on, "
            f"of which matching {row['matching_ms']:.1f} ms"
        )
        for kind, share in sorted(row["shares"].items(), key=lambda pair: -pair[1]):
            print(f"  {share:6.1%}  {kind}", flush=True)
    if options.output:
        files.write_json(options.output, report)


if __name__ == "__main__":
    main()
