"""A run: build or go on, train, evaluate, save; whatever happens, nothing is lost."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from detrlab import files
from detrlab.checkpoints import native
from detrlab.checkpoints.freeze import freeze
from detrlab.checkpoints.weights import adopt_preprocessing, first_network, suited_to
from detrlab.config import DataConfig, ModelConfig, Recipe, TrainConfig
from detrlab.data import Loader, Table, num_batches
from detrlab.data.transforms import evaluation_size
from detrlab.download import in_lines
from detrlab.errors import UserError
from detrlab.evaluation.analysis import suggest_thresholds
from detrlab.evaluation.coco import Evaluator, Metrics, as_ground_truth, evaluate, gather
from detrlab.evaluation.matching import match
from detrlab.models.prepare import prepare
from detrlab.ops import deformable
from detrlab.presets import build_network, model_config
from detrlab.training import preflight, state, watch
from detrlab.training.engine import (
    Engine,
    StepReport,
    micro_batches,
    running_statistics,
    seed_step,
    to_device,
)
from detrlab.training.folder import RunConfig, RunFolder, environment, locked
from detrlab.training.memory import recompute
from detrlab.training.optim import Schedule, WeightAverage, build_optimizer, parameter_groups
from detrlab.training.processes import Processes, join
from detrlab.training.signals import ECHO, StopRequest, listening
from detrlab.training.trackers import Tracker, numbers, open_trackers

if TYPE_CHECKING:
    from detrlab.data import Batch, DataSet
    from detrlab.models.network import Network
    from detrlab.structures import ModelOutput

MAX_SKIPPED_IN_A_ROW = 5
MAX_SKIPPED = 25
MAX_REPRODUCTIONS = 3

Item = TypeVar("Item")
Say = Callable[[str], None]
Row = dict[str, Any]


def silent(line: str) -> None:
    """Says nothing: the library's default."""


@dataclass(frozen=True)
class Options:
    """What a run may be told that does not change its result.

    Attributes:
        resume: go on with the run in the folder; a finished one is only read.
        device: where to compute; None takes a GPU if there is one.
        workers: loader processes; None takes the data settings'.
        save_every: steps between saved states; None saves after each epoch only.
        preflight: look before the first epoch for what would go wrong in hours.
        trackers: other tools that get the curves, by name; see ``trackers.NEEDS``.
        say: takes lines for people.
        on_step: takes the report of each step.
        on_epoch: takes the row of each epoch.
        on_batch: takes each evaluated batch with the network's output.
    """

    resume: bool = False
    device: str | None = None
    workers: int | None = None
    save_every: int | None = None
    preflight: bool = False
    trackers: tuple[str, ...] = ()
    say: Say = silent
    on_step: Callable[[StepReport], None] | None = None
    on_epoch: Callable[[Row], None] | None = None
    on_batch: Callable[[Batch, ModelOutput], None] | None = None

    def __post_init__(self) -> None:
        if self.save_every is not None and self.save_every < 1:
            raise UserError(f"save_every {self.save_every}: a number of steps from 1 is needed")


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
        folder: of the run.
        finished: whether it trained to its end; False after Ctrl-C or SIGTERM.
        epochs: a row for each: ``epoch`` (from 1), ``step``, ``seconds`` (of training so far,
            evaluation left out), ``learning_rate``, mean losses, the 12 COCO numbers and
            ``per_class``.
        metrics: of the latest weights, on the validation split: at the end, the result.
        best_epoch: the one with the best AP there, from 1.
        peak_memory: of this process, in GiB.
    """

    folder: RunFolder
    finished: bool
    epochs: tuple[Row, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    best_epoch: int | None = None
    peak_memory: float | None = None


def plan(preset: str, recipe: Recipe, data: DataSet) -> RunConfig:
    """The settings of one detector's run under a recipe, on data that is at hand.

    Raises:
        UserError: unknown preset, or impossible settings.
    """
    train = recipe.train_for(preset)
    model = model_config(preset, len(data.train.classes), shared=recipe.model)
    return RunConfig(model=suited_to(model, train.weights), train=train, data=recipe.data)


def train(
    config: RunConfig, folder: str | Path, data: DataSet, options: Options | None = None
) -> Outcome:
    """Train a detector in a folder of its own, or go on with the run that is there.

    The same call in each of several processes started by ``torchrun`` trains together.

    Args:
        config: everything that decides the result.
        folder: of the run; must not hold another one unless it is to be resumed.
        data: what ``config.data`` names.
        options: what does not change the result.

    Raises:
        UserError: the folder holds another run or is in use; the data does not fit; a file
            cannot be read or written; the training has diverged. Whatever was reached until
            then is saved.
    """
    options = options or Options()
    run = RunFolder(Path(folder))
    processes = join(options.device)
    with ExitStack() as stack:
        config, metrics = processes.from_main(
            lambda: (_claim(run, config, options.resume, stack), run.read_metrics())
        )
        if options.resume and metrics is not None and metrics["finished"]:
            if processes.is_main:
                options.say(f"the run in {run.path} has finished: nothing to train")
            return _read_outcome(run, metrics)
        stack.enter_context(_own_random_numbers(processes.device))
        request = stack.enter_context(listening(ECHO if processes.world > 1 else 0.0))
        return _Run(config, run, data, options, processes, request).go()


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Leave the caller's generators as they were; of several GPUs only this process's."""
    used = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=used)


