"""Processor time of an epoch of the recipe ``laptop`` on one core, for each detector.

    python benchmarks/epoch_cost.py --data facemask --output docs/results/epoch-cost.json

Seconds that the process computed, not seconds on the clock: other programs hardly move them.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path

import torch

from detrlab.data import batches, num_batches, open_data
from detrlab.models.build import build_network
from detrlab.models.prepare import prepare
from detrlab.presets import FIVE, recipe
from detrlab.training import loop
from detrlab.training.processes import join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 416])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(options.data)
    report: dict = {"data": data.name, "images": len(data.train), "torch": torch.__version__}
    for size in options.sizes:
        named = recipe("laptop")
        settings = named.data.change(image_size=size, max_size=size)
        named = named.change(data=settings.model_dump())
        for name in FIVE:
            row = measure(name, named, data, options.steps)
            print(size, name, row, flush=True)
            report.setdefault(f"{size} px", {})[name] = row
            options.output.write_text(json.dumps(report, indent=1) + "\n")


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
