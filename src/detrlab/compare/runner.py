"""Trains one run of a comparison, and measures what the detector costs.

``python -m detrlab.compare.runner FOLDER`` is the process that a comparison starts for a run. Its
lines go to standard output, where the comparison reads them. A traceback goes to standard error,
which is the run's log.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.benchmark import cost
from detrlab.compare.definition import Run
from detrlab.compare.results import METRICS, Cost, Epoch, RunResult
from detrlab.compare.runs import ERROR_PREFIX, IN_USE, STOPPED, USER_ERROR, Say
from detrlab.config import TrainConfig
from detrlab.errors import UserError
from detrlab.training import loop
from detrlab.training.folder import InUseError, RunConfig, RunFolder

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.training.engine import StepReport

REPEATS = 60.0
"""Seconds to save in: a batch system, the job and its closed pipe may each ask for the stop."""


def train_run(run: Run, data: DataSet, report: Say, device: str | None = None) -> RunResult:
    """Train a run in this process, or resume it, and leave its result in its folder.

    Raises:
        InUseError: another process is training it.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: it was asked to stop; what was trained is saved.
    """
    from detrlab.explain.curves import CurveRecorder

    folder = RunFolder(run.folder)
    config = RunConfig(
        model=run.model, train=_within_budget(run, data, report, device), data=run.data
    )
    curves = CurveRecorder(run.folder, data.val, run.model.criterion(config.train))
    options = loop.Options(
        resume=folder.is_run,
        device=device,
        say=report,
        on_epoch=curves.on_epoch,
        on_batch=curves.on_batch,
        repeats=REPEATS,
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
    """Hashes of the backbone's initial weights and of the order of images in three epochs.

    All detectors of a comparison share them; the page compares them.
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
        for part in train_order(
            data.train,
            batch=run.train.batch,
            seed=run.seed,
            epoch=epoch,
            repeat_threshold=run.data.repeat_threshold,
            passes=run.data.passes,
        ):
            order.update(b"|" + part.tobytes())
    return {"initial_backbone": backbone.hexdigest(), "order": order.hexdigest()}


def main(arguments: list[str]) -> int:
    """Train the run whose settings are in the folder; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        from detrlab.data import open_data

        run = Run.read(options.folder)
        if run is None:
            raise UserError(f"{options.folder} holds no settings of a run")
        train_run(run, open_data(run.data.data), _say, options.device)
    except InUseError as error:
        _say(str(error))
        return IN_USE
    except UserError as error:
        _say(f"{ERROR_PREFIX}{error}")
        return USER_ERROR
    except KeyboardInterrupt:
        return STOPPED
    return 0


def _say(line: str) -> None:
    # The comparison may be gone already. What was trained must still be saved.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(" ".join(line.splitlines()) + "\n")
        sys.stdout.flush()


def _exit_with_parent() -> None:
    """Save and exit when the comparison that started this process has ended, in whatever way."""
    # Not through sys.stdin: a thread must not hold its lock when the interpreter exits.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
