"""How often the intervals cover the truth, and how often a difference is detected.

Simulated detectors (``simulated_detectors.py``) have a true difference that can be measured on
as many images as necessary. Many small comparisons are drawn, each is judged by
``detrlab.compare.statistics``, and its claims are compared with the truth.

    python benchmarks/statistics_coverage.py --out docs/results/statistics_coverage

writes a json file and a Markdown table; ``--share 0.1`` makes a tenth of the trials.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from simulated_detectors import Architecture, detect, draw_scenes, trainings

from detrlab.compare.resampling import quantities
from detrlab.compare.statistics import Findings, compare
from detrlab.evaluation.matching import average_precision, match

BASE = Architecture()
BETTER = Architecture(skill=1.15, precision=0.075)
SPREAD = 0.15
QUANTITIES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "class 0..2")
REPLICATES = 800


@cache
def truth_of(detector: Architecture, images: int = 20_000, times: int = 6) -> np.ndarray:
    """All quantities of a detector on very many images; over its seeds if they differ."""
    rng = np.random.default_rng(99)
    if detector.seed_spread:
        images, times = images // 10, times * 15
    tables = []
    for _ in range(times):
        scenes = draw_scenes(rng, images)
        judged = match(scenes.truth, detect(rng, scenes, detector.trained(rng)))
        tables.append(quantities(average_precision(judged)[None])[0])
    return np.mean(tables, axis=0)


def comparisons(
    detectors: list[Architecture], images: int, seeds: int, trials: int, target: float
) -> Iterator[Findings]:
    """Independent small comparisons of neighbours, as a user would make them."""
    # Other scenes under every condition, so that the conditions are independent.
    rng = np.random.default_rng([images, seeds, len(detectors), int(1e6 * detectors[-1].skill)])
    for trial in range(trials):
        scenes = draw_scenes(rng, images)
        judged = {
            f"d{i}": trainings(rng, scenes, detector, seeds) for i, detector in enumerate(detectors)
        }
        pairs = list(itertools.pairwise(judged))
        yield compare(judged, pairs, replicates=REPLICATES, seed=trial, target=target)


def study(
    first: Architecture, second: Architecture, images: int, seeds: int, trials: int
) -> dict[str, Any]:
    """Coverage, false claims or power, and widths of one pair under one condition."""
    truths = [truth_of(first), truth_of(second)]
    true = truths[1] - truths[0]
    covered, widths, claims, alone, needed = [], [], [], [], []
    for comparison in comparisons([first, second], images, seeds, trials, abs(true[0]) or 0.01):
        rows = comparison.differences
        covered.append([r.low <= t <= r.high for r, t in zip(rows, true, strict=True)])
        widths.append([(r.high - r.low) / 2 for r in rows])
        claims.append(rows[0].p <= 0.05)
        needed.append(rows[0].needed.images or np.inf)
        alone.append(
            [
                [i.low <= t <= i.high for i, t in zip(intervals.values(), values, strict=True)]
                for intervals, values in zip(comparison.intervals.values(), truths, strict=True)
            ]
        )
    return {
        "images": images,
        "seeds": seeds,
        "trials": trials,
        "true_difference": _by_quantity(true),
        "coverage": _by_quantity(np.mean(covered, axis=0)),
        "coverage_of_one_detector": _by_quantity(np.mean(alone, axis=(0, 1))),
        "half_width": _by_quantity(np.mean(widths, axis=0)),
        "claims": float(np.mean(claims)),
        "median_images_needed": float(np.median(needed)),
    }


def mistaken_for_architectures(images: int, trials: int) -> dict[str, Any]:
    """How often the interval of one seed covers the difference of the architectures."""
    first, second = replace(BASE, seed_spread=SPREAD), replace(BETTER, seed_spread=SPREAD)
    return study(first, second, images, 1, trials)


def ladder(images: int, trials: int) -> dict[str, Any]:
    """Five equal detectors: how often is one of the steps called better?"""
    raw, adjusted = [], []
    for comparison in comparisons([BASE] * 5, images, 1, trials, 0.01):
        raw.append(min(row.p for row in comparison.of("ap")) <= 0.05)
        adjusted.append(min(row.p_adjusted for row in comparison.of("ap")) <= 0.05)
    return {
        "images": images,
        "trials": trials,
        "any_false_claim_without_correction": float(np.mean(raw)),
        "any_false_claim": float(np.mean(adjusted)),
    }


def promised_power(trials: int, from_images: int = 171) -> dict[str, Any]:
    """Is a difference detected four times out of five on as many images as ``Needed`` says?"""
    asked = study(BASE, BETTER, from_images, 1, max(10, trials))
    images = int(asked["median_images_needed"])
    return {"promised_from": from_images, **study(BASE, BETTER, images, 1, trials)}


def _by_quantity(values: np.ndarray) -> dict[str, float]:
    return dict(zip(QUANTITIES, [*map(float, values[:6]), float(np.mean(values[6:]))], strict=True))


def conditions(share: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything that is measured, by name."""

    def times(count: int) -> int:
        return max(4, round(count * share))

    seeded = replace(BASE, seed_spread=SPREAD), replace(BETTER, seed_spread=SPREAD)
    equal = replace(BASE, seed_spread=SPREAD), replace(BASE, seed_spread=SPREAD)
    return {
        "equal, 29 images": lambda: study(BASE, BASE, 29, 1, times(400)),
        "equal, 171 images": lambda: study(BASE, BASE, 171, 1, times(200)),
        "better, 29 images": lambda: study(BASE, BETTER, 29, 1, times(400)),
        "better, 171 images": lambda: study(BASE, BETTER, 171, 1, times(200)),
        "better, 500 images": lambda: study(BASE, BETTER, 500, 1, times(100)),
        "equal, 3 seeds, 29 images": lambda: study(*equal, 29, 3, times(200)),
        "equal, 3 seeds, 171 images": lambda: study(*equal, 171, 3, times(100)),
        "better, 3 seeds, 29 images": lambda: study(*seeded, 29, 3, times(200)),
        "better, 3 seeds, 171 images": lambda: study(*seeded, 171, 3, times(100)),
        "better, 6 seeds, 171 images": lambda: study(*seeded, 171, 6, times(60)),
        "one seed taken for the architecture, 171 images": lambda: mistaken_for_architectures(
            171, times(200)
        ),
        "ladder of five equals, 100 images": lambda: ladder(100, times(200)),
        "as many images as promised": lambda: promised_power(times(100)),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    head = ["condition", "trials", "true AP difference", "half-width"]
    head += [f"covers {quantity}" for quantity in QUANTITIES] + ["claims a difference in AP"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, result in results.items():
        if "coverage" in result:
            cells = [name, result["trials"], f"{100 * result['true_difference']['ap']:.1f}"]
            cells += [f"±{100 * result['half_width']['ap']:.1f}"]
            cells += [f"{100 * result['coverage'][quantity]:.0f} %" for quantity in QUANTITIES]
            cells += [f"{100 * result['claims']:.0f} %"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| one detector's own AP | " + " | ".join(QUANTITIES) + " |"]
    lines += ["|" + "---|" * (len(QUANTITIES) + 1)]
    for name, result in results.items():
        if "coverage" in result:
            cells = [f"{100 * result['coverage_of_one_detector'][q]:.0f} %" for q in QUANTITIES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, result in results.items():
        if "any_false_claim" in result:
            lines += [
                "",
                f"{name} ({result['trials']} trials): some step is called better in "
                f"{100 * result['any_false_claim_without_correction']:.0f} % without Holm's "
                f"correction, in {100 * result['any_false_claim']:.0f} % with it.",
            ]
        if "promised_from" in result:
            lines += [
                "",
                f"{name}: from {result['promised_from']} images, {result['images']} images were "
                f"promised to tell {100 * result['true_difference']['ap']:.1f} AP in 80 % of "
                f"cases; there it was told in {100 * result['claims']:.0f} %.",
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the trials to make")
    parser.add_argument("--out", type=Path, required=True, help="files, without ending")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, run in conditions(arguments.share).items():
        start = time.perf_counter()
        results[name] = run()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
        arguments.out.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
