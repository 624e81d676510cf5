"""Set up a run: its settings, its folder, its network and its engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab import files
from detrlab.checkpoints.freeze import freeze
from detrlab.checkpoints.weights import adopt_preprocessing, first_network, suited_to
from detrlab.config import ModelConfig, Recipe
from detrlab.download import in_lines
from detrlab.errors import UserError
from detrlab.models.prepare import prepare
from detrlab.presets import build_network, model_config
from detrlab.training import precision, preflight, state
from detrlab.training.distributed import Processes
from detrlab.training.engine import Engine, StepReport
from detrlab.training.folder import RunConfig, RunFolder, locked
from detrlab.training.gradient_checkpointing import checkpoint_layers
from detrlab.training.optim import Schedule, WeightAverage, build_optimizer, parameter_groups

if TYPE_CHECKING:
    from detrlab.data import Batch, DataSet
    from detrlab.models.network import Network
    from detrlab.structures import ModelOutput

Say = Callable[[str], None]


def silent(line: str) -> None:
    """A log callback that does nothing."""


@dataclass(frozen=True)
class Options:
    """Options of a run that do not change its result.

    Attributes:
        resume: continue the run in the folder; a finished one is only read.
        device: to compute on; None takes a GPU if there is one.
        workers: data-loading processes; None takes those of the data settings.
        save_every: steps between saved states; None saves after each epoch only.
        preflight: run the pre-flight checks before the first epoch.
        trackers: experiment trackers that receive the metrics; see ``trackers.open_tracker``.
        say: log callback; receives one line at a time.
        on_step: step callback; receives the report of each step.
        on_epoch: epoch callback; receives the row of each epoch.
        on_batch: evaluation callback; receives each evaluated batch with the network's output.
        repeats: seconds within which further signals count as the first; see ``stop_requests``.
    """

    resume: bool = False
    device: str | None = None
    workers: int | None = None
    save_every: int | None = None
    preflight: bool = False
    trackers: tuple[str, ...] = ()
    say: Say = silent
    on_step: Callable[[StepReport], None] | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    on_batch: Callable[[Batch, ModelOutput], None] | None = None
    repeats: float = 0.0

    def __post_init__(self) -> None:
        if self.save_every is not None and self.save_every < 1:
            raise UserError(f"save_every {self.save_every}: a number of steps from 1 is needed")


def plan(preset: str, recipe: Recipe, data: DataSet) -> RunConfig:
    """The settings of a run: a detector, a recipe, and the classes of a data set.

    Raises:
        UserError: unknown preset, or invalid settings.
    """
    train = recipe.train_for(preset)
    model = model_config(preset, len(data.train.classes), shared=recipe.model)
    return RunConfig(model=suited_to(model, train.weights), train=train, data=recipe.data)


# --- the folder ---------------------------------------------------------------------------


def claim(run: RunFolder, config: RunConfig, resume: bool, stack: ExitStack) -> RunConfig:
    """Lock the folder until ``stack`` closes, check that the run may start, write its settings.

    Returns:
        The settings of the run; when it resumes, those it was started with, except for the ones
        that may change.

    Raises:
        UserError: the folder is in use or holds another run; there is no run to resume; the
            settings differ from the saved ones.
    """
    if resume and not run.config.is_file():
        raise UserError(f"there is no run in {run.path} to resume: start one without --resume")
    stack.enter_context(locked(run.path))
    for folder in (run.path, run.last.parent, run.states):
        if folder.is_dir():
            files.remove_leftovers(folder)
    if resume:
        saved = RunConfig.load(run.config)
        config = _resumed_settings(saved, config, run.path)
        metrics = run.read_metrics()
        if saved.train.epochs != config.train.epochs and metrics and metrics["finished"]:
            files.write_json(run.metrics, {**metrics, "finished": False})
    elif run.is_run:
        raise UserError(
            f"{run.path} already holds a run of {RunConfig.load(run.config).model.preset}: "
            "continue it with --resume, or choose another --output"
        )
    run.save_config(config)
    return config


_MAY_CHANGE = {"data.data", "data.workers", "train.micro_batch", "train.epochs", "train.patience"}


def _counts_from_the_end(config: RunConfig) -> bool:
    """Whether what an epoch does hangs on the number of all epochs."""
    train = config.train
    return (
        train.schedule in ("cosine", "flat_cosine")
        or train.plain_epochs > 0
        or config.data.augmentation == "dense"  # its mosaic stops after a part of them
    )


def _resumed_settings(saved: RunConfig, asked: RunConfig, path: Path) -> RunConfig:
    """The saved settings, with the new values of those that may change.

    Raises:
        UserError: another setting differs.
    """
    accepted = set(_MAY_CHANGE)
    if _counts_from_the_end(saved):
        accepted -= {"train.epochs"}
    if saved.train.weights not in ("imagenet", "none"):
        accepted |= {"data.mean", "data.std"}  # taken from the checkpoint
    values = saved.to_dict()
    differences = []
    for part, settings in asked.to_dict().items():
        for name, new in settings.items():
            key, old = f"{part}.{name}", values[part][name]
            if key not in accepted and new != old and (key, new) != ("train.precision", "auto"):
                differences.append(f"{key} is {old!r} there and {new!r} here")
            if key in _MAY_CHANGE and new != "auto":  # "auto" keeps the size that was chosen
                values[part][name] = new
    if differences:
        raise UserError(
            f"the run in {path} was started with other settings: {'; '.join(differences)}; "
            "start a new run for them"
        )
    return RunConfig.parse(values)


# --- network and engine -------------------------------------------------------------------


def build(
    config: RunConfig,
    folder: RunFolder,
    data: DataSet,
    steps_per_epoch: int,
    processes: Processes,
    resume: bool,
    say: Say,
) -> tuple[Engine, RunConfig]:
    """The engine of a run, and its settings, completed by the checkpoint and the memory.

    Raises:
        UserError: the data does not fit the model; the weights cannot be loaded; there is too
            little memory.
    """
    _check_data(config.model, data)
    given = config
    has_state = processes.from_main(lambda: any(folder.states.glob("step-*")))
    if resume and has_state:  # every weight is restored from the state
        network = build_network(config.model)
    else:
        config = _settle_precision(config, processes, say)
        network, config = _initial_network(config, data, say)
    for line in freeze(network, config.train.freeze):
        say(line)
    network = prepare(network).to(processes.device).train()
    if config.train.gradient_checkpointing:
        checkpoint_layers(network)
    if config.train.micro_batch == "auto":
        size = _choose_micro_batch(network, config, data, processes, say)
        config = config.model_copy(update={"train": config.train.change(micro_batch=size)})
    if processes.is_main and config != given:
        folder.save_config(config)
    return build_engine(network, config, steps_per_epoch, processes), config


def _check_data(model: ModelConfig, data: DataSet) -> None:
    for table in (data.train, data.val):
        if len(table) == 0:
            raise UserError(f"the split {table.name!r} of {data.name} has no images")
    if model.num_classes != len(data.train.classes):
        raise UserError(
            f"the model has {model.num_classes} classes, the data {len(data.train.classes)}: "
            f"{', '.join(data.train.classes)}"
        )


def _settle_precision(config: RunConfig, processes: Processes, say: Say) -> RunConfig:
    asked = config.train.precision
    found = processes.from_main(lambda: precision.settled(asked, processes.device))
    if found == asked:
        return config
    say(f"precision: {found}")
    return config.model_copy(update={"train": config.train.change(precision=found)})


def _initial_network(config: RunConfig, data: DataSet, say: Say) -> tuple[Network, RunConfig]:
    """The network with its initial weights, and the settings with their normalisation."""
    train = config.train
    start = first_network(
        config.model,
        train.weights,
        data.train.classes,
        class_rows=train.class_rows,
        reinitialise=train.reinitialise,
        seed=train.seed,
        progress=in_lines(say, f"weights {train.weights}"),
    )
    for line in start.report.lines():
        say(line)
    normalised = adopt_preprocessing(config.data, start.preprocessing)
    return start.network, config.model_copy(update={"data": normalised})


def _choose_micro_batch(
    network: Network, config: RunConfig, data: DataSet, processes: Processes, say: Say
) -> int:
    """The largest micro-batch that fits in the memory of every process."""
    train = config.train
    share = max(1, min(train.batch, len(data.train)) // processes.world)
    criterion = config.model.criterion(train)
    worst = preflight.WorstCase.of(data.train, config.data)
    own = preflight.largest_micro_batch(network, criterion, worst, train.precision, share)
    size = min(processes.gather(own))
    say(f"micro-batches of {size} of the {share} images per process fit in memory")
    return size


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
        average=None
        if settings.ema_decay is None
        else WeightAverage(network, settings.ema_decay, settings.ema_warmup),
    )


# --- resuming -----------------------------------------------------------------------------


def restore(
    engine: Engine, folder: RunFolder, epochs: int, about: dict[str, Any], say: Say
) -> state.Progress | None:
    """Load the newest saved state into the engine; None if there is none.

    Args:
        engine: of the same settings as the saved one.
        folder: of the run.
        epochs: of the whole run.
        about: what the state must have been saved with.
        say: receives log lines.

    Raises:
        UserError: the run has more epochs already; the data has changed; all states are damaged.
    """
    saved = engine.processes.from_main(lambda: state.load_latest(folder.states))
    if saved is None:
        say("no state was saved yet: starting from the beginning")
        return None
    for path in saved.damaged:
        say(f"{path.name} is damaged: continuing from the state before it")
    if engine.processes.is_main:
        state.set_aside(saved)
    finished = len(saved.progress.epochs)
    if finished > epochs:
        raise UserError(
            f"the run in {folder.path} has trained {finished} epochs already: it cannot end "
            f"after {epochs}"
        )
    if saved.about != about:
        raise UserError(
            f"the data has changed since the run in {folder.path} was started: a run can only be "
            "resumed with the same images and annotations; start a new one"
        )
    state.restore(saved, engine)
    say(f"continuing after step {saved.progress.step}, epoch {finished} of {epochs}")
    return saved.progress
