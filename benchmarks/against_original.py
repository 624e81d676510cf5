"""A detector of ours beside its original authors' code on this machine's CPU.

    python benchmarks/against_original.py --originals DIR --model dino-4scale --output FILE.json

DIR holds ``witness.py`` and a folder with each repository; it builds the original from its own
configuration. Deformable attention runs in the original's own PyTorch form: its compiled one
needs a GPU. Same size, same images, same objects, same optimiser (fused AdamW); neither has loaded
weights. Both are timed in turn in one process; peak memory is measured in processes of their own.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import count_parameters, provenance
from detrlab.config import TrainConfig
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
    given = (options.originals, options.model, size, options.batch)
    pair = {"ours": ours(*given), "original": original(*given)}
    calls = {(name, "inference"): each.infer for name, each in pair.items()}
    calls |= {(name, "training"): each.learn for name, each in pair.items()}
    times = timing.in_turn(calls, options.rounds)
    report = {
        "model": options.model,
        "commit": commit(options.originals, options.model),
        "picture": list(size),
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        **origin,
        "parameters": {name: count_parameters(each.network)[0] for name, each in pair.items()},
    }
    for kind in ("inference", "training"):
        mine, theirs = times["ours", kind], times["original", kind]
        peak = {name: peak_memory(name, *given, kind == "training") for name in pair}
        report[kind] = {
            "ours": mine.to_dict() | {"peak_mb": peak["ours"]},
            "original": theirs.to_dict() | {"peak_mb": peak["original"]},
            "times_as_fast": timing.ratio(theirs.wall, mine.wall),
            "times_as_fast_by_processor": timing.ratio(theirs.processor, mine.processor),
            "share_of_memory": peak["ours"] / peak["original"],
        }
        print(kind, json.dumps(report[kind]), flush=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def ours(_folder, name, size, batch):
    # The originals' 91 rows of COCO classes.
    return subjects.ours(model_config(name, 91), size, batch)


def original(folder, name, size, batch):
    """The authors' model, criterion and trainable parameters, given the same images."""
    sys.path.insert(0, str(folder))
    import witness

    entry = witness.CASES[name]
    padded = entry["family"] in witness.PADDED
    build = witness.build_args if padded else witness.build_yaml
    case = build(entry, False, {})
    case.model.train()
    images, targets = subjects.pictures(size, batch)
    labels = [{"labels": each.labels, "boxes": each.boxes} for each in targets]
    pixels = case.nested(list(images.pixels)) if padded else images.pixels
    learned = [each for each in case.model.parameters() if each.requires_grad]
    train = TrainConfig()

    def loss():
        found = case.criterion_call(case.call(pixels, labels), labels, 0)
        weights = case.criterion.weight_dict if padded else dict.fromkeys(found, 1)
        return sum(value * weights[key] for key, value in found.items() if key in weights)

    return subjects.Subject(
        name="original",
        network=case.model,
        predict=lambda: case.call(pixels, None),
        loss=loss,
        clip=lambda: nn.utils.clip_grad_norm_(learned, train.clip),
        optimizer=torch.optim.AdamW(
            learned, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        ),
    )


def commit(folder, name):
    sys.path.insert(0, str(folder))
    import witness

    return (
        (folder / witness.CASES[name]["repo"].split("/")[0] / "COMMIT").read_text().split("\n")[:2]
    )


def peak_memory(library, folder, name, size, batch, learn):
    """Peak memory in MB above what the process used before the detector was built."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(measure, library, folder, name, size, batch, learn, threads).result()


def measure(library, folder, name, size, batch, learn, threads):
    torch.set_num_threads(threads)
    make = ours if library == "ours" else original
    make(folder, name, (256, 256), 1).learn()  # compilers and libraries loaded at first use
    return memory.peak_of(lambda: make(folder, name, size, batch), learn=learn)


if __name__ == "__main__":
    main()
