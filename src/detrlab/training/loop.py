"""The training loop: the steps of each epoch, evaluation, and saved states."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from detrlab import files
from detrlab.data import Loader, num_batches
from detrlab.data.sources import fingerprint
from detrlab.errors import UserError
from detrlab.evaluation.coco import Evaluator, as_ground_truth, evaluate, gather
from detrlab.ops import deformable
from detrlab.training import monitor, preflight, results, setup, state
from detrlab.training.distributed import Processes, join, starts_again
from detrlab.training.engine import StepReport
from detrlab.training.folder import RunConfig, RunFolder, environment
from detrlab.training.optim import parameter_groups
from detrlab.training.results import Outcome, Row
from detrlab.training.setup import Options, build_engine, plan, silent
from detrlab.training.signals import REPEATS, StopRequest, stop_requests
from detrlab.training.trackers import numbers, open_tracker

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from detrlab.data import DataSet
    from detrlab.data.table import Table

__all__ = ["Options", "Outcome", "build_engine", "plan", "train"]

SHARED_STORE = (
    "torchrun cannot start the processes again (pytorch/pytorch issue 135712) unless "
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set in its environment"
)
MAX_SKIPPED_IN_A_ROW = 5
MAX_SKIPPED = 25

Item = TypeVar("Item")


def train(
    config: RunConfig, folder: str | Path, data: DataSet, options: Options | None = None
) -> Outcome:
    """Train a detector in a folder of its own, or resume the run in it.

    Processes that ``torchrun`` started train together; each makes the same call. With
    ``--max-restarts`` the same call also resumes the run.

    Args:
        config: everything that decides the result.
        folder: of the run; must not hold another run unless it is resumed.
        data: the data set that ``config.data`` names.
        options: what does not change the result.

    Raises:
        UserError: the folder holds another run or is in use; the data does not fit the model; a
            file cannot be read or written; the training has diverged. The progress until then
            is saved.
    """
    options = options or Options()
    run = RunFolder(folder)
    processes = join(options.device)
    if starts_again():
        options = replace(options, resume=processes.from_main(lambda: run.is_run))
        if processes.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            options.say(f"note: {SHARED_STORE}")
    with ExitStack() as stack:
        config, metrics = processes.from_main(
            lambda: (setup.claim(run, config, options.resume, stack), run.read_metrics())
        )
        if options.resume and metrics is not None and metrics["finished"]:
            if processes.is_main:
                options.say(f"the run in {run.path} has finished: nothing to train")
            return Outcome(run, True, tuple(metrics["epochs"]), metrics["peak_memory"])
        stack.enter_context(_forked_rng(processes.device))
        repeats = max(options.repeats, REPEATS if processes.world > 1 else 0.0)
        request = stack.enter_context(stop_requests(repeats))
        return _Run(config, run, data, options, processes, request).go()


def _forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore the caller's random generators at the end: the CPU's and this process's GPU's."""
    used = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=used)


class DivergedError(UserError):
    """The training has diverged: its weights are not saved."""


class _Stopped(Exception):  # noqa: N818
    """A stop was requested, and the run is in a state that can be saved."""


