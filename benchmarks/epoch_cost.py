"""Processor time of an epoch of the recipe ``laptop`` on one core, for each detector.

    python benchmarks/epoch_cost.py --data facemask --output docs/results/epoch-cost.json

Processor time, not elapsed time: other programs hardly change it.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path

import torch

from detrlab.data import batches, num_batches, open_data
from detrlab.models.prepare import prepare
from detrlab.presets import FIVE, build_network
from detrlab.recipes import recipe
from detrlab.training import loop
from detrlab.training.distributed import join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 416, 512])
    parser.add_argument("--models", nargs="+", default=FIVE)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(options.data)
    report: dict = {"data": data.name, "images": len(data.train), "torch": torch.__version__}
    named = recipe("laptop")
    ways = {f"{size} px": at(named, size) for size in options.sizes}
    whole = {"train": named.train.change(micro_batch=None).model_dump()}
    ways[f"{max(options.sizes)} px, whole batches"] = at(named.change(**whole), max(options.sizes))
    for title, way in ways.items():
        for name in options.models:
            row = measure(name, way, data, options.steps)
            print(title, name, row, flush=True)
            report.setdefault(title, {})[name] = row
            options.output.write_text(json.dumps(report, indent=1) + "\n")


def at(named, size):
    return named.change(data=named.data.resized(size).model_dump())


def measure(name, named, data, steps):
    config = loop.plan(name, named, data)
    whole = num_batches(data.train, config.data, batch=config.train.batch, train=True)
    network = prepare(build_network(config.model)).train()
    engine = loop.build_engine(network, config, whole, join("cpu"))
    batch = config.train.batch
    source = batches(data.train, config.data, batch=batch, train=True, workers=0)
    seconds = []
    start = time.process_time()
    for number, each in enumerate(islice(source, steps + 1)):
        engine.step(each, number)
        now = time.process_time()
        seconds.append(now - start)  # reading the images is part of it
        start = now
    step = sum(seconds[1:]) / steps  # the first warms up
    return {"seconds_a_step": step, "minutes_an_epoch": step * whole / 60}


if __name__ == "__main__":
    main()
