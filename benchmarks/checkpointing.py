"""What gradient checkpointing saves and costs: memory and time of a training step.

python benchmarks/checkpointing.py --output docs/results/checkpointing.json
"""

import argparse
import functools
import statistics
from pathlib import Path

import torch

from detrlab import files
from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import provenance
from detrlab.config import ModelConfig
from detrlab.presets import model_config
from detrlab.training.gradient_checkpointing import checkpoint_layers


def build(
    config: ModelConfig, size: tuple[int, int], batch: int = 1, *, recomputed: bool
) -> subjects.Subject:
    subject = subjects.ours(config, size, batch)
    if recomputed:
        checkpoint_layers(subject.network)
    return subject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["detr", "deformable-detr-two-stage"])
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    size = (options.side, options.side)
    makers = {
        name: functools.partial(build, recomputed=name == "recomputed")
        for name in ("kept", "recomputed")
    }
    report = {**provenance(), "side": options.side, "rounds": options.rounds, "rows": []}
    for model in options.models:
        config = model_config(model, 91)
        steps = {name: make(config, size).learn for name, make in makers.items()}
        times = timing.in_turn(steps, options.rounds)
        spent = {name: 1e3 * statistics.median(each.processor) for name, each in times.items()}
        held = {
            name: memory.peak_memory(make, config, size, 1, learn=True)["above_start_mb"]
            for name, make in makers.items()
        }
        row = {
            "model": model,
            "processor_ms": spent,
            "memory_mb": held,
            "time": spent["recomputed"] / spent["kept"],
            "memory": held["recomputed"] / held["kept"],
        }
        report["rows"].append(row)
        print(row, flush=True)
    files.write_json(options.output, report)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
