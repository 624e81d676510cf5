"""Batches: the order of images, the processes that read them, and the padding.

Order and augmentation hang on (seed, epoch) and (seed, epoch, image id) alone. So any number of
loader processes, any split over ranks and any detector see the same images in the same order
with the same draws, and a run that resumes in the middle of an epoch goes on as if it had
never stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from detrlab.config import DataConfig
from detrlab.data.keyed import keyed
from detrlab.data.table import Table
from detrlab.data.transforms import (
    Augmentation,
    evaluation_resize,
    evaluation_size,
    normalize,
    to_target,
    train_augmentation,
)
from detrlab.data.workers import read_ahead
from detrlab.errors import UserError
from detrlab.structures import ImageBatch, Sample, Target


class Batch(NamedTuple):
    """What the network and its losses get.

    Attributes:
        images: (B, 3, H, W) pixels and (B, H, W) padding.
        targets: one for each image.
        image_ids: the data set's own ids.
        original_sizes: (height, width) of each image on disk.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    image_ids: tuple[int | str, ...]
    original_sizes: tuple[tuple[int, int], ...]


def pad(images: Sequence[torch.Tensor], config: DataConfig) -> ImageBatch:
    """(3, h, w) uint8 images of any sizes -> one normalised batch, padded bottom and right."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    pixels = torch.zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        pixels[i, :, :h, :w] = normalize(image, config)
        padding[i, :h, :w] = False
    return ImageBatch(pixels, padding)


def train_order(table: Table, *, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The positions of each training batch of an epoch; the last partial batch is dropped.

    Unless it would be the only one: a handful of images still trains.
    """
    order = keyed("order", seed, epoch).permutation(len(table))
    if len(order) <= batch:
        return [order] if len(order) else []
    return [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]


def eval_order(table: Table, config: DataConfig, *, batch: int) -> list[np.ndarray]:
    """The positions of each evaluation batch: every image once, equal shapes together.

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


def _order(
    table: Table,
    config: DataConfig,
    *,
    batch: int,
    seed: int,
    epoch: int,
    train: bool,
    rank: int,
    world: int,
) -> list[np.ndarray]:
    """The positions of the images in each batch of this rank."""
    if batch < 1:
        raise UserError(f"batch {batch}: at least one image is needed")
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} does not lie in 0..{world - 1}")
    if not train:
        return eval_order(table, config, batch=batch)[rank::world]
    if batch % world or len(table) < world:
        raise UserError(
            f"{world} processes cannot share batches of {batch} from {len(table)} images evenly: "
            f"choose a batch that {world} divides"
        )
    return [part[rank::world] for part in train_order(table, batch=batch, seed=seed, epoch=epoch)]


def num_batches(
    table: Table, config: DataConfig, *, batch: int, train: bool, rank: int = 0, world: int = 1
) -> int:
    """How many batches ``batches`` gives a rank in one epoch from its start."""
    if train:
        return max(len(table) // batch, min(len(table), 1))
    return len(eval_order(table, config, batch=batch)[rank::world])


def batches(
    table: Table,
    config: DataConfig,
    *,
    batch: int,
    seed: int = 0,
    epoch: int = 0,
    train: bool,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch, of one rank.

    Args:
        table: what to read.
        config: sizes, augmentation and normalisation.
        batch: images a step sees over all ranks in training (each rank gets every
            ``world``-th of them); images of one rank's batch in evaluation.
        seed: first part of every key.
        epoch: counted from 0; second part of every key.
        train: shuffled, augmented and padded; or in order of shape, never padded.
        start: batches to leave out at the beginning, for a run that resumes.
        rank: which of the ``world`` processes asks.
        world: how many processes share the epoch.
        workers: loader processes; None takes ``config.workers``, 0 reads in this process.

    Raises:
        UserError: an image cannot be read (the message names the file) or a loader process
            died; impossible arguments.
    """
    order = _order(
        table,
        config,
        batch=batch,
        seed=seed,
        epoch=epoch,
        train=train,
        rank=rank,
        world=world,
    )[start:]
    reader = _Reader(
        table, config, train_augmentation(config) if train else None, seed=seed, epoch=epoch
    )
    count = config.workers if workers is None else workers
    if count:
        longest = max((len(positions) for positions in order), default=0)
        room = longest * 3 * config.image_size * (config.max_size + 1)
        samples = read_ahead(reader, order, count, room)
    else:
        samples = map(reader.read, order)
    return itertools.chain.from_iterable(
        _collate(part, config, split_shapes=not train) for part in samples
    )


def _collate(samples: list[Sample], config: DataConfig, *, split_shapes: bool) -> Iterator[Batch]:
    """One batch; or, where shapes must not be mixed and files belie their declared size, some."""
    groups = [samples]
    if split_shapes:
        by_shape: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            by_shape.setdefault(tuple(sample.image.shape), []).append(sample)
        groups = list(by_shape.values())
    for group in groups:
        yield Batch(
            images=pad([sample.image for sample in group], config),
            targets=tuple(to_target(sample) for sample in group),
            image_ids=tuple(sample.image_id for sample in group),
            original_sizes=tuple(sample.original_size for sample in group),
        )


class _Reader:
    """Reads and augments the images of a batch; the same wherever it runs."""

    def __init__(
        self,
        table: Table,
        config: DataConfig,
        augmentation: Augmentation | None,
        *,
        seed: int,
        epoch: int,
    ) -> None:
        self._table = table
        self._config = config
        self._augmentation = augmentation
        self._seed = seed
        self._epoch = epoch

    def file(self, i: int) -> str:
        """Name of the file of image i."""
        return self._table.file(i)

    def read(self, positions: np.ndarray) -> list[Sample]:
        """The samples at these positions."""
        return [self.sample(int(i)) for i in positions]

    def sample(self, i: int) -> Sample:
        """One sample, ready to be padded into a batch; pixels are still uint8."""
        sample = self._table.read(i)
        if self._augmentation is None:
            return evaluation_resize(sample, self._config)
        draws = keyed("augmentation", self._seed, self._epoch, sample.image_id)
        return self._augmentation(sample, draws)