def _claim(run: RunFolder, config: RunConfig, resume: bool, stack: ExitStack) -> RunConfig:
    """Lock the folder, make sure that it holds this run or none yet, and write its settings.

    Returns:
        The settings that the run trains with.
    """
    if resume and not run.config.is_file():
        raise UserError(f"there is no run in {run.path} to resume: start one without --resume")
    stack.enter_context(locked(run.path))
    for folder in (run.path, run.last.parent, run.states):
        if folder.is_dir():
            files.remove_leftovers(folder)
    if resume:
        saved = RunConfig.load(run.config)
        config = _settle(saved, config, run.path)
        if saved.train.epochs != config.train.epochs:
            _reopen(run)
    elif run.is_run:
        raise UserError(
            f"{run.path} already holds a run of {RunConfig.load(run.config).model.preset}: "
            "continue it with --resume, or choose another --output"
        )
    run.save_config(config)
    return config


_FREE = {"data.data", "data.workers", "train.micro_batch", "train.epochs", "train.patience"}


def _settle(saved: RunConfig, asked: RunConfig, path: Path) -> RunConfig:
    """The settings that a run goes on with.

    Raises:
        UserError: something was asked for that a run cannot change on its way.
    """
    free = set(_FREE)
    if saved.train.schedule == "cosine":
        free -= {"train.epochs"}
    if saved.train.weights not in ("imagenet", "none"):
        free |= {"data.mean", "data.std"}  # they came with the weights
    kept = saved.to_dict()
    differences = []
    for part, values in asked.to_dict().items():
        for name, new in values.items():
            key, old = f"{part}.{name}", kept[part][name]
            if key not in free and new != old:
                differences.append(f"{key} is {old!r} there and {new!r} here")
            if key in _FREE and new != "auto":  # what memory held stays what it was
                kept[part][name] = new
    if differences:
        raise UserError(
            f"the run in {path} was started with other settings: {'; '.join(differences)}; "
            "start a new run for them"
        )
    return RunConfig.parse(kept)


def _reopen(run: RunFolder) -> None:
    """More epochs were asked for: a finished run is not finished any more."""
    metrics = run.read_metrics()
    if metrics is not None and metrics["finished"]:
        files.write_json(run.metrics, {**metrics, "finished": False})


class DivergedError(UserError):
    """The weights have become useless: nothing of them is saved."""


class _Stopped(Exception):  # noqa: N818
    """Somebody asked to stop, and the run is in a state that can be saved."""


