"""The results of a run: one row for each epoch, and the files written after it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detrlab import files
from detrlab.checkpoints import native
from detrlab.evaluation.analysis import suggest_thresholds
from detrlab.evaluation.coco import Evaluator, Metrics
from detrlab.evaluation.matching import match
from detrlab.training.folder import RunConfig, RunFolder
from detrlab.training.state import Progress

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.training.engine import Engine

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call of ``train``.

    Attributes:
        folder: of the run.
        finished: whether all epochs were trained; False after Ctrl-C or SIGTERM.
        epochs: one row each: ``epoch`` (from 1), ``step``, ``seconds`` (of training so far,
            without evaluation), ``learning_rate``, mean losses, the 12 COCO metrics and
            ``per_class``.
        peak_memory: of this process, in GiB.
    """

    folder: RunFolder
    finished: bool
    epochs: tuple[Row, ...]
    peak_memory: float | None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the latest weights on the validation split."""
        return metrics_of(self.epochs[-1]) if self.epochs else {}

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best AP, from 1."""
        return best_epoch(self.epochs)


def epoch_row(progress: Progress, learning_rate: float, metrics: Metrics) -> Row:
    """The row of the epoch that has just been trained and evaluated."""
    return {
        "epoch": len(progress.epochs) + 1,
        "step": progress.step,
        "learning_rate": learning_rate,
        "seconds": round(progress.seconds, 3),
        "skipped": progress.skipped,
        **{name: total / progress.counted for name, total in progress.sums.items()},
        **metrics.to_dict(),
    }


def epoch_line(row: Row, epochs: int) -> str:
    """The log line of an epoch."""
    parts = ", ".join(
        f"{name} {row[f'loss_{name}']:.3f}"
        for name in ("class", "box", "giou")
        if f"loss_{name}" in row
    )
    loss = f"loss {row['loss']:.3f} ({parts})" if "loss" in row else "all steps skipped"
    ap, ap50 = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("ap", "ap50"))
    return (
        f"epoch {row['epoch']}/{epochs}  {loss}  AP {ap}  AP50 {ap50}  "
        f"lr {row['learning_rate']:.3g}  {row['seconds']:.0f} s"
    )


def metrics_of(row: Row) -> dict[str, Any]:
    """The 12 COCO metrics and ``per_class`` of an epoch's row."""
    return {name: row[name] for name in Metrics.__dataclass_fields__}


def best_epoch(rows: Sequence[Row]) -> int | None:
    """The first epoch, from 1, with the highest AP; None if no epoch has an AP."""
    judged = [row for row in rows if row["ap"] is not None]
    return max(judged, key=lambda row: row["ap"])["epoch"] if judged else None


def averaged(engine: Engine) -> AbstractContextManager[None]:
    """A block in which the network has the averaged weights, if the run keeps an average."""
    return nullcontext() if engine.average is None else engine.average.applied_to(engine.network)


def save(
    folder: RunFolder,
    config: RunConfig,
    data: DataSet,
    engine: Engine,
    rows: list[Row],
    evaluator: Evaluator,
    *,
    finished: bool,
) -> None:
    """Write weights, metrics and, at the end of the run, predictions.

    If this is interrupted, the resumed run repeats the epoch and writes the same files again.
    """
    threshold = suggest_thresholds(match(evaluator.truth, evaluator.detected())).overall.score
    best = best_epoch(rows)
    with averaged(engine):
        if best == len(rows):
            _save_weights(folder.best, config, data, engine, rows[-1], threshold, best=True)
        _save_weights(folder.last, config, data, engine, rows[-1], threshold)
    if finished:
        evaluator.save_predictions(folder.predictions)
    folder.save_table(rows)
    parameters = list(engine.network.parameters())
    summary = {
        "finished": finished,
        "stopped_early": finished and len(rows) < config.train.epochs,
        "split": data.val.name,
        "metrics": metrics_of(rows[-1]),
        "best": None if best is None else {"epoch": best, "ap": rows[best - 1]["ap"]},
        "parameters": sum(each.numel() for each in parameters),
        "trainable": sum(each.numel() for each in parameters if each.requires_grad),
        "seconds": rows[-1]["seconds"],
        "peak_memory": peak_memory(engine.processes.device),
        "epochs": rows,
    }
    files.write_json(folder.metrics, summary)


def _save_weights(
    path: Path,
    config: RunConfig,
    data: DataSet,
    engine: Engine,
    row: Row,
    threshold: float,
    *,
    best: bool = False,
) -> None:
    train = config.train
    provenance = {
        "data": data.name,
        "images": len(data.train),
        "epoch": row["epoch"],
        "epochs": train.epochs,
        "seed": train.seed,
        "first_weights": train.weights,
        "averaged": engine.average is not None,
    }
    if best:
        provenance["chosen"] = f"best AP of its run on {data.val.name}"
    native.save(
        path,
        engine.network,
        config.model,
        data.train.classes,
        data.train.category_ids,
        config.data,
        threshold=float(threshold),
        provenance=provenance,
        extra={"metrics": metrics_of(row), "split": data.val.name},
    )


def peak_memory(device: torch.device) -> float | None:
    """The peak memory of this process in GiB: of the GPU, or on a CPU its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
