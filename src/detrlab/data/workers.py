"""Processes that read images ahead of the training process.

PyTorch's loader would do, but for three things: it kills the training process from a signal
handler, wherever that happens to be, when a worker dies; it draws from the global generator;
and it sends images through ``/dev/shm``, which containers keep at 64 MB. Here each worker owns
a few slots of memory that it shares with its parent, and a pipe for everything small.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import pickle
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from detrlab.errors import UserError
from detrlab.structures import Sample

AHEAD = 2
"""Batches that a worker prepares before the first of them is taken."""


class SampleReader(Protocol):
    """What workers do; they get a copy of it."""

    def sample(self, i: int) -> Sample:
        """The sample at one position, with a uint8 image."""

    def file(self, i: int) -> str:
        """Name of the file at one position, for messages."""


class _Failure(NamedTuple):
    """What a worker sends instead of samples when a file cannot be read."""

    message: str


class _Worker(NamedTuple):
    process: Any
    pipe: Connection
    slots: list[mmap.mmap] | None


def start_method() -> str:
    """Forked processes share the table's pages; where there is no fork, a file is mapped."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def read_ahead(
    reader: SampleReader,
    order: list[np.ndarray],
    workers: int,
    slot_bytes: int,
    method: str | None = None,
) -> Iterator[list[Sample]]:
    """The samples of each batch, in order, read by worker processes.

    The images of a batch are only valid until the next batch is asked for.

    Args:
        reader: reads one sample.
        order: positions of the samples of each batch.
        workers: how many processes; batch k is read by worker ``k % workers``.
        slot_bytes: room for the images of a batch; a larger one takes a slower way.
        method: how processes are started; None chooses what shares memory best.

    Raises:
        UserError: a file cannot be read, or a worker died; the message names the file.
    """
    workers = min(workers, len(order))
    if not workers:
        return
    method = method or start_method()
    context: Any = multiprocessing.get_context(method)
    # The position that each worker is reading, for the message if it dies.
    board = context.Array("q", [-1] * workers, lock=False)
    with contextlib.ExitStack() as stack:
        shared = None if method == "fork" else stack.enter_context(_mapped_file(reader))
        crew: list[_Worker] = []
        stack.callback(_dismiss, crew)
        for number in range(workers):
            ours, theirs = context.Pipe()
            slots = [mmap.mmap(-1, slot_bytes) for _ in range(AHEAD)] if method == "fork" else None
            inherited = [worker.pipe for worker in crew] + [ours] if method == "fork" else []
            process = context.Process(
                target=_serve,
                args=(shared or reader, order[number::workers], theirs, slots, board, number,
                      inherited),
                daemon=True,
            )  # fmt: skip
            process.start()
            theirs.close()
            crew.append(_Worker(process, ours, slots))
        for k in range(len(order)):
            worker = crew[k % workers]
            turn = k // workers
            yield _receive(worker, turn, board, k % workers, reader)
            # Only now may the worker write over the slot.
            with contextlib.suppress(OSError):
                worker.pipe.send(turn)


def _receive(
    worker: _Worker, turn: int, board: Any, number: int, reader: SampleReader
) -> list[Sample]:
    """A worker's next batch; its images lie in the worker's slot."""
    message: Any = None
    # Both may be ready: what a worker sent before it ended still counts.
    if worker.pipe in wait([worker.pipe, worker.process.sentinel]):
        with contextlib.suppress(EOFError, OSError):
            message = worker.pipe.recv()
    if message is None:
        worker.process.join(5)
        raise UserError(_obituary(worker.process.exitcode, board[number], reader))
    if isinstance(message, _Failure):
        raise UserError(message.message)
    samples, offsets = message
    if offsets is None:
        return samples
    assert worker.slots is not None
    slot = np.frombuffer(worker.slots[turn % AHEAD], dtype=np.uint8)
    return [
        sample._replace(
            image=torch.from_numpy(slot[start : start + int(np.prod(shape))]).view(shape)
        )
        for sample, (start, shape) in zip(samples, offsets, strict=True)
    ]


