"""Distributed training: this process's rank and device, and the collective operations.

``torchrun`` or ``accelerate launch`` start several processes, on one node or many. Without them
there is one process, and everything here returns at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import nn

from detrlab.errors import UserError

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=15)
"""Of a collective operation; the first evaluation of a large data set takes minutes."""

# What gloo, NCCL and the rendezvous store report when a peer does not answer.
_CONNECTION_ERROR = re.compile("gloo|nccl|connection|socket|timed out|timeout|store", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Every method raises ``UserError`` when another process has ended or cannot be reached.

    Attributes:
        device: of this process.
        rank: of this process, 0..world-1.
        world: number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and log lines."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same in each."""
        return [sum(column) for column in zip(*self.rows(values), strict=True)]

    def rows(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all processes, by rank, the same in each; faster than ``gather``."""
        if self.world == 1:
            return [[float(value) for value in values]]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        found = own.new_empty(self.world, len(own))
        with _connection_errors():
            distributed.all_gather([*found], own)
        return found.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, the same list in each."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _connection_errors():
            distributed.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` in the main process only, and return its result in every process.

        A ``UserError`` that it raises is raised in every process. So only the main process
        needs access to the run's folder.
        """
        if self.world == 1:
            return make()
        result: list[Any] = [None, None]
        problem = None
        if self.is_main:
            try:
                result[0] = make()
            except UserError as error:
                problem = error
                result[1] = str(error)
        with _connection_errors():
            distributed.broadcast_object_list(result, src=0, device=self.device)
        if result[1] is not None:
            raise problem or UserError(result[1])
        return result[0]

    def exchange(self) -> AbstractContextManager[None]:
        """A block in which gradients or detections are exchanged."""
        return nullcontext() if self.world == 1 else _connection_errors()

    def share(self, network: nn.Module, *, unused: bool) -> nn.Module:
        """The network with gradients averaged over the processes.

        Args:
            network: on ``device`` already.
            unused: whether some parameters get no gradient.
        """
        if self.world == 1:
            return network
        with _connection_errors():
            return nn.parallel.DistributedDataParallel(network, find_unused_parameters=unused)


def join(device: str | torch.device | None = None) -> Processes:
    """Join the process group that the environment names, if it names one.

    Args:
        device: to compute on; None takes this process's GPU if there is one.

    Raises:
        UserError: there is no such device; the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(pick_device(device))
    # accelerate knows every launcher, device and backend. Its data loaders and schedulers are not
    # used: they would break exact resume.
    from accelerate import PartialState

    on_cpu = device is not None and torch.device(device).type == "cpu"
    with _connection_errors():
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    atexit.register(_leave)
    return Processes(state.device, state.process_index, state.num_processes)


def starts_again() -> bool:
    """Whether ``torchrun --max-restarts`` starts all processes again when one has died."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on; None or ``auto`` takes a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if device is None or str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device} cannot be used here ({reason}): try cpu") from None
    return chosen


def _leave() -> None:
    """Leave a gloo process group before the interpreter shuts down.

    Otherwise a gloo thread sometimes frees its last tensor during shutdown, and the process ends
    with ``terminate called without an active exception``. The group of NCCL is not left: that
    blocks if another process has ended already.
    """
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        gc.collect()  # a DistributedDataParallel module would keep the group alive
        distributed.destroy_process_group()


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Turn the backends' connection errors into one ``UserError``."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not _CONNECTION_ERROR.search(
            str(error)
        ):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"another process of this training has ended or cannot be reached ({reason}): see its "
            "own error message. --resume continues from the last saved state, with any number of "
            "processes"
        ) from error
