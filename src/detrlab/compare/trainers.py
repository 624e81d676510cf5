"""How one run of a comparison is trained: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab import files
from detrlab.compare.results import METRICS, Cost, Epoch, RunResult
from detrlab.compare.runs import InUseError, Report, Run
from detrlab.config import TrainConfig
from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.data import DataSet
    from detrlab.training.engine import StepReport
    from detrlab.training.loop import Outcome

PILOT_FILE = "pilot.json"
LOG_FILE = "log.txt"
ERROR_PREFIX = "error: "
USER_ERROR, STOPPED, IN_USE = 2, 130, 75
"""Exit codes of the process that trains one run; 75 is what mail programs say for "try later"."""


def train_here(
    run: Run,
    data: DataSet,
    report: Report,
    device: str | None = None,
    resume: bool | None = None,
) -> RunResult:
    """Train a run in this process, or go on with it, and leave its result in its folder.

    Args:
        run: what to train.
        data: what ``run.data`` names.
        report: takes a line for people, now and then.
        device: where to compute.
        resume: whether to go on; None looks whether there is something to go on with, which
            several processes that train together must not each do for themselves.

    Raises:
        InUseError: another process is training it.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: somebody asked to stop; what was trained is saved.
    """
    from detrlab.explain.curves import Watch
    from detrlab.training import loop
    from detrlab.training.folder import RunConfig, RunFolder

    main = int(os.environ.get("RANK", "0")) == 0  # of those that train this run together
    if main:
        _require_unused(run.folder)
    train = _paid(run, data, report, device)
    config = RunConfig(model=run.model, train=train, data=run.data)
    resume = RunFolder(run.folder).is_run if resume is None else resume
    # Beside the training, and not counted as part of it: what the page draws of every epoch.
    watch = Watch(run.folder, data.val, device=device) if main else None
    options = loop.Options(resume=resume, device=device, say=report, on_epoch=watch)
    try:
        outcome = loop.train(config, run.folder, data, options)
    except UserError:
        if main:
            _require_unused(run.folder)  # somebody may have been faster by a moment
        raise
    if not outcome.finished:
        raise KeyboardInterrupt
    result = _result(run, outcome, data, device)
    if main:
        result.save(run.folder)
    return result


def train_apart(
    run: Run, report: Report, device: str | None = None, processes: int = 1
) -> RunResult:
    """Train a run in a process of its own, which can fail, or be killed, alone.

    Its memory is its own too, so that its peak can be told. It reads the data again.

    Args:
        run: its settings are in its folder already.
        report: takes the process's lines.
        device: where to compute.
        processes: how many train it together, started by ``torchrun``.

    Raises:
        InUseError: another process is training it.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: somebody asked to stop; what was trained is saved.
    """
    from detrlab.training.folder import RunFolder

    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        *("-m", "detrlab.compare.worker", str(run.folder)),
        *(["--device", device] if device else []),
        *(["--resume"] if RunFolder(run.folder).is_run else []),
    ]
    said: list[str] = []
    log = run.folder / LOG_FILE
    _require_unused(run.folder)
    with (
        log.open("w", encoding="utf-8") as errors,
        # The process leaves when this pipe closes: it must not outlive its comparison.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip("\n"))
                report(said[-1])
        except KeyboardInterrupt:
            # The process got the same Ctrl-C: it saves and leaves. A second one ends both.
            process.wait()
            raise
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    result = run.result()
    if result is not None:  # however the process ended after that
        return result
    raise _reason(code, said, log)


def _reason(code: int, said: list[str], log: Path) -> BaseException:
    """What the end of a training process means."""
    last = said[-1] if said else ""
    if code == IN_USE:
        return InUseError(last)
    if code in (STOPPED, -2):
        return KeyboardInterrupt()
    told = [line for line in said if line.startswith(ERROR_PREFIX)]
    if told:  # whatever the exit code: a launcher between has one of its own
        return UserError(told[-1].removeprefix(ERROR_PREFIX))
    if code < 0:
        cause = ": most often the memory ran out" if code == -9 else ""
        return UserError(f"its process was killed by signal {-code}{cause} (log: {log})")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return UserError(f"{lines[-1] if lines else f'exit code {code}'} (log: {log})")


def _require_unused(folder: Path) -> None:
    from detrlab.training.folder import locked

    try:
        with locked(folder):
            pass
    except UserError as error:
        raise InUseError(str(error)) from None


def _paid(run: Run, data: DataSet, report: Report, device: str | None) -> TrainConfig:
    """How the run is trained with the epochs that its budget pays for."""
    from detrlab.data import num_batches

    steps = num_batches(data.train, run.data, batch=run.train.batch, train=True)
    images = steps * min(run.train.batch, len(data.train))
    seconds = None
    if run.budget is not None and run.budget.unit == "minutes":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"a budget of {run.budget} is measured by one process, not by several: "
                "give epochs or images"
            )
        seconds = _seconds_per_epoch(run, data, steps, report, device)
    train = run.paid_train(images, seconds)
    if run.budget is not None:
        report(f"{run.budget} pay for {train.epochs} epochs")
    return train


def _seconds_per_epoch(
    run: Run, data: DataSet, steps: int, report: Report, device: str | None
) -> float:
    """Measured once by a few real steps, and kept, so that a resumed run is the same run."""
    path = run.folder / PILOT_FILE
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["seconds_per_epoch"]
    report("measuring a few steps to know what the budget pays for")
    step = _measure_step(run, data, device)
    files.write_json(path, {"seconds_per_step": step, "seconds_per_epoch": step * steps})
    return step * steps


class _Enough(Exception):  # noqa: N818 - nothing went wrong
    """Ends a training that was only to be timed."""


def _measure_step(run: Run, data: DataSet, device: str | None) -> float:
    """Median seconds of a training step, from at most 12 steps or a minute of them."""
    from detrlab.training import loop
    from detrlab.training.folder import RunConfig

    times = [time.perf_counter()]

    def tick(_: StepReport) -> None:
        times.append(time.perf_counter())
        if len(times) > 12 or (len(times) > 4 and times[-1] - times[0] > 60):
            raise _Enough

    config = RunConfig(model=run.model, train=run.train, data=run.data)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        loop.train(config, folder, data, loop.Options(device=device, on_step=tick))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # The first step compiles and warms up.
    return statistics.median(gaps[1:] or gaps)


def _result(run: Run, outcome: Outcome, data: DataSet, device: str | None) -> RunResult:
    environment = outcome.folder.environment
    comparison = run.folder.parent.parent
    return RunResult(
        entrant=run.entrant,
        seed=run.seed,
        key=run.key,
        metrics=dict(outcome.metrics),
        predictions=outcome.folder.predictions.relative_to(comparison).as_posix(),
        folder=run.folder.relative_to(comparison).as_posix(),
        epochs=tuple(_epoch(row) for row in outcome.epochs),
        cost=_cost(run, outcome, data, device),
        environment={
            **(
                json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {}
            ),
            "initial_backbone": backbone_fingerprint(run, data),
            "order": order_fingerprint(run, data),
        },
    )


def _epoch(row: dict[str, Any]) -> Epoch:
    """One row of the loop's table; what is neither metric nor bookkeeping is a loss."""
    apart = {*METRICS, "epoch", "step", "seconds", "skipped", "learning_rate", "per_class"}
    return Epoch(
        epoch=int(row["epoch"]),
        minutes=float(row["seconds"]) / 60,
        losses={
            name: float(value)
            for name, value in row.items()
            if name not in apart and isinstance(value, (int, float)) and math.isfinite(value)
        },
        metrics={name: row[name] for name in METRICS if name in row},
    )


