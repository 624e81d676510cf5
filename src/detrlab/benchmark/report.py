"""One benchmark: everything about one detector at one size."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from typing import Any

import torch

from detrlab.benchmark import memory, subjects, timing
from detrlab.benchmark.cost import count_parameters, gflops, multiply_adds, provenance
from detrlab.config import ModelConfig
from detrlab.errors import UserError, did_you_mean

AGAINST = ("transformers",)
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
    train: bool = True,
    with_memory: bool = True,
) -> dict[str, Any]:
    """Measure a detector of ours, and with ``against`` another library's in the same rounds.

    Args:
        config: the architecture.
        height: of the images.
        width: of the images.
        batch: images in a batch.
        rounds: of timing, after one that does not count.
        against: ``transformers``, or None.
        train: also measure training steps.
        with_memory: also measure peak memory, in processes of their own.

    Returns:
        Plain values: for each library latency percentiles, throughput, the training step, the
        share of the matrix peak, memory; and ratios, other library over ours.

    Raises:
        UserError: ``against`` is unknown, not installed, or has no such detector.
    """
    check_opponent(against)
    size = (height, width)
    measured = [subjects.ours(config, size, batch)]
    if against is not None:
        measured.append(subjects.theirs(config, size, batch))
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    product_adds = float(SIDE**3)
    calls: dict[str, Any] = {"matrix product": lambda: a @ b}
    calls |= {f"{each.name} inference": each.infer for each in measured}
    if train:
        calls |= {f"{each.name} training": each.learn for each in measured}
    origin = provenance()
    times = timing.in_turn(calls, rounds)

    parameters, trainable = count_parameters(measured[0].network)
    least = min(times["matrix product"].wall)
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
        "matrix_peak_gflops": product_adds / least / 1e9,
        "libraries": {},
    }
    for each in measured:
        row: dict[str, Any] = {}
        for kind, call in (("inference", each.infer), ("training", each.learn)):
            name = f"{each.name} {kind}"
            if name not in times:
                continue
            adds = multiply_adds(call)
            row[kind] = {
                **times[name].to_dict(),
                "images_per_second": batch / statistics.median(times[name].wall),
                "multiply_adds_g": adds / 1e9,
                "share_of_peak": _share(adds, times[name], product_adds, times["matrix product"]),
            }
            if with_memory:
                row[kind] |= memory.peak_memory(
                    each.name, config, size, batch, learn=kind == "training"
                )
        report["libraries"][each.name] = row
    if against is not None:
        report[against] = version(against)
        report["ratios"] = _ratios(report, times, against)
    return report


def check_opponent(name: str | None) -> None:
    """Check the name of the library to compare with.

    Raises:
        UserError: it is no known library; the closest match is named.
    """
    if name is not None and name not in AGAINST:
        raise UserError(f"--against {name}: no such library{did_you_mean(name, AGAINST)}")


def _share(
    adds: float, times: timing.Times, product_adds: float, product: timing.Times
) -> dict[str, float]:
    """Multiply-adds per second divided by those of the matrix product, in the same rounds."""
    scale = adds / product_adds
    return {
        "wall": scale * timing.ratio(product.wall, times.wall)["median"],
        "processor": scale * timing.ratio(product.processor, times.processor)["median"],
    }


def _ratios(report: dict[str, Any], times: dict[str, timing.Times], against: str) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    for kind in ("inference", "training"):
        own, other = times.get(f"detrlab {kind}"), times.get(f"{against} {kind}")
        if own is None or other is None:
            continue
        ratios[kind] = {
            "wall": timing.ratio(other.wall, own.wall),
            "processor": timing.ratio(other.processor, own.processor),
        }
        rows = [report["libraries"][name][kind] for name in ("detrlab", against)]
        if all(row.get("above_start_mb") for row in rows):
            ratios[kind]["memory"] = rows[0]["above_start_mb"] / rows[1]["above_start_mb"]
    return ratios


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    height, width = report["picture"]
    before = report["load_before"]
    text = [
        f"{report['model']} ({report['backbone']}), {width} x {height}, batch {report['batch']}: "
        f"{report['parameters']:,} parameters, {report['gflops']:.1f} GFLOPs (multiply-adds)",
        f"{report['machine']}; matrix peak {report['matrix_peak_gflops']:.0f} G multiply-adds a "
        f"second; ops backend {report['backend']}"
        + ("" if before is None else f"; load {before:.1f}"),
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
        wall, processor = ratio["wall"], ratio["processor"]
        line = (
            f"{kind}: {wall['median']:.2f}x faster "
            f"({wall['low']:.2f} to {wall['high']:.2f}), "
            f"{processor['median']:.2f}x by processor time"
        )
        if "memory" in ratio:
            line += f"; {ratio['memory']:.2f} of its memory"
        text.append(line)
    return text
