"""Batches: the order of images, the worker processes that read them, and the padding.

The order depends only on (seed, epoch), augmentation only on (seed, epoch, image id), the side of
square batches on (seed, epoch, number of the batch). So any number of workers and any number of
ranks give the same images with the same draws, and a run that resumes in the middle of an epoch
continues exactly.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detrlab.config import DataConfig, Phase, Phases
from detrlab.data.augment import train_augmentation
from detrlab.data.keyed import keyed
from detrlab.data.repeats import epoch_length, repeated, times_before
from detrlab.data.table import Table
from detrlab.data.transforms import (
    evaluation_resize,
    evaluation_size,
    normalize,
    to_target,
)
from detrlab.errors import UserError
from detrlab.structures import ImageBatch, Sample, Share, Target

PREFETCH = 2
"""Batches that each worker prepares ahead."""

# Forked workers share the memory of the table; elsewhere each worker gets a copy.
START_METHOD = "fork" if sys.platform == "linux" else None


class Batch(NamedTuple):
    """What the network and its losses get.

    Attributes:
        images: (B, 3, H, W) pixels and (B, H, W) padding.
        targets: one for each image.
        image_ids: the data set's own ids.
        original_sizes: (height, width) of each image on disk.
        share: which images of a training step these are; None until it is taken.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    image_ids: tuple[int | str, ...]
    original_sizes: tuple[tuple[int, int], ...]
    share: Share | None = None