class _Run:
    """One call of ``train``, with everything it holds."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: DataSet,
        options: Options,
        processes: Processes,
        request: StopRequest,
    ) -> None:
        self.config = config
        self.folder = folder
        self.data = data
        self.options = options
        self.processes = processes
        self.request = request
        self.progress = state.Progress()
        self.scoring = config.model.scoring
        self.truth = as_ground_truth(data.val)
        self.saved_at = (0, 0)
        _check_data(config.model, data)
        self.steps_per_epoch = num_batches(
            data.train, config.data, batch=config.train.batch, train=True
        )
        network = self._first_network().to(processes.device).train()
        if config.train.gradient_checkpointing:
            recompute(network)
        if config.train.micro_batch == "auto":
            self._choose_micro_batch(network)
        self.engine = build_engine(network, self.config, self.steps_per_epoch, processes)
        self.trackers: list[Tracker] = []
        self.train_loader = self._train_loader(options.workers)
        self.val_loader = self._loader(
            data.val, batch=self._at_once(), train=False, workers=options.workers
        )

    def say(self, line: str) -> None:
        """Tell people; only one of several processes speaks."""
        if self.processes.is_main:
            self.options.say(line)

    def go(self) -> Outcome:
        """Train to the end, or until somebody asks to stop."""
        if self.options.resume:
            self._go_on()
        self._begin()
        try:
            if self._is_done(self.progress.epochs):  # fewer epochs are asked for than before
                self._write(self.progress, self._evaluate())
            while not self._is_done(self.progress.epochs):
                self._train_epoch()
                self._finish_epoch()
            self._tell_early_end()
        except _Stopped:
            self._save_state()
            self.say(
                f"stopped by {self.request.name or 'another process'}: saved after step "
                f"{self.progress.step}; --resume continues"
            )
        except DivergedError:
            raise
        except Exception:
            # The weights are those after the last whole step: worth keeping if the disk can.
            with suppress(UserError):
                self._save_state()
            if self.saved_at != (0, 0):
                self.say(f"saved until step {self.saved_at[0]}: --resume goes on from there")
            raise
        finally:
            for tracker in self.trackers:
                tracker.finish()
        return self._outcome()

    # --- beginning --------------------------------------------------------------------

    def _first_network(self) -> Network:
        """The network with its first weights; of a run that goes on they do not matter."""
        config, train = self.config, self.config.train
        has_state = self.processes.from_main(lambda: any(self.folder.states.glob("step-*")))
        if self.options.resume and has_state:
            network = build_network(config.model)
        else:
            start = first_network(
                config.model,
                train.weights,
                self.data.train.classes,
                class_rows=train.class_rows,
                reinitialise=train.reinitialise,
                seed=train.seed,
                progress=in_lines(self.say, f"weights {train.weights}"),
            )
            network = start.network
            for line in start.report.lines():
                self.say(line)
            self._change(data=adopt_preprocessing(config.data, start.preprocessing))
        for line in freeze(network, train.freeze):
            self.say(line)
        return prepare(network)

    def _change(self, **parts: DataConfig | TrainConfig) -> None:
        """Settle what only showed now, here and in the folder."""
        changed = self.config.model_copy(update=parts)
        if changed != self.config:
            self.config = changed
            if self.processes.is_main:
                self.folder.save_config(changed)

    def _choose_micro_batch(self, network: Network) -> None:
        """Let memory decide how many images a pass sees; all processes take the smallest."""
        train = self.config.train
        share = max(1, min(train.batch, len(self.data.train)) // self.processes.world)
        criterion = self.config.model.criterion(train)
        own = preflight.largest_micro_batch(
            network, criterion, self._worst_case(), train.precision, share
        )
        size = min(self.processes.gather(own))
        self.say(f"memory holds {size} of the {share} images of a process's share at once")
        self._change(train=train.change(micro_batch=size))

    def _worst_case(self) -> preflight.WorstCase:
        """The largest images that an epoch may bring together."""
        config, table = self.config.data, self.data.train
        shapes = {tuple(size) for size in table.sizes.tolist()}
        resized = [evaluation_size(height, width, config) for height, width in shapes]
        return preflight.WorstCase(
            height=max(height for height, _ in resized),
            width=max(width for _, width in resized),
            objects=int(np.diff(table.starts).max()),
        )

    def _begin(self) -> None:
        if self.processes.is_main:
            described = environment(
                str(self.processes.device),
                self.processes.world,
                deformable.backend(self.processes.device),
            )
            files.write_json(self.folder.environment, described)
            self.trackers = open_trackers(
                self.options.trackers,
                self.folder.path.name,
                self.folder.path,
                self.config.to_dict(),
            )
        for group in parameter_groups(self.engine.network, self.config.train):
            self.say(f"learning rate of {group}")
        if self.options.preflight and self.progress.step == 0:
            self._look_ahead()

    def _at_once(self) -> int:
        """Images that a pass sees at once in this process."""
        return self.engine.micro_batch or max(1, self.config.train.batch // self.processes.world)

    def _look_ahead(self) -> None:
        """The pre-flight: words about the settings, then a few steps on the first images."""
        train, worst, engine = self.config.train, self._worst_case(), self.engine
        at_once = min(self._at_once(), len(self.data.train))
        for line in preflight.advice(
            images=len(self.data.train),
            objects=self._objects(),
            most_objects=worst.objects,
            num_queries=engine.num_queries,
            weights=train.weights,
            batch=at_once,
            learns_norms=bool(running_statistics(engine.network)),
            epochs=train.epochs,
            drop_epoch=train.drop_epoch if train.schedule == "step" else None,
            steps=train.epochs * self.steps_per_epoch,
            warmup_steps=train.warmup_steps,
        ):
            self.say(f"note: {line}")
        if not preflight.has_room(
            engine.network, engine.criterion, worst, train.precision, at_once
        ):
            raise preflight.no_room(worst, at_once)
        if self.processes.world > 1:
            return  # the others would have to rehearse the same step at the same time
        share = next(self._train_loader(workers=0).epoch())
        rehearsal = preflight.rehearse(engine, share)
        for line in rehearsal.lines(train.epochs * self.steps_per_epoch):
            self.say(line)

    def _go_on(self) -> None:
        """Put everything where the newest whole state says."""
        saved = self.processes.from_main(lambda: state.load_latest(self.folder.states))
        if saved is None:
            self.say("no state was saved yet: starting from the beginning")
            return
        for path in saved.damaged:
            self.say(f"{path.name} is damaged: going on from the state before it")
        if self.processes.is_main:
            state.set_aside(saved)
        if len(saved.progress.epochs) > self.config.train.epochs:
            raise UserError(
                f"the run in {self.folder.path} has trained {len(saved.progress.epochs)} epochs "
                f"already: it cannot end after {self.config.train.epochs}"
            )
        if saved.about != self._about():
            raise UserError(
                f"the data has changed since the run in {self.folder.path} was started: a run "
                "goes on with the same images and annotations; start a new one for others"
            )
        state.restore(saved, self.engine)
        self.progress = saved.progress
        self.saved_at = self._place()
        self.say(
            f"going on after step {self.progress.step}, epoch {len(self.progress.epochs)} of "
            f"{self.config.train.epochs}"
        )

    def _tell_early_end(self) -> None:
        rows, train = self.progress.epochs, self.config.train
        if len(rows) < train.epochs:
            self.say(
                f"stopped early, after epoch {len(rows)} of {train.epochs}: no better AP in "
                f"{train.patience} epochs"
            )

    def _about(self) -> dict[str, Any]:
        return {"data": fingerprint(self.data), "steps_per_epoch": self.steps_per_epoch}

    # --- training ---------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """Take the steps that the epoch under way still lacks."""
        epoch, progress = len(self.progress.epochs), self.progress
        start = progress.step - epoch * self.steps_per_epoch
        if start >= self.steps_per_epoch:
            return  # the run was stopped while it evaluated
        self.engine.network.train()
        shares = self.train_loader.epoch(epoch, start)
        clock = time.perf_counter()
        for share in shares:
            report = self.engine.step(share, progress.step, stop=bool(self.request))
            progress.seconds += time.perf_counter() - clock
            self._note(report, share)
            # Several processes only agree at the next step.
            if report.stop or (self.request and self.processes.world == 1):
                raise _Stopped
            if self.options.save_every and progress.step % self.options.save_every == 0:
                self._save_state()
            clock = time.perf_counter()
        assert progress.step == (epoch + 1) * self.steps_per_epoch, "an epoch has all its steps"

    def _train_loader(self, workers: int | None) -> Loader:
        """This process's share of the images of each step."""
        train = self.config.train
        return self._loader(
            self.data.train, batch=train.batch, train=True, seed=train.seed, workers=workers
        )

    def _loader(self, table: Table, **options: Any) -> Loader:
        return Loader(
            table,
            self.config.data,
            rank=self.processes.rank,
            world=self.processes.world,
            pin_memory=self.processes.device.type == "cuda",
            **options,
        )

    def _note(self, report: StepReport, share: Batch) -> None:
        progress = self.progress
        progress.step = report.step + 1
        if report.applied:
            progress.skipped_in_a_row = 0
            progress.counted += 1
            for name, value in {**report.measures, "gradient_norm": report.norm}.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        else:
            self._note_skipped(report, share)
        if self.options.on_step is not None:
            self.options.on_step(report)

    def _note_skipped(self, report: StepReport, share: Batch) -> None:
        """A step whose gradient was not finite: tolerated a few times, then the run ends."""
        scaler = self.engine.scaler
        suspected = self.processes.total([len(report.suspects)])[0] > 0
        if scaler.is_enabled() and not suspected and scaler.get_scale() >= 1:
            return  # float16 looks for the largest scale that fits by exceeding it now and then
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        found = self._investigate(report, share) if report.suspects or not suspected else None
        what = next((each for each in self.processes.gather(found) if each), "not found again")
        self.say(f"step {report.step} was skipped: {what}")
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or progress.skipped >= MAX_SKIPPED:
            raise DivergedError(
                f"the training has diverged: {progress.skipped} steps had to be skipped, the last "
                f"at step {report.step}: {what}. Lower the learning rate, warm up, clip harder, or "
                "train in float32 or bfloat16; look at the images named"
            )

    def _investigate(self, report: StepReport, share: Batch) -> str:
        """Say where a step's numbers stopped being finite, and save what shows it again."""
        train = self.config.train
        pieces = dict(enumerate(micro_batches(share, self.engine.micro_batch)))
        for part, piece in (report.suspects or pieces).items():
            rank = self.processes.rank
            seed_step(train.seed, report.step, rank, part)
            trouble = watch.find_trouble(
                self.engine.network,
                self.engine.criterion,
                *to_device(piece, self.processes.device),
                precision=train.precision,
            )
            if trouble is None:
                continue
            names = self._file_names(piece)
            sentence = f"{trouble.what} (images {', '.join(names)})"
            folder = self.folder.trouble / f"step-{report.step:08d}-rank-{rank}"
            if len(list(self.folder.trouble.glob("step-*"))) < MAX_REPRODUCTIONS:
                about = {
                    "what": trouble.what,
                    "where": trouble.where,
                    "images": names,
                    "seed": train.seed,
                    "step": report.step,
                    "rank": rank,
                    "part": part,
                    "precision": train.precision,
                }
                watch.save_reproduction(folder, self.engine.network, piece, about)
                sentence += f"; {folder} holds what shows it again"
            return sentence
        return "its gradient was not finite, but is when computed again"

    def _file_names(self, piece: Batch) -> list[str]:
        table = self.data.train
        positions = {table.image_id(i): i for i in range(len(table))}
        return [table.file(positions[image_id]) for image_id in piece.image_ids]

    # --- after an epoch ---------------------------------------------------------------

    def _finish_epoch(self) -> None:
        """Evaluate, then write everything; the state comes last, and commits the epoch."""
        evaluator = self._evaluate()
        row = self._row(evaluator.metrics())
        ahead = replace(self.progress, epochs=[*self.progress.epochs, row], sums={}, counted=0)
        self._write(ahead, evaluator)
        self.progress = ahead
        self.saved_at = self._place()
        self.say(epoch_line(row, self.config.train.epochs))
        for tracker in self.trackers:
            tracker.log(numbers(row), step=row["step"])
        for sign in watch.signs(ahead.epochs, self._objects()):
            self.say(f"note: {sign}")
        if self.options.on_epoch is not None:
            self.options.on_epoch(row)

    def _write(self, progress: state.Progress, evaluator: Evaluator) -> None:
        """All files of the run, as they should be after the last of the epochs.

        Whatever interrupts this, the epoch is repeated to the bit and written again.
        """
        self._require_finite()
        if not self.processes.is_main:
            return
        rows, done = progress.epochs, self._is_done(progress.epochs)
        threshold = suggest_thresholds(match(self.truth, evaluator.detected())).overall.score
        with self._averaged():
            if best_epoch(rows) == len(rows):
                self._save_weights(self.folder.best, rows[-1], threshold, chosen=True)
            self._save_weights(self.folder.last, rows[-1], threshold)
        if done:
            evaluator.save_predictions(self.folder.predictions)
        self.folder.save_table(rows)
        files.write_json(self.folder.metrics, self._summary(rows, finished=done))
        state.save(self.folder.states, self.engine, progress, self._about())

    def _objects(self) -> dict[str, int]:
        """How many training objects each class has."""
        classes, labels = self.data.train.classes, self.data.train.labels
        return {name: int((labels == index).sum()) for index, name in enumerate(classes)}

    def _evaluate(self) -> Evaluator:
        """Judge the present weights on the validation split, in float32."""
        evaluator = Evaluator(self.truth)
        parts = self.val_loader.epoch()
        with self._averaged():
            evaluate(
                self.engine.network,
                self.scoring,
                self._until_asked(parts),
                evaluator,
                on_batch=self.options.on_batch,
            )
        gather(evaluator)
        return evaluator

    def _until_asked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Stop between two items; several processes can only agree after an evaluation."""
        for item in items:
            if self.request and self.processes.world == 1:
                raise _Stopped
            yield item

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights in the network, if an average is kept."""
        average, network = self.engine.average, self.engine.network
        if average is None:
            yield
            return
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(average.values)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def _row(self, metrics: Metrics) -> Row:
        progress = self.progress
        last = progress.step - 1
        return {
            "epoch": len(progress.epochs) + 1,
            "step": progress.step,
            "learning_rate": self.engine.schedule.rate(last),
            "seconds": round(progress.seconds, 3),
            "skipped": progress.skipped,
            **{name: total / progress.counted for name, total in progress.sums.items()},
            **metrics.to_dict(),
        }

    def _is_done(self, rows: list[Row]) -> bool:
        """Whether these epochs are all there will be."""
        config = self.config.train
        if len(rows) >= config.epochs or config.patience is None:
            return len(rows) >= config.epochs
        return len(rows) - (best_epoch(rows) or 0) >= config.patience

    # --- writing ----------------------------------------------------------------------

    def _place(self) -> tuple[int, int]:
        return self.progress.step, len(self.progress.epochs)

    def _save_state(self) -> None:
        """Save what ``--resume`` needs, unless it is saved already."""
        self._require_finite()
        if self.processes.is_main and self.saved_at != self._place():
            state.save(self.folder.states, self.engine, self.progress, self._about())
            self.saved_at = self._place()

    def _require_finite(self) -> None:
        """Never let a state that nothing can be done with replace a good one."""
        for name, each in self.engine.network.named_parameters():
            if not torch.isfinite(each).all():
                raise DivergedError(
                    f"the training has diverged: the weights {name} are not finite. What was "
                    f"saved before is as it was; lower the learning rate and start anew"
                )

    def _save_weights(
        self, path: Path, row: Row, threshold: float, *, chosen: bool = False
    ) -> None:
        train = self.config.train
        provenance = {
            "data": self.data.name,
            "images": len(self.data.train),
            "epoch": row["epoch"],
            "epochs": train.epochs,
            "seed": train.seed,
            "first_weights": train.weights,
            "averaged": self.engine.average is not None,
        }
        if chosen:
            provenance["chosen"] = f"best AP of its run on {self.data.val.name}"
        native.save(
            path,
            self.engine.network,
            self.config.model,
            self.data.train.classes,
            self.data.train.category_ids,
            self.config.data,
            threshold=float(threshold),
            provenance=provenance,
            extra={"metrics": metrics_of(row), "split": self.data.val.name},
        )

    def _summary(self, rows: list[Row], *, finished: bool) -> dict[str, Any]:
        best = best_epoch(rows)
        network = self.engine.network
        return {
            "finished": finished,
            "stopped_early": finished and len(rows) < self.config.train.epochs,
            "split": self.data.val.name,
            "metrics": metrics_of(rows[-1]),
            "best": None if best is None else {"epoch": best, "ap": rows[best - 1]["ap"]},
            "parameters": sum(each.numel() for each in network.parameters()),
            "trainable": sum(each.numel() for each in network.parameters() if each.requires_grad),
            "seconds": rows[-1]["seconds"],
            "peak_memory": peak_memory(self.processes.device),
            "epochs": rows,
        }

    def _outcome(self) -> Outcome:
        rows = self.progress.epochs
        return Outcome(
            folder=self.folder,
            finished=self._is_done(rows),
            epochs=tuple(rows),
            metrics=metrics_of(rows[-1]) if rows else {},
            best_epoch=best_epoch(rows),
            peak_memory=peak_memory(self.processes.device),
        )


