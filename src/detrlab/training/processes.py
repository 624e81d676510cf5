"""The processes that train together, and what they say to each other.

Started by ``torchrun`` or ``accelerate launch`` there are several, on one node or many;
otherwise there is one, and everything here costs nothing.
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

PATIENCE = timedelta(minutes=15)
"""How long a process waits for the others; the first evaluation of a large set takes a while."""

# What gloo, NCCL and the rendezvous store say when a peer does not answer.
_SPEAKING = re.compile("gloo|nccl|connection|socket|timed out|timeout|store", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        device: where this process computes.
        rank: which one it is, 0..world-1.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same in each.

        Raises:
            UserError: another process is gone.
        """
        if self.world == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _telling_who_is_gone():
            distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, the same list in each.

        Raises:
            UserError: another process is gone.
        """
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _telling_who_is_gone():
            distributed.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What the main process makes, in every process; or the reason why it could not.

        So the others need no access to its disk.

        Raises:
            UserError: the main process raised it; another process is gone.
        """
        if self.world == 1:
            return make()
        parcel: list[Any] = [None, None]
        problem = None
        if self.is_main:
            try:
                parcel[0] = make()
            except UserError as error:
                problem = error
                parcel[1] = str(error)
        with _telling_who_is_gone():
            distributed.broadcast_object_list(parcel, src=0, device=self.device)
        if parcel[1] is not None:
            raise problem or UserError(parcel[1])
        return parcel[0]

    def speaking(self) -> AbstractContextManager[None]:
        """A block in which gradients are exchanged.

        Raises:
            UserError: another process is gone.
        """
        return nullcontext() if self.world == 1 else _telling_who_is_gone()

    def share(self, network: nn.Module, *, unused: bool) -> nn.Module:
        """The network with gradients averaged over the processes; itself if there is one.

        Args:
            network: on ``device`` already.
            unused: some parameters get no gradient (no auxiliary losses, with refinement).
        """
        if self.world == 1:
            return network
        with _telling_who_is_gone():
            return nn.parallel.DistributedDataParallel(network, find_unused_parameters=unused)


def join(device: str | torch.device | None = None) -> Processes:
    """Find out which process this is, meeting the others if there are any.

    Args:
        device: where to compute; None takes this process's GPU if there is one.

    Raises:
        UserError: there is no such device; the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(pick_device(device))
    # accelerate knows every launcher, device and backend; more of it is not used, because its
    # prepared loaders and schedulers would break exact resume.
    from accelerate import PartialState

    on_cpu = device is not None and torch.device(device).type == "cpu"
    with _telling_who_is_gone():
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    atexit.register(_leave)
    return Processes(state.device, state.process_index, state.num_processes)


def pick_device(device: str | torch.device | None) -> torch.device:
    """Where to compute; None takes a GPU if there is one.

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
    """Ends the threads of gloo while there is an interpreter they can ask.

    Otherwise one of them now and then drops its last tensor while Python shuts down, and the
    process ends with ``terminate called without an active exception`` instead of its own exit
    status. NCCL is left alone: leaving it is a conversation, which a process that ended early
    would wait for in vain.
    """
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        gc.collect()  # a network that still exchanges gradients would keep the group alive
        distributed.destroy_process_group()


@contextmanager
def _telling_who_is_gone() -> Iterator[None]:
    """Turns the backends' many ways to say that a peer is gone into one message."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not _SPEAKING.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            "another process of this training is gone or cannot be reached "
            f"({reason}): look at its own message; --resume continues from the last saved "
            "state, with any number of processes"
        ) from error
