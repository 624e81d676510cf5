"""The folder of a run: its files, and the lock that one process at a time holds."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from detrlab import files
from detrlab.config import DataConfig, Record, TrainConfig
from detrlab.errors import InUseError, UserError
from detrlab.presets import AnyPreset


class RunConfig(Record):
    """Everything that decides the result of a run."""

    model: AnyPreset
    train: TrainConfig
    data: DataConfig


class RunFolder:
    """The paths of a run's files.

    Attributes:
        path: the folder.
        config: the settings, as YAML.
        last: the latest weights: at the end of the run, its result.
        best: the weights of the epoch with the best AP on the validation split.
        states: folder of the saved states that ``--resume`` continues from.
        table: one row for each epoch, as CSV.
        metrics: the same rows and the result, as JSON.
        predictions: detections of the final weights on the validation split, as COCO JSON.
        environment: versions and machine, as JSON.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.config = path / "config.yaml"
        self.last = path / "weights" / "last.safetensors"
        self.best = path / "weights" / "best.safetensors"
        self.states = path / "state"
        self.table = path / "metrics.csv"
        self.metrics = path / "metrics.json"
        self.predictions = path / "predictions.json"
        self.environment = path / "environment.json"

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run with results or a saved state."""
        return self.config.is_file() and (self.metrics.is_file() or any(self.states.glob("*")))

    def read_metrics(self) -> dict[str, Any] | None:
        """The contents of ``metrics.json``; None if there is no such file.

        Raises:
            UserError: it is damaged.
        """
        try:
            return json.loads(files.read_bytes(self.metrics))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.metrics} cannot be read: {error}") from None

    def save_config(self, config: RunConfig) -> None:
        """Write the settings atomically."""
        files.write_text(self.config, yaml.safe_dump(config.to_dict(), sort_keys=False))

    def save_table(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write one row for each epoch; values that are None stay empty."""
        columns: dict[str, None] = {}
        for row in rows:
            columns |= {key: None for key, value in row.items() if not isinstance(value, dict)}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(self.table, text.getvalue())


@contextmanager
def locked(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """Keep every other process from writing to a run's folder.

    The operating system releases the lock when this process ends, even if it is killed.

    Args:
        folder: is created if it does not exist.
        name: of the lock; locks of different names do not exclude each other.

    Raises:
        InUseError: another process holds the lock; the message names it.
        UserError: the folder cannot be written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)  # or a full disk would raise again on closing
    except OSError as error:
        raise files.explain(error, path) from error
    with file:
        if not _try_to_lock(file):
            file.seek(0)
            owner = file.read().decode(errors="replace").strip() or "another process"
            raise InUseError(
                f"{folder} is in use by {owner}: wait for it to end, or choose another --output"
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} (since {started})\n".encode()
            )
        except OSError as error:
            raise files.explain(error, path) from error
        if hasattr(os, "register_at_fork"):
            # Workers may outlive a killed training for some seconds: they must not hold the lock.
            os.register_at_fork(after_in_child=file.close)
        yield


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether this process alone holds a folder, while the block runs; no file is written.

    As with ``locked``, the lock ends with the process. Windows has no such locks: True there.
    """
    with ExitStack() as stack:
        if sys.platform == "win32":
            yield True
            return
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        os.register_at_fork(after_in_child=stack.close)
        yield _try_to_lock(handle)


def _try_to_lock(file: IO[bytes] | int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        assert not isinstance(file, int)
        try:
            # A byte far behind the text, which other processes must be able to read.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks must not prevent training
    return True


_PACKAGES = ("detrlab", "torch", "torchvision", "timm", "numpy", "scipy", "numba", "hotcoco")


def environment(device: str, processes: int, backend: str) -> dict[str, Any]:
    """Versions and machine, to find out later why two runs differ.

    Args:
        device: of the network.
        processes: the number that trained together.
        backend: of deformable attention.
    """
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "processes": processes,
        "deformable_attention": backend,
    }


def _processor() -> str:
    """The processor's name; ``platform.processor()`` is empty on most Linux systems."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
