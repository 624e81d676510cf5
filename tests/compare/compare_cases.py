"""Results made by hand, for tests that need a comparison without training one."""

from detrlab.compare.results import METRICS, Cost, Epoch, RunResult, rows


def result(
    name, seed=0, ap=0.2, classes=("cat", "dog"), curve=(0.05, 0.1, 0.2), minutes=3.0, **metrics
):
    values = dict.fromkeys(METRICS, ap) | {"ap50": min(1, 2 * ap), "ap_small": None} | metrics
    return RunResult(
        entrant=name,
        seed=seed,
        key=f"{name}-{seed}",
        metrics={**values, "per_class": dict.fromkeys(classes, ap)},
        predictions=f"runs/{name}-{seed}/predictions.json",
        folder=f"runs/{name}-{seed}",
        epochs=tuple(
            Epoch(
                epoch=index + 1,
                minutes=minutes * (index + 1) / len(curve),
                losses={"loss": 10 / (index + 1)},
                metrics={"ap": value},
            )
            for index, value in enumerate(curve)
        ),
        cost=Cost(parameters=1_234_567, trainable=1_000_000, minutes=minutes),
    )


def table(*results):
    names = list(dict.fromkeys(entry.entrant for entry in results))
    return rows(results, names)
