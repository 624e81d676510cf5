"""Everything a run needs to go on as if it had never stopped, in one file that checks itself.

The file's name holds its step and the beginning of its SHA-256, so that a damaged one is
recognised without trusting anything inside it. Each is written whole or not at all, read back,
and only then the one before the last is deleted: there are always two to fall back on.

Nothing is needed of random generators: every draw is keyed by (seed, epoch, image) or
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
from torch import Tensor, nn

from detrlab import files
from detrlab.errors import UserError
from detrlab.training.engine import Engine

FORMAT = 1
KEPT = 2
_KEY = "detrlab_training_state"
_NAME = re.compile(r"step-(\d+)-epoch-(\d+)-([0-9a-f]{16})\.safetensors")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps taken, skipped ones included.
        epochs: one row for each finished epoch.
        sums: of the measures over the steps of the epoch under way.
        counted: steps in ``sums``.
        seconds: spent training, without evaluation and saving.
        skipped: steps whose gradient was not finite, in the whole run.
        skipped_in_a_row: the latest of them, if they followed each other.
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
        folder: holds nothing but states.
        engine: whose network, average, optimiser and loss scale are kept.
        progress: of the run.
        about: plain values that must be the same when the run goes on.

    Raises:
        UserError: the file cannot be written, or reads back differently; older ones still are.
    """
    from safetensors.torch import save as serialize

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
    # One metadata entry only: their order in the file is not fixed.
    data = serialize(plain, metadata={_KEY: json.dumps(values)})
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
    """A state read back.

    Attributes:
        path: of its file.
        tensors: by name, on the CPU.
        values: what was saved beside them.
        damaged: newer files that had to be passed over.
    """

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    damaged: tuple[Path, ...] = ()

    @property
    def progress(self) -> Progress:
        """Where the run stood."""
        return Progress(**self.values["progress"])

    @property
    def about(self) -> dict[str, Any]:
        """What must be the same when the run goes on."""
        return self.values["about"]


def load_latest(folder: Path) -> Saved | None:
    """The newest state that is whole; None when none was ever written.

    Raises:
        UserError: states were written, but all are damaged or from a newer detrlab.
    """
    damaged: list[Path] = []
    for path in reversed(_states(folder)):
        if not is_whole(path):
            damaged.append(path)
            continue
        tensors, values = _read(path)
        return Saved(path, tensors, values, tuple(damaged))
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every saved state in {folder} is damaged ({names}): the run cannot be continued; "
            "its weights/last.safetensors can still start a new one with --weights"
        )
    return None


def set_aside(saved: Saved) -> None:
    """Rename the damaged states that were passed over, so that they are never tried again."""
    for path in saved.damaged:
        path.rename(path.with_suffix(".damaged"))


def is_whole(path: Path) -> bool:
    """Whether a state holds what was written: its name tells the beginning of its checksum."""
    found = _NAME.fullmatch(path.name)
    return found is not None and files.sha256(path).startswith(found[3])


def restore(saved: Saved, engine: Engine) -> None:
    """Put an engine into a saved state, bit for bit.

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
    engine.scaler.load_state_dict(saved.values["scaler"])
    if engine.average is not None:
        engine.average.updates = saved.values["average_updates"]
        average = _below("average.", saved.tensors)
        for name, value in engine.average.values.items():
            value.copy_(average[name])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()[_KEY])
        if values["format"] > FORMAT:
            raise UserError(f"{path} was written by a newer detrlab: update detrlab")
        return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118


def _states(folder: Path) -> list[Path]:
    """The state files, oldest first."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    # By step and finished epochs, which the name begins with; then by age.
    return sorted(found, key=lambda path: (path.name.rsplit("-", 1)[0], path.stat().st_mtime_ns))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
    }


def _names(network: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in network.named_parameters()}


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    """The moments, by the names of their parameters."""
    names = _names(engine.network)
    return {
        f"optimizer.{kind}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, state in engine.optimizer.state.items()
        for kind, value in state.items()
    }


def _restore_optimizer(saved: Saved, engine: Engine) -> None:
    names = _names(engine.network)
    by_kind = _below("optimizer.", saved.tensors)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in by_kind.items():
        kind, name = key.split(".", 1)
        # What was read lies in the mapped file: unless copied, its space stays taken even after
        # the file is deleted, for as long as the optimiser keeps it.
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
