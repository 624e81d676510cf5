"""What one GPU does with the detectors that a study is made of, beside transformers.

    python benchmarks/gpu_scale.py --output docs/results/gpu-scale.json

Training steps and inference of two-stage Deformable DETR, DINO and D-FINE-N in float32 and
bfloat16, in turn with transformers where that has the detector, and how often PyTorch makes the
processor wait for the GPU in a step. Meant to end within 8 minutes, with the images per second of
the real loader (``benchmarks/data_loading.py``); ``--device cpu --rounds 1 --side 256 --batch 1``
tries the script without a GPU.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch

from detrlab.benchmark import subjects
from detrlab.benchmark.cost import provenance
from detrlab.benchmark.timing import in_turn
from detrlab.errors import UserError
from detrlab.presets import model_config
from detrlab.training.engine import autocast

DETECTORS = ("deformable-detr-two-stage", "dino-4scale", "d-fine-n")


def waits(step, device):
    """How often PyTorch reports that a training step makes the processor wait."""
    if device != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in found)


def finished(step, device, precision):
    """The step in a precision, until the device has done it."""

    def run():
        with autocast(torch.device(device), precision):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(name, options):
    side = (options.side, options.side)
    config = model_config(name, 80)
    pair = {"detrlab": subjects.ours(config, side, options.batch, options.device)}
    try:
        pair["transformers"] = subjects.theirs(config, side, options.batch, options.device)
    except UserError as error:
        print(f"{name}: {error}")
    found = {}
    for precision in ("float32", "bfloat16"):
        for kind in ("infer", "learn"):
            steps = {
                library: finished(getattr(subject, kind), options.device, precision)
                for library, subject in pair.items()
            }
            times = in_turn(steps, options.rounds)
            for library, each in times.items():
                found.setdefault(library, {})[f"{kind} {precision}"] = each.to_dict()["p50_ms"]
    found["waits in a step"] = {
        library: waits(subject.learn, options.device) for library, subject in pair.items()
    }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    report = {**provenance(), "device": options.device, "side": options.side}
    if options.device == "cuda":
        report["gpu"] = torch.cuda.get_device_name()
    for name in DETECTORS:
        report[name] = measure(name, options)
        print(name, report[name], flush=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
