"""A detector of ours beside its original authors' code on this machine's CPU.

    python benchmarks/against_original.py --originals DIR --model dino-4scale --output FILE.json

DIR holds ``witness.py`` and a folder with each repository; it builds the original from its own
configuration. Deformable attention runs in the original's own PyTorch form: its compiled one
needs a GPU. Same size, same images, same objects, same optimiser (fused AdamW); neither has loaded
weights. Both are timed in turn in one process; peak memory is measured in processes of their own.
"""

import argparse
import functools
import json
from pathlib import Path

import torch

from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import count_parameters, provenance
from detrlab.benchmark.original import commit, folder_of_originals, original
from detrlab.presets import model_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--model", default="dino-4scale")
    parser.add_argument("--imgsz", type=int, nargs=2, default=[480, 640])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = tuple(options.imgsz)
    origin = provenance()
    folder = folder_of_originals(str(options.originals))
    makers = {"ours": subjects.ours, "original": functools.partial(original, folder)}
    given = (model_config(options.model, 91), size, options.batch)  # COCO's rows of classes
    pair = {name: make(*given) for name, make in makers.items()}
    calls = {(name, "inference"): each.infer for name, each in pair.items()}
    calls |= {(name, "training"): each.learn for name, each in pair.items()}
    times = timing.in_turn(calls, options.rounds)
    report = {
        "model": options.model,
        "commit": commit(folder, options.model),
        "picture": list(size),
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        **origin,
        "parameters": {name: count_parameters(each.network)[0] for name, each in pair.items()},
    }
    for kind in ("inference", "training"):
        mine, theirs = times["ours", kind], times["original", kind]
        peak = {
            name: memory.peak_memory(make, *given, learn=kind == "training")["above_start_mb"]
            for name, make in makers.items()
        }
        report[kind] = {
            "ours": mine.to_dict() | {"peak_mb": peak["ours"]},
            "original": theirs.to_dict() | {"peak_mb": peak["original"]},
            "times_as_fast": timing.ratio(theirs.wall, mine.wall),
            "times_as_fast_by_processor": timing.ratio(theirs.processor, mine.processor),
            "share_of_memory": peak["ours"] / peak["original"],
        }
        print(kind, json.dumps(report[kind]), flush=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