def _read_outcome(run: RunFolder, metrics: dict[str, Any]) -> Outcome:
    return Outcome(
        folder=run,
        finished=metrics["finished"],
        epochs=tuple(metrics["epochs"]),
        metrics=metrics["metrics"],
        best_epoch=metrics["best"]["epoch"] if metrics["best"] else None,
        peak_memory=metrics["peak_memory"],
    )


def _check_data(model: ModelConfig, data: DataSet) -> None:
    for table in (data.train, data.val):
        if len(table) == 0:
            raise UserError(f"the split {table.name!r} of {data.name} has no images")
    if model.num_classes != len(data.train.classes):
        raise UserError(
            f"the model has {model.num_classes} classes, the data {len(data.train.classes)}: "
            f"{', '.join(data.train.classes)}"
        )


def build_engine(
    network: Network, config: RunConfig, steps_per_epoch: int, processes: Processes
) -> Engine:
    """Everything that a step needs, for a network that is on its device."""
    settings = config.train
    return Engine(
        network=network,
        criterion=config.model.criterion(settings),
        optimizer=build_optimizer(parameter_groups(network, settings), settings),
        schedule=Schedule(settings, steps_per_epoch),
        config=settings,
        num_queries=config.model.num_queries,
        processes=processes,
        average=None if settings.ema_decay is None else WeightAverage(network, settings.ema_decay),
    )


