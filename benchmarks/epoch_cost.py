"""Processor time of an epoch on one core, for each detector: of ``laptop``, or of another recipe.

    python benchmarks/epoch_cost.py --data facemask --output docs/results/epoch-cost.json
    python benchmarks/epoch_cost.py --data bccd --recipe FILE --models detr --output FILE

Processor time, not elapsed time: other programs change it less. The detectors take turns.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from detrlab.config import Recipe
from detrlab.data import batches, num_batches, open_data
from detrlab.models.prepare import prepare
from detrlab.presets import FIVE, build_network
from detrlab.recipes import recipe
from detrlab.training import loop
from detrlab.training.distributed import join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", type=Path, help="a file, taken as it is")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 416, 512])
    parser.add_argument("--models", nargs="+", default=FIVE)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(options.data)
    report: dict = {"data": data.name, "images": len(data.train), "torch": torch.__version__}
    if options.recipe:
        ways = {"recipe": Recipe.load(options.recipe)}
    else:
        named = recipe("laptop")
        ways = {f"{size} px": at(named, size) for size in options.sizes}
        whole = named.change(train=named.train.change(micro_batch=None).model_dump())
        ways[f"{max(options.sizes)} px, whole batches"] = at(whole, max(options.sizes))
    for title, way in ways.items():
        report[title] = measure(options.models, way, data, options.steps)
        print(title, report[title], flush=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def at(named, size):
    return named.change(data=named.data.resized(size).model_dump())


def measure(names, named, data, steps):
    """The median of some steps of each detector, reading the images included."""
    prepared = {name: one(name, named, data) for name in names}
    seconds = {name: [] for name in names}
    for number in range(steps + 1):
        for name, (engine, source, _) in prepared.items():
            start = time.process_time()
            engine.step(next(source), number)
            seconds[name].append(time.process_time() - start)
    found = {}
    for name, (_, _, whole) in prepared.items():
        step = statistics.median(seconds[name][1:])  # the first warms up
        found[name] = {"seconds_a_step": step, "minutes_an_epoch": step * whole / 60}
    return found


def one(name, named, data):
    """A detector's engine, its batches, and the steps of an epoch."""
    config = loop.plan(name, named, data)
    batch = config.train.batch
    whole = num_batches(data.train, config.data, batch=batch, train=True)
    network = prepare(build_network(config.model)).train()
    engine = loop.build_engine(network, config, whole, join("cpu"))
    source = batches(data.train, config.data, batch=batch, train=True, workers=0)
    return engine, source, whole


if __name__ == "__main__":
    main()