def pad(images: Sequence[torch.Tensor], config: DataConfig) -> ImageBatch:
    """(3, h, w) uint8 images of any sizes -> one normalised batch, padded bottom and right."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    pixels = torch.zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        normalize(image, config, out=pixels[i, :, :h, :w])
        padding[i, :h, :w] = False
    return ImageBatch(pixels, padding)


def train_order(
    table: Table,
    *,
    batch: int,
    seed: int,
    epoch: int,
    repeat_threshold: float = 0.0,
    passes: int = 1,
) -> list[np.ndarray]:
    """The positions of the images in each training batch of an epoch.

    The last, partial batch is dropped, unless it is the only one.
    """
    draws = keyed("order", seed, epoch)
    parts = []
    for _ in range(passes):
        order = draws.permutation(len(table))
        if repeat_threshold > 0:
            order = repeated(order, table, repeat_threshold, draws)
        parts.append(order)
    order = np.concatenate(parts)
    if len(order) <= batch:
        return [order] if len(order) else []
    return [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]


def eval_order(table: Table, config: DataConfig, *, batch: int) -> list[np.ndarray]:
    """The positions of the images in each evaluation batch: every image once, by shape.

    The largest shapes come first, so that a batch that does not fit into memory fails at once.
    """
    buckets: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(table.sizes.tolist()):
        buckets.setdefault(evaluation_size(height, width, config), []).append(i)
    largest_first = sorted(buckets, key=lambda shape: (-shape[0] * shape[1], shape))
    return [
        np.array(buckets[shape][i : i + batch])
        for shape in largest_first
        for i in range(0, len(buckets[shape]), batch)
    ]


class Loader:
    """The batches of one split for one rank, epoch after epoch.

    Worker processes start with the first epoch and end with the loader.

    Args:
        table: what to read.
        config: sizes, augmentation and normalisation.
        batch: in training, images per step over all ranks (each rank gets every ``world``-th of
            them); in evaluation, images per batch of one rank.
        seed: first part of every key.
        train: shuffled, augmented and padded; or ordered by shape, never padded.
        rank: this process's number.
        world: number of processes that share each epoch.
        workers: worker processes; None takes ``config.workers``, 0 reads in this process.
        pin_memory: copy batches into pinned memory, for faster transfers to a GPU.
        phases: when the augmentation begins and stops; None augments in every epoch.

    Raises:
        UserError: the batch size or the rank is impossible.
    """

    def __init__(
        self,
        table: Table,
        config: DataConfig,
        *,
        batch: int,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        pin_memory: bool = False,
        phases: Phases | None = None,
    ) -> None:
        if batch < 1:
            raise UserError(f"batch size {batch} is too small: use at least 1")
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} is not in 0..{world - 1}")
        if train and (batch % world or len(table) < world):
            raise UserError(
                f"{world} processes cannot share batches of {batch} from {len(table)} images "
                f"evenly: choose a batch size that {world} divides"
            )
        self.table, self.config, self.batch, self.train = table, config, batch, train
        self.seed, self.rank, self.world, self.phases = seed, rank, world, phases
        count = config.workers if workers is None else workers
        self._workers = min(count, num_batches(table, config, batch=batch, train=train))
        share = min(batch // world if train else batch, len(table))
        self._reader = _Reader(
            self, self._workers, through_pipe=not self._fits_shared_memory(share)
        )
        self._keys: list[_Key] = []
        # A "sample" of the DataLoader is a whole batch: our keys hold epoch and positions.
        with _undisturbed():
            self._loader: DataLoader[Any] = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                num_workers=self._workers,
                worker_init_fn=_ignore_interrupts,
                generator=torch.Generator(),  # the global generator is left alone
                multiprocessing_context=START_METHOD if self._workers else None,
                persistent_workers=self._workers > 0,
                prefetch_factor=PREFETCH if self._workers else None,
                pin_memory=pin_memory,
            )

    def order(self, epoch: int = 0) -> list[np.ndarray]:
        """The positions of the images in each batch of this rank."""
        return [key.positions for key in self._plan(epoch)]

    def _plan(self, epoch: int) -> list[_Key]:
        if not self.train:
            whole = eval_order(self.table, self.config, batch=self.batch)[self.rank :: self.world]
            return [
                _Key(epoch, i, positions, np.zeros_like(positions))
                for i, positions in enumerate(whole)
            ]
        whole = train_order(
            self.table,
            batch=self.batch,
            seed=self.seed,
            epoch=epoch,
            repeat_threshold=self.config.repeat_threshold,
            passes=self.config.passes,
        )
        mine = slice(self.rank, None, self.world)
        return [
            _Key(epoch, i, positions[mine], copies[mine])
            for i, (positions, copies) in enumerate(zip(whole, times_before(whole), strict=True))
        ]

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: counted from 0; second part of every key.
            start: batches to leave out at the beginning, for a run that resumes.

        Raises:
            UserError: an image cannot be read (the message names the file) or a worker died.
        """
        self._keys[:] = self._plan(epoch)[start:]
        with _undisturbed():
            items = iter(self._loader)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                # What a dead worker had prepared is lost with its end of the connection.
                died = not isinstance(error, RuntimeError) or "DataLoader worker (pid" in str(error)
                if not died or str(error).startswith("Caught"):
                    raise
                raise UserError(self._reader.last_words()) from None
            if isinstance(item, UserError):
                # A new error: one that its own frame holds would keep the workers alive.
                raise UserError(str(item))
            yield from map(_unpacked, item)

    def _fits_shared_memory(self, images: int) -> bool:
        """Whether prepared batches fit into ``/dev/shm``, which containers often limit to 64 MB."""
        place = Path("/dev/shm")
        if not place.is_dir():
            return True
        needed = 4 * 3 * images * (self.config.longest_side + 1) ** 2
        status = os.statvfs(place)
        return needed * self._workers * (PREFETCH + 1) * self.world < (
            status.f_bavail * status.f_frsize
        )


def batches(
    table: Table, config: DataConfig, *, epoch: int = 0, start: int = 0, **options: Any
) -> Iterator[Batch]:
    """The batches of one epoch; see ``Loader`` for the options and its ``epoch``."""
    return Loader(table, config, **options).epoch(epoch, start)


