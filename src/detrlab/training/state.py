"""Save and restore the state of a run: resuming gives the same result as never stopping.

A state is one file. Its name holds its step and the beginning of its SHA-256, so that a damaged
file is detected without trusting its contents. Files are written atomically and read back before
older ones are deleted; the last two are kept.

Random generators have no state to save: every draw is keyed by (seed, epoch, image) or
(seed, step).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from detrlab import files
from detrlab.checkpoints.native import serialized
from detrlab.config import first_mistake
from detrlab.errors import UserError
from detrlab.training.engine import Engine

FORMAT = 2
KEPT = 2
_KEY = "detrlab_training_state"
_NAME = re.compile(r"step-(\d+)-epoch-(\d+)-([0-9a-f]{16})\.safetensors")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken, skipped ones included.
        epochs: one row for each finished epoch.
        sums: of the measures over the steps of the current epoch.
        counted: steps in ``sums``.
        seconds: spent training, without evaluation and saving.
        skipped: steps of the whole run whose gradient was not finite.
        skipped_in_a_row: consecutive skipped steps up to now.
    """

    step: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


def save(folder: Path, engine: Engine, progress: Progress, about: Mapping[str, Any]) -> Path:
    """Write the state of a run and delete all but the last two.

    Args:
        folder: holds only states.
        engine: with the network, average, optimiser and loss scale to save.
        progress: of the run.
        about: plain values that must be the same when the run resumes.

    Raises:
        UserError: the file cannot be written, or reads back differently; older states are kept.
    """
    tensors = {f"network.{name}": value for name, value in engine.network.state_dict().items()}
    tensors |= _optimizer_tensors(engine)
    values = {
        "format": FORMAT,
        "about": dict(about),
        "progress": asdict(progress),
        "scaler": engine.scaler.state_dict(),
    }
    if engine.average is not None:
        tensors |= {f"average.{name}": each for name, each in engine.average.values.items()}
        values["average_updates"] = engine.average.updates
    plain = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    # One metadata entry only: safetensors does not fix the order of several.
    data = serialized(plain, {_KEY: json.dumps(values)})
    place = f"step-{progress.step:08d}-epoch-{len(progress.epochs):04d}"
    path = folder / f"{place}-{files.digest(data)[:16]}.safetensors"
    files.write_bytes(path, data)
    if not is_whole(path):
        path.unlink(missing_ok=True)
        raise UserError(f"{path} reads back differently from what was written: check the disk")
    for old in _states(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Saved:
    """A state that was read.

    Attributes:
        path: of its file.
        tensors: by name, on the CPU.
        progress: of the run.
        about: must be the same when the run resumes.
        scaler: state of the loss scale.
        average_updates: of the weight average, if there is one.
        damaged: newer files that were skipped.
    """

    path: Path
    tensors: dict[str, Tensor]
    progress: Progress
    about: dict[str, Any]
    scaler: dict[str, Any]
    average_updates: int
    damaged: tuple[Path, ...]


def load_latest(folder: Path) -> Saved | None:
    """The newest undamaged state; None if none was ever written.

    Raises:
        UserError: all states are damaged, or the newest is from another version of detrlab.
    """
    damaged: list[Path] = []
    for path in reversed(_states(folder)):
        if is_whole(path):
            return _read(path, tuple(damaged))
        damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every saved state in {folder} is damaged ({names}): the run cannot be resumed. Its "
            "weights/last.safetensors can still start a new run with --weights"
        )
    return None


def set_aside(saved: Saved) -> None:
    """Rename the damaged states, so that they are never tried again."""
    for path in saved.damaged:
        path.rename(path.with_suffix(".damaged"))


def is_whole(path: Path) -> bool:
    """Whether a state is undamaged: its name holds the beginning of its checksum."""
    found = _NAME.fullmatch(path.name)
    return found is not None and files.sha256(path).startswith(found[3])


def restore(saved: Saved, engine: Engine) -> None:
    """Load a saved state into an engine, bit for bit.

    Raises:
        UserError: the state is of another network or optimiser.
    """
    network = _below("network.", saved.tensors)
    wanted = engine.network.state_dict()
    if {name: each.shape for name, each in network.items()} != {
        name: each.shape for name, each in wanted.items()
    }:
        raise UserError(f"{saved.path} holds the state of another network")
    engine.network.load_state_dict(network)
    _restore_optimizer(saved, engine)
    engine.scaler.load_state_dict(saved.scaler)
    if engine.average is not None:
        engine.average.updates = saved.average_updates
        average = _below("average.", saved.tensors)
        for name, value in engine.average.values.items():
            value.copy_(average[name])


def _read(path: Path, damaged: tuple[Path, ...]) -> Saved:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()[_KEY])
            if values["format"] != FORMAT:
                raise UserError(
                    f"{path} was written by another version of detrlab: resume the run with that "
                    "version, or start a new run from its weights/last.safetensors with --weights"
                )
            return Saved(
                path,
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                TypeAdapter(Progress).validate_python(values["progress"]),
                dict(values["about"]),
                dict(values["scaler"]),
                int(values.get("average_updates", 0)),
                damaged,
            )
    except UserError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        # Its checksum fits: it was made so, not damaged.
        reason = first_mistake(error) if isinstance(error, ValidationError) else error
        raise UserError(
            f"{path} is no state of a run ({reason}): start a new run from a checkpoint"
        ) from None


def _states(folder: Path) -> list[Path]:
    """The state files, oldest first: by step and epoch in the name, then by age."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.name.rsplit("-", 1)[0], path.stat().st_mtime_ns))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
    }


def _names(network: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in network.named_parameters()}


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    """The optimiser's moments, by parameter name."""
    names = _names(engine.network)
    return {
        f"optimizer.{kind}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, state in engine.optimizer.state.items()
        for kind, value in state.items()
    }


def _restore_optimizer(saved: Saved, engine: Engine) -> None:
    names = _names(engine.network)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in _below("optimizer.", saved.tensors).items():
        kind, name = key.split(".", 1)
        # A copy, because the tensors lie in the mapped file: the optimiser would keep the mapping,
        # and with it the disk space, after the file is deleted.
        moments.setdefault(name, {})[kind] = value.clone()
    described = engine.optimizer.state_dict()
    parameters = [each for group in engine.optimizer.param_groups for each in group["params"]]
    if unknown := set(moments) - {names[id(each)] for each in parameters}:
        raise UserError(f"{saved.path} holds the state of another optimiser ({min(unknown)})")
    described["state"] = {
        index: moments[names[id(each)]]
        for index, each in enumerate(parameters)
        if names[id(each)] in moments
    }
    engine.optimizer.load_state_dict(described)
