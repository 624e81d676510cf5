"""Trains one run of a comparison in this process, and measures what the detector costs."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from detrlab.benchmark import cost
from detrlab.compare.results import METRICS, Cost, Epoch, RunResult
from detrlab.compare.runs import Run, Say
from detrlab.config import TrainConfig
from detrlab.errors import UserError
from detrlab.training import loop
from detrlab.training.folder import RunConfig, RunFolder

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.training.engine import StepReport


def train_run(
    run: Run,
    data: DataSet,
    report: Say,
    device: str | None = None,
    resume: bool | None = None,
) -> RunResult:
    """Train a run in this process, or resume it, and leave its result in its folder.

    Args:
        run: what to train.
        data: what ``run.data`` names.
        report: takes lines of text about the progress.
        device: where to compute; None takes a GPU if there is one.
        resume: whether to resume; None looks whether there is something to resume. Several
            processes that train together must decide alike, so it is given to them.

    Raises:
        InUseError: another process is training it.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: it was asked to stop; what was trained is saved.
    """
    from detrlab.explain.curves import CurveRecorder

    main = int(os.environ.get("RANK", "0")) == 0  # of the processes that train this run together
    folder = RunFolder(run.folder)
    config = RunConfig(
        model=run.model, train=_within_budget(run, data, report, device), data=run.data
    )
    criterion = run.model.criterion(config.train)
    curves = CurveRecorder(run.folder, data.val, criterion) if main else None
    options = loop.Options(
        resume=folder.is_run if resume is None else resume,
        device=device,
        say=report,
        on_epoch=curves.on_epoch if curves else None,
        on_batch=curves.on_batch if curves else None,
    )
    outcome = loop.train(config, run.folder, data, options)
    if not outcome.finished:
        raise KeyboardInterrupt
    recorded = {}
    if folder.environment.is_file():
        recorded = json.loads(folder.environment.read_text(encoding="utf-8"))
    result = RunResult(
        entrant=run.entrant,
        seed=run.seed,
        key=run.key,
        metrics=dict(outcome.metrics),
        predictions=f"runs/{run.folder.name}/{folder.predictions.name}",
        folder=f"runs/{run.folder.name}",
        epochs=tuple(_epoch(row) for row in outcome.epochs),
        cost=_cost(run, outcome, data, device),
        environment=recorded | fingerprints(run, data),
    )
    if main:
        result.save(run.folder)
    return result


def _within_budget(run: Run, data: DataSet, report: Say, device: str | None) -> TrainConfig:
    """How the run is trained with the epochs that fit into its budget."""
    from detrlab.data import num_batches

    if run.budget is None:
        return run.train
    folder = RunFolder(run.folder)
    if folder.is_run:  # a resumed run keeps its number of epochs
        return run.train.over(RunConfig.load(folder.config).train.epochs)
    steps = num_batches(data.train, run.data, batch=run.train.batch, train=True)
    seconds = 0.0
    if run.budget.unit == "minutes":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"a budget of {run.budget} needs a measurement by one process, not by several: "
                "give epochs or images"
            )
        report("measuring a few training steps, to know how many epochs fit into the budget")
        seconds = steps * _seconds_per_step(run, data, device)
    epochs = run.budget.epochs(steps * min(run.train.batch, len(data.train)), seconds)
    report(f"budget of {run.budget}: {epochs} epoch{'s' * (epochs != 1)}")
    return run.train.over(epochs)


class _Measured(Exception):  # noqa: N818 - not an error
    """Ends a training that only measures the time of a step."""


def _seconds_per_step(run: Run, data: DataSet, device: str | None) -> float:
    """Median time of a training step, over at most 12 steps or a minute.

    Real steps, because data loading, precision and micro-batches all count.
    """
    times = [time.perf_counter()]

    def tick(_: StepReport) -> None:
        times.append(time.perf_counter())
        if len(times) > 12 or (len(times) > 4 and times[-1] - times[0] > 60):
            raise _Measured

    config = RunConfig(model=run.model, train=run.train, data=run.data)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Measured):
        loop.train(config, folder, data, loop.Options(device=device, on_step=tick))
    steps = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(steps[1:] or steps)  # the first one compiles


def _epoch(row: dict[str, Any]) -> Epoch:
    """One row of the training's table; what is neither metric nor bookkeeping is a loss."""
    others = {*METRICS, "epoch", "step", "seconds", "skipped", "learning_rate", "per_class"}
    return Epoch(
        epoch=int(row["epoch"]),
        minutes=float(row["seconds"]) / 60,
        losses={
            name: float(value)
            for name, value in row.items()
            if name not in others and isinstance(value, (int, float)) and math.isfinite(value)
        },
        metrics={name: row[name] for name in METRICS if name in row},
    )


def _cost(run: Run, outcome: loop.Outcome, data: DataSet, device: str | None) -> Cost:
    from detrlab.presets import build_network
    from detrlab.training.distributed import pick_device

    network = build_network(run.model)
    parameters, trainable = cost.count_parameters(network)
    size = cost.typical_size(data.val, run.data)
    return Cost(
        parameters=parameters,
        trainable=trainable,
        gflops=cost.gflops(network, size),
        input_size=size,
        minutes=outcome.epochs[-1]["seconds"] / 60 if outcome.epochs else None,
        peak_memory=outcome.peak_memory,
        latency=cost.latency(network.to(pick_device(device)), size),
        machine=cost.machine(),
    )


def fingerprints(run: Run, data: DataSet) -> dict[str, str]:
    """What all detectors of a comparison share, to be compared on the page.

    Returns:
        hashes of the backbone's initial weights and of the order of images in three epochs.
    """
    from detrlab.checkpoints.weights import first_network
    from detrlab.data.batching import train_order

    start = first_network(
        run.model,
        run.train.weights,
        data.train.classes,
        class_rows=run.train.class_rows,
        reinitialise=run.train.reinitialise,
        seed=run.seed,
    )
    backbone, order = hashlib.sha256(), hashlib.sha256()
    for name, tensor in start.network.backbone.state_dict().items():
        backbone.update(name.encode())
        backbone.update(tensor.contiguous().numpy().tobytes())
    for epoch in range(3):
        for part in train_order(data.train, batch=run.train.batch, seed=run.seed, epoch=epoch):
            order.update(b"|" + part.tobytes())
    return {"initial_backbone": backbone.hexdigest(), "order": order.hexdigest()}