class _Run:
    """One call of ``train``."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: DataSet,
        options: Options,
        processes: Processes,
        request: StopRequest,
    ) -> None:
        self.folder = folder
        self.data = data
        self.options = options
        self.processes = processes
        self.request = request
        self.say = options.say if processes.is_main else silent
        self.progress = state.Progress()
        self.saved_at = (0, 0)
        self.truth = as_ground_truth(data.val)
        self.steps_per_epoch = num_batches(
            data.train, config.data, batch=config.train.batch, train=True
        )
        self.engine, self.config = setup.build(
            config, folder, data, self.steps_per_epoch, processes, options.resume, self.say
        )
        self.trackers: list[GeneralTracker] = []
        self.train_loader = self._loader(data.train, train=True)
        self.val_loader = self._loader(data.val, train=False)

    def go(self) -> Outcome:
        """Train until the last epoch or a stop request."""
        if self.options.resume:
            self._resume()
        self._begin()
        try:
            if self._is_done(self.progress.epochs):  # fewer epochs are asked for than before
                self._write(self.progress, self._evaluate())
            while not self._is_done(self.progress.epochs):
                self._train_epoch()
                self._finish_epoch()
            if len(self.progress.epochs) < self.config.train.epochs:
                self.say(
                    f"stopped early, after epoch {len(self.progress.epochs)} of "
                    f"{self.config.train.epochs}: no better AP in {self.config.train.patience} "
                    "epochs"
                )
        except _Stopped:
            self._save_stopped()
        except DivergedError:
            raise
        except Exception:
            if self.request and self.processes.world == 1:
                # A batch system signals the data loading workers too, and they end at once.
                self._save_stopped()
                return self._outcome()
            # The weights are those after the last complete step.
            with suppress(UserError):
                self._save_state()
            if self.saved_at != (0, 0):
                self.say(f"saved after step {self.saved_at[0]}: --resume continues from there")
            raise
        finally:
            for tracker in self.trackers:
                tracker.finish()
        return self._outcome()

    def _outcome(self) -> Outcome:
        rows = self.progress.epochs
        memory = results.peak_memory(self.processes.device)
        return Outcome(self.folder, self._is_done(rows), tuple(rows), memory)

    def _save_stopped(self) -> None:
        self._save_state()
        self.say(
            f"stopped by {self.request.name or 'another process'}: saved after step "
            f"{self.progress.step}; --resume continues"
        )

    # --- before the first epoch -------------------------------------------------------

    def _resume(self) -> None:
        restored = setup.restore(
            self.engine, self.folder, self.config.train.epochs, self._about(), self.say
        )
        if restored is not None:
            self.progress = restored
            self.saved_at = self._place()

    def _begin(self) -> None:
        device = self.processes.device
        if self.processes.is_main:
            backend = deformable.backend(device)
            described = environment(str(device), self.processes.world, backend)
            files.write_json(self.folder.environment, described)
            self.trackers = [
                open_tracker(name, self.folder.path.name, self.folder.path, self.config.to_dict())
                for name in self.options.trackers
            ]
        for group in parameter_groups(self.engine.network, self.config.train):
            self.say(f"learning rate of {group}")
        if self.options.preflight and self.progress.step == 0:
            table, steps = self.data.train, self.config.train.epochs * self.steps_per_epoch
            first = next(self._loader(table, train=True, workers=0).epoch())
            for line in preflight.check(self.engine, self.config, table, first, steps):
                self.say(line)

    # --- an epoch ---------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """Take the remaining steps of the current epoch."""
        epoch, progress = len(self.progress.epochs), self.progress
        start = progress.step - epoch * self.steps_per_epoch
        if start >= self.steps_per_epoch:
            return  # the run was stopped during the evaluation
        train = self.config.train
        if epoch >= train.epochs - train.plain_epochs:  # never, without such epochs
            self.engine.criterion = self.config.model.criterion(train).at_the_end()
        self.engine.network.train()
        shares = self.train_loader.epoch(epoch, start)
        clock = time.perf_counter()
        for share in shares:
            report = self.engine.step(share, progress.step, stop=bool(self.request))
            progress.seconds += time.perf_counter() - clock
            self._note(report)
            # Several processes agree on a stop in the next step.
            if report.stop or (self.request and self.processes.world == 1):
                raise _Stopped
            if self.options.save_every and progress.step % self.options.save_every == 0:
                self._save_state()
            clock = time.perf_counter()
        assert progress.step == (epoch + 1) * self.steps_per_epoch, "an epoch has all its steps"

    def _loader(self, table: Table, *, train: bool, workers: int | None = None) -> Loader:
        """Loads this process's share of each batch."""
        config, processes = self.config, self.processes
        share = max(1, config.train.batch // processes.world)
        return Loader(
            table,
            config.data,
            batch=config.train.batch if train else self.engine.micro_batch or share,
            seed=config.train.seed,
            train=train,
            rank=processes.rank,
            world=processes.world,
            workers=self.options.workers if workers is None else workers,
            pin_memory=processes.device.type == "cuda",
            phases=config.train.phases,
        )

    def _note(self, report: StepReport) -> None:
        progress = self.progress
        progress.step = report.step + 1
        if report.applied:
            progress.skipped_in_a_row = 0
            progress.counted += 1
            for name, value in {**report.measures, "gradient_norm": report.norm}.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        else:
            self._note_skipped(report)
        if self.options.on_step is not None:
            self.options.on_step(report)

    def _note_skipped(self, report: StepReport) -> None:
        """Count and explain a step whose gradient was not finite; too many end the run."""
        scaler = self.engine.scaler
        suspected = self.processes.total([len(report.suspects)])[0] > 0
        if scaler.is_enabled() and not suspected and scaler.get_scale() >= 1:
            return  # float16: the scaler tries larger scales and skips the steps that overflow
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        reason = monitor.explain_skipped(self.engine, report, self.data.train)
        self.say(f"step {report.step} was skipped, its gradient was not finite: {reason}")
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or progress.skipped >= MAX_SKIPPED:
            raise DivergedError(
                f"the training has diverged: {progress.skipped} steps were skipped, the last was "
                f"step {report.step}: {reason}. Lower the learning rate, use warm-up or a smaller "
                "train.clip, or train in float32 or bfloat16; check the images named"
            )

    def _finish_epoch(self) -> None:
        """Evaluate and write all files. The state comes last: it completes the epoch."""
        evaluator = self._evaluate()
        rate = self.engine.schedule.rate(self.progress.step - 1)
        row = results.epoch_row(self.progress, rate, evaluator.metrics())
        after = replace(self.progress, epochs=[*self.progress.epochs, row], sums={}, counted=0)
        self._write(after, evaluator)
        self.progress = after
        self.saved_at = self._place()
        self.say(results.epoch_line(row, self.config.train.epochs))
        for tracker in self.trackers:
            tracker.log(numbers(row), step=row["step"])
        objects = preflight.objects_by_class(self.data.train)
        for warning in monitor.epoch_warnings(after.epochs, objects):
            self.say(f"note: {warning}")
        if self.options.on_epoch is not None:
            self.options.on_epoch(row)

    def _evaluate(self) -> Evaluator:
        """Evaluate the current weights on the validation split, in float32."""
        evaluator = Evaluator(self.truth)
        parts = self._until_stopped(self.val_loader.epoch())
        network, scoring = self.engine.network, self.config.model.scoring
        with results.averaged(self.engine):
            evaluate(network, scoring, parts, evaluator, on_batch=self.options.on_batch)
        with self.processes.exchange():
            gather(evaluator)
        return evaluator

    def _until_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        """Stop between two items; several processes stop in the next step instead."""
        for item in items:
            if self.request and self.processes.world == 1:
                raise _Stopped
            yield item

    def _is_done(self, rows: list[Row]) -> bool:
        """Whether these are all epochs of the run."""
        config = self.config.train
        if len(rows) >= config.epochs or config.patience is None:
            return len(rows) >= config.epochs
        return len(rows) - (results.best_epoch(rows) or 0) >= config.patience

    # --- writing ----------------------------------------------------------------------

    def _write(self, progress: state.Progress, evaluator: Evaluator) -> None:
        """Write the results and the state after an epoch."""
        self._require_finite()
        if not self.processes.is_main:
            return
        rows = progress.epochs
        results.save(
            self.folder,
            self.config,
            self.data,
            self.engine,
            rows,
            evaluator,
            finished=self._is_done(rows),
        )
        state.save(self.folder.states, self.engine, progress, self._about())

    def _save_state(self) -> None:
        """Save the state, unless this one is saved already."""
        self._require_finite()
        if self.processes.is_main and self.saved_at != self._place():
            state.save(self.folder.states, self.engine, self.progress, self._about())
            self.saved_at = self._place()

    def _require_finite(self) -> None:
        """Never replace a good state by numbers that are not finite."""
        average = self.engine.average
        kinds = {"weights": self.engine.network.state_dict()}
        if average is not None:
            kinds["averaged weights"] = average.values
        for kind, values in kinds.items():
            for name, each in values.items():
                if not torch.isfinite(each).all():
                    raise DivergedError(
                        f"the training has diverged: the {kind} {name} are not finite. Files saved "
                        "before are unchanged; lower the learning rate and start a new run"
                    )

    def _place(self) -> tuple[int, int]:
        return self.progress.step, len(self.progress.epochs)

    def _about(self) -> dict[str, Any]:
        """What must be the same when the run resumes."""
        return {"data": fingerprint(self.data), "steps_per_epoch": self.steps_per_epoch}
