"""One benchmark: everything about one detector at one size."""

from __future__ import annotations

import functools
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import count_parameters, gflops, multiply_adds, provenance
from detrlab.benchmark.original import commit, original
from detrlab.config import ModelConfig
from detrlab.ops.allocation import keep_freed_memory

SIDE = 2048
"""Of the square matrices whose product gives the speed of this machine."""


def benchmark(
    config: ModelConfig,
    *,
    height: int = 640,
    width: int = 640,
    batch: int = 1,
    rounds: int = 7,
    against: str | None = None,
    originals: Path | None = None,
    train: bool = True,
    with_memory: bool = True,
) -> dict[str, Any]:
    """Measure a detector of ours, and with ``against`` another's in the same rounds.

    Args:
        config: the architecture.
        height: of the images.
        width: of the images.
        batch: images in a batch.
        rounds: of timing, after one that does not count.
        against: ``transformers``, ``original`` (the authors' code), or None.
        originals: the folder with the authors' code.
        train: also measure training steps.
        with_memory: also measure peak memory, in processes of their own.

    Returns:
        Plain values: for each library latency percentiles, throughput, the training step, the
        share of the matrix peak, memory; and ratios, the other's over ours.

    Raises:
        UserError: transformers is not installed, or the other has no such detector.
    """
    size = (height, width)
    makers: dict[str, memory.Make] = {"detrlab": subjects.ours}
    if originals is not None:
        makers["original"] = functools.partial(original, originals)
    elif against is not None:
        makers[against] = subjects.theirs
    if not train:
        keep_freed_memory()  # as detectors that predict do
    measured = [make(config, size, batch) for make in makers.values()]
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    calls: dict[Any, Any] = {"product": lambda: a @ b}
    calls |= {(each.name, "inference"): each.infer for each in measured}
    if train:
        calls |= {(each.name, "training"): each.learn for each in measured}
    origin = provenance()
    times = timing.in_turn(calls, rounds)
    product = times.pop("product")

    libraries: dict[str, dict[str, Any]] = {each.name: {} for each in measured}
    for (name, kind), found in times.items():
        adds = multiply_adds(calls[name, kind])
        scale = adds / SIDE**3
        row = {
            **found.to_dict(),
            "images_per_second": batch / statistics.median(found.wall),
            "multiply_adds_g": adds / 1e9,
            "share_of_peak": {
                "wall": scale * timing.ratio(product.wall, found.wall)["median"],
                "processor": scale * timing.ratio(product.processor, found.processor)["median"],
            },
        }
        if with_memory:
            row |= memory.peak_memory(makers[name], config, size, batch, learn=kind == "training")
        libraries[name][kind] = row
    parameters, trainable = count_parameters(measured[0].network)
    report: dict[str, Any] = {
        "model": config.preset,
        "backbone": config.backbone,
        "picture": [height, width],
        "batch": batch,
        "rounds": rounds,
        **origin,
        "parameters": parameters,
        "trainable": trainable,
        "gflops": gflops(measured[0].network, size),
        "matrix_peak_gflops": SIDE**3 / min(product.wall) / 1e9,
        "libraries": libraries,
    }
    if against is not None:
        report[against] = (
            commit(originals, config.preset) if originals is not None else version(against)
        )
        report["ratios"] = {}
        for kind, own in libraries["detrlab"].items():
            ours, theirs = times["detrlab", kind], times[against, kind]
            report["ratios"][kind] = {
                "wall": timing.ratio(theirs.wall, ours.wall),
                "processor": timing.ratio(theirs.processor, ours.processor),
            }
            other = libraries[against][kind].get("above_start_mb")
            if other:
                report["ratios"][kind]["memory"] = own["above_start_mb"] / other
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    height, width = report["picture"]
    load = report["load_before"]
    text = [
        f"{report['model']} ({report['backbone']}), {width} x {height}, batch {report['batch']}: "
        f"{report['parameters']:,} parameters, {report['gflops']:.1f} GFLOPs (multiply-adds)",
        f"{report['machine']}; matrix peak {report['matrix_peak_gflops']:.0f} G multiply-adds a "
        f"second; ops backend {report['backend']}" + (f"; load {load:.1f}" if load else ""),
    ]
    for name, row in report["libraries"].items():
        for kind, own in row.items():
            line = (
                f"{name:12} {kind:9} p50 {own['p50_ms']:.0f} p90 {own['p90_ms']:.0f} "
                f"p99 {own['p99_ms']:.0f} ms, processor {own['processor_ms']:.0f} ms, "
                f"{own['images_per_second']:.2f} images/s, "
                f"{own['share_of_peak']['processor']:.0%} of the matrix peak"
            )
            if "peak_mb" in own:
                line += f", {own['peak_mb']:.0f} MB (its own: {own['above_start_mb']:.0f})"
            text.append(line)
    for kind, ratio in report.get("ratios", {}).items():
        wall = ratio["wall"]
        line = (
            f"{kind}: {wall['median']:.2f}x faster ({wall['low']:.2f} to {wall['high']:.2f}), "
            f"{ratio['processor']['median']:.2f}x by processor time"
        )
        if "memory" in ratio:
            line += f"; {ratio['memory']:.2f} of its memory"
        text.append(line)
    return text