def _cost(run: Run, outcome: Outcome, data: DataSet, device: str | None) -> Cost:
    from detrlab.compare import cost
    from detrlab.models.build import build_network
    from detrlab.training.distributed import pick_device

    network = build_network(run.model)
    parameters, trainable = cost.count_parameters(network)
    size = cost.typical_size(data.val, run.data)
    multiply_adds = cost.gflops(network, size)
    return Cost(
        parameters=parameters,
        trainable=trainable,
        gflops=multiply_adds,
        input_size=size,
        minutes=outcome.epochs[-1]["seconds"] / 60 if outcome.epochs else None,
        peak_memory=outcome.peak_memory,
        latency=cost.latency(network.to(pick_device(device)), size),
        machine=cost.machine(),
    )


def backbone_fingerprint(run: Run, data: DataSet) -> str:
    """Of the backbone's first weights: equal for all that start alike."""
    from detrlab.checkpoints.weights import first_network

    start = first_network(
        run.model,
        run.train.weights,
        data.train.classes,
        class_rows=run.train.class_rows,
        reinitialise=run.train.reinitialise,
        seed=run.seed,
    )
    digest = hashlib.sha256()
    for name, tensor in start.network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def order_fingerprint(run: Run, data: DataSet, epochs: int = 3) -> str:
    """Of the order in which the first epochs read the images: equal where draws are shared."""
    from detrlab.data.batching import train_order

    digest = hashlib.sha256()
    for epoch in range(epochs):
        for part in train_order(data.train, batch=run.train.batch, seed=run.seed, epoch=epoch):
            digest.update(b"|" + part.tobytes())
    return digest.hexdigest()