def _obituary(exit_code: int | None, position: int, reader: SampleReader) -> str:
    """One sentence about a dead worker and what it was reading."""
    reason = ""
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            reason = f" ({signal.Signals(-exit_code).name})"
    where = f" while reading {reader.file(position)}" if position >= 0 else ""
    return (
        f"a loader process died{reason}{where}: most often the memory ran out; use fewer "
        "--workers, or 0 to read in the training process and see what happens"
    )


def _dismiss(crew: list[_Worker]) -> None:
    """End all workers, whatever they are doing."""
    for worker in crew:
        worker.pipe.close()
        worker.process.terminate()
    for worker in crew:
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def _mapped_file(reader: SampleReader) -> Iterator[_Mapped]:
    """The reader with all its arrays in one file that processes can map instead of copying."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(reader, protocol=5, buffer_callback=buffers.append)
    with tempfile.TemporaryDirectory(prefix="detrlab-") as folder:
        path = Path(folder) / "table"
        spans = []
        with path.open("wb") as file:
            for buffer in buffers:
                file.write(b"\0" * (-file.tell() % 64))
                raw = buffer.raw()
                spans.append((file.tell(), raw.nbytes))
                file.write(raw)
            file.write(b"\0")  # an empty file cannot be mapped
        yield _Mapped(str(path), pickled, spans)


class _Mapped(NamedTuple):
    """A reader whose arrays lie in a file."""

    path: str
    pickled: bytes
    spans: list[tuple[int, int]]

    def open(self) -> SampleReader:
        with Path(self.path).open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        buffers = [view[start : start + length] for start, length in self.spans]
        return pickle.loads(self.pickled, buffers=buffers)


def _serve(
    reader: SampleReader | _Mapped,
    order: list[np.ndarray],
    pipe: Connection,
    slots: list[mmap.mmap] | None,
    board: Any,
    number: int,
    inherited: list[Connection],
) -> None:
    """A worker's life: read its batches, at most ``AHEAD`` before they are taken."""
    for other in inherited:  # a copy kept open would hide the parent's end
        other.close()
    torch.set_num_threads(1)
    # Ctrl-C belongs to the training process, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    source: SampleReader = reader.open() if isinstance(reader, _Mapped) else reader
    try:
        for turn, positions in enumerate(order):
            if turn >= AHEAD:
                pipe.recv()
            message = _batch(
                source, positions, board, number, slots[turn % AHEAD] if slots else None
            )
            pipe.send(message)
            if isinstance(message, _Failure):
                break
        # The parent may still have to fetch what was sent: it ends this process, or its own
        # end closes the pipe.
        while True:
            pipe.recv()
    except (EOFError, OSError):
        return


def _batch(
    source: SampleReader, positions: np.ndarray, board: Any, number: int, slot: mmap.mmap | None
) -> Any:
    """What to send for one batch."""
    samples = []
    try:
        for i in positions.tolist():
            board[number] = i
            samples.append(source.sample(i))
    except UserError as error:
        return _Failure(str(error))
    board[number] = -1
    return _pack(samples, slot)


def _pack(samples: list[Sample], slot: mmap.mmap | None) -> tuple[list[Sample], Any]:
    """Samples whose images lie in the slot, if they fit, and where."""
    images = [sample.image.contiguous().numpy() for sample in samples]
    if slot is None or sum(image.nbytes for image in images) > len(slot):
        return [sample._replace(image=sample.image.contiguous()) for sample in samples], None
    room = np.frombuffer(slot, dtype=np.uint8)
    offsets, start = [], 0
    for image in images:
        room[start : start + image.nbytes] = image.ravel()
        offsets.append((start, image.shape))
        start += image.nbytes
    nothing = torch.empty(0, dtype=torch.uint8)
    return [sample._replace(image=nothing) for sample in samples], offsets