def best_epoch(rows: list[Row]) -> int | None:
    """The first epoch, from 1, with the highest AP; None when no AP could be measured."""
    judged = [row for row in rows if row["ap"] is not None]
    return max(judged, key=lambda row: row["ap"])["epoch"] if judged else None


def metrics_of(row: Row) -> dict[str, Any]:
    """The 12 COCO numbers and ``per_class`` of an epoch's row."""
    return {name: row[name] for name in Metrics.__dataclass_fields__}


def epoch_line(row: Row, epochs: int) -> str:
    """One line about an epoch."""
    parts = ", ".join(
        f"{name} {row[f'loss_{name}']:.3f}"
        for name in ("class", "box", "giou")
        if f"loss_{name}" in row
    )
    loss = f"loss {row['loss']:.3f} ({parts})" if "loss" in row else "no step counted"
    ap, ap50 = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("ap", "ap50"))
    return (
        f"epoch {row['epoch']}/{epochs}  {loss}  AP {ap}  AP50 {ap50}  "
        f"lr {row['learning_rate']:.3g}  {row['seconds']:.0f} s"
    )


def fingerprint(data: DataSet) -> str:
    """What a run's data must keep: images, classes and annotations of both splits."""
    digest = hashlib.sha256()
    for table in (data.train, data.val):
        digest.update(repr((table.classes, table.category_ids, table.image_ids.tolist())).encode())
        for column in (table.starts, table.boxes, table.labels):
            digest.update(column.tobytes())
    return digest.hexdigest()


def peak_memory(device: torch.device) -> float | None:
    """The most memory this process has used, in GiB: the GPU's, or its own on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