def num_batches(
    table: Table, config: DataConfig, *, batch: int, train: bool, rank: int = 0, world: int = 1
) -> int:
    """How many batches ``batches`` gives a rank in one epoch from its start."""
    if train:
        images = epoch_length(table, config.repeat_threshold) * config.passes
        return max(images // batch, min(len(table), 1))
    return len(eval_order(table, config, batch=batch)[rank::world])


class _Key(NamedTuple):
    """What a batch is made from: its images, and how often each came before in the epoch."""

    epoch: int
    number: int
    positions: np.ndarray
    copies: np.ndarray


class _Reader(Dataset[Any]):
    """Reads, augments, normalises and pads whole batches; the same in every process."""

    def __init__(self, loader: Loader, workers: int, *, through_pipe: bool) -> None:
        self._table, self._config, self._train = loader.table, loader.config, loader.train
        self._seed, self._phases = loader.seed, loader.phases
        self._through_pipe = through_pipe and workers > 0
        scaled = self._train and self._config.scaled_decoding
        self._least = self._config.longest_side if scaled else 0
        # The position each worker is reading, for the message if the worker dies.
        self._reading = torch.full((workers,), -1).share_memory_()

    def __getitem__(self, key: _Key) -> list[Any] | UserError:
        images = zip(key.positions.tolist(), key.copies.tolist(), strict=True)
        phase: Phase = "whole" if self._phases is None else self._phases.of(key.epoch)
        side = self._side(key, phase)
        try:
            samples = [self._sample(key.epoch, i, copy, phase, side) for i, copy in images]
        except UserError as error:
            return error  # raised here, it would arrive as a traceback
        self._note(-1)
        parts = _collate(samples, self._config, split_shapes=not self._train)
        return [_packed(part, self._through_pipe) for part in parts]

    def last_words(self) -> str:
        """One message about a dead worker."""
        files = [self._table.file(i) for i in self._reading.tolist() if i >= 0]
        where = f" while reading {' or '.join(files)}" if files else ""
        return (
            f"a data loading worker died{where}, most often because memory ran out: use fewer "
            "--workers, or --workers 0 to read in the training process"
        )

    def _side(self, key: _Key, phase: Phase) -> int:
        """Of the batch's square images, the same in all processes."""
        sides = self._config.sides
        if not self._train or phase == "plain" or len(sides) == 1:
            return self._config.image_size
        return sides[int(keyed("side", self._seed, key.epoch, key.number).integers(len(sides)))]

    def _sample(self, epoch: int, i: int, copy: int, phase: Phase, side: int) -> Sample:
        sample = self._read(i)
        if not self._train:
            return evaluation_resize(sample, self._config)
        again = (copy,) if copy else ()
        draws = keyed("augmentation", self._seed, epoch, sample.image_id, *again)
        augment = train_augmentation(self._config, phase=phase, side=side, partner=self._partner)
        return augment(sample, draws)

    def _partner(self, draws: np.random.Generator) -> Sample:
        return self._read(int(draws.integers(len(self._table))))

    def _read(self, i: int) -> Sample:
        self._note(i)
        return self._table.read(i, self._least) if self._least else self._table.read(i)

    def _note(self, position: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = position


def _collate(samples: list[Sample], config: DataConfig, *, split_shapes: bool) -> list[Batch]:
    """One batch; several where files differ from their declared size and must not be padded."""
    groups: dict[tuple[int, ...] | None, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample.image.shape) if split_shapes else None, []).append(sample)
    return [
        Batch(
            images=pad([sample.image for sample in group], config),
            targets=tuple(to_target(sample) for sample in group),
            image_ids=tuple(sample.image_id for sample in group),
            original_sizes=tuple(sample.original_size for sample in group),
        )
        for group in groups.values()
    ]


def _packed(batch: Batch, through_pipe: bool) -> Any:
    """A batch as it travels: small tensors as arrays, since each tensor needs a connection."""
    targets = [[tensor.numpy() for tensor in target] for target in batch.targets]
    images = [tensor.numpy() for tensor in batch.images] if through_pipe else batch.images
    return images, targets, batch.image_ids, batch.original_sizes


def _unpacked(packed: Any) -> Batch:
    images, targets, *rest = packed
    return Batch(
        ImageBatch(*map(torch.as_tensor, images)),
        tuple(Target(*map(torch.as_tensor, target)) for target in targets),
        *rest,
    )


def _unchanged(item: Any) -> Any:
    return item


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C is handled by the training process, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without two side effects of PyTorch's loader.

    It advises against more workers than cores, in a warning; and its handler of SIGCHLD raises
    at any place in this process if a worker dies. Without the handler, a dead worker is noticed
    when the next batch is asked for.
    """
    watched = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if watched else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield
    if watched:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
