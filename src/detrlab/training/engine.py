"""One optimiser step: forward, losses, backward, accumulated and averaged exactly, then AdamW."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrlab.config import TrainConfig
from detrlab.errors import UserError, lacks_memory
from detrlab.losses.criterion import Criterion, Losses
from detrlab.losses.pairs import Counts, tally, total_counts
from detrlab.ops.shares import computing
from detrlab.structures import ImageBatch, ModelOutput, Share, Target
from detrlab.training.distributed import Processes
from detrlab.training.norms import JoinedNorms
from detrlab.training.optim import Schedule, WeightAverage, clip_gradients, set_rate

if TYPE_CHECKING:
    from detrlab.data.batching import Batch

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class StepReport(NamedTuple):
    """What happened in one step.

    Attributes:
        step: its number, counted from 0.
        measures: losses and errors over all images of the step, by name.
        norm: of the gradient before clipping.
        rate: the learning rate of the group with factor 1.
        images: how many, over all processes.
        share: those of this process, with their places in the step.
        applied: whether the weights changed; not so when the gradient was not finite.
        suspects: micro-batches of this process whose loss was not finite, by their number.
        invalid_costs: entries of this process's matching costs that were not finite.
        stop: some process was asked to stop.
    """

    step: int
    measures: dict[str, float]
    norm: float
    rate: float
    images: int
    share: Batch
    applied: bool
    suspects: dict[int, Batch]
    invalid_costs: int
    stop: bool


@dataclass
class Engine:
    """Everything a step needs; the loop decides when to take one.

    Attributes:
        network: on the processes' device, in training mode.
        criterion: says what its output costs.
        optimizer: of its trainable parameters.
        schedule: the rate at each step.
        config: how to train.
        num_queries: Q, for the counts that losses are divided by.
        processes: who else trains.
        average: of the weights, if one is kept.
        scaler: of the loss in float16; does nothing in other precisions.
    """

    network: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    config: TrainConfig
    num_queries: int
    processes: Processes
    average: WeightAverage | None = None

    def __post_init__(self) -> None:
        kind = self.processes.device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=self.config.precision == "float16")
        # Refinement detaches the boxes of earlier layers: without auxiliary losses their heads
        # have no gradient, which several processes must be told.
        self._shared = self.processes.share(self.network, unused=not self.config.auxiliary_losses)
        self._statistics = running_statistics(self.network)
        several = self.processes.world > 1
        self._norms = JoinedNorms(self.network, self.processes.device) if several else None
        size = self.config.micro_batch
        assert size != "auto", "whoever builds an engine knows what memory holds"
        self.micro_batch: int | None = size

    def step(self, share: Batch, step: int, *, stop: bool = False) -> StepReport:
        """Learn from this process's share of a step's images.

        What a step does hangs on its number and its images only, not on how they are split
        over processes and micro-batches: every loss is divided by the counts of the whole step,
        and what is drawn for an image follows from its place in the step.

        Args:
            share: the images of this process, every ``world``-th of the step's, on the CPU.
            step: its number, counted from 0 over the whole run.
            stop: this process was asked to stop; every process learns of it.

        Raises:
            UserError: another process is gone.
        """
        sizes = [len(target.labels) for target in share.targets]
        counted = tally(share.targets, self.num_queries)
        told = self.processes.rows([*counted, len(sizes), float(stop), max(sizes, default=0)])
        *parts, images, stops, _ = (sum(column) for column in zip(*told, strict=True))
        places = range(self.processes.rank, int(images), self.processes.world)
        share = share._replace(share=Share(tuple(places), int(max(row[-1] for row in told))))
        rate = self.schedule.rate(step)
        set_rate(self.optimizer, rate)
        before = [each.clone() for each in self._statistics]
        pieces = micro_batches(share, self.micro_batch)
        try:
            counts = total_counts([parts])
            norms = nullcontext() if self._norms is None else self._norms.joined()
            with self.processes.exchange(), norms:
                judged = self._accumulate(pieces, step, counts)
            norm, applied = self._update()
            measures = self._measure(pieces, judged, images, counts.matched)
        except BaseException as error:
            self._restore(before)  # a step happens whole or not at all
            if lacks_memory(error):
                raise _too_large(pieces) from error
            raise
        if not applied:
            self._restore(before)
        return StepReport(
            step=step,
            measures=measures,
            norm=norm,
            rate=rate,
            images=int(images),
            share=share,
            applied=applied,
            suspects={} if applied else _suspects(pieces, judged),
            invalid_costs=sum(losses.invalid_costs for losses in judged),
            stop=stops > 0,
        )

    def forward(self, piece: Batch) -> tuple[ModelOutput, list[Target]]:
        """The network's output for some images, and their targets, on its device."""
        images, targets = to_device(piece, self.processes.device)
        with autocast(self.processes.device, self.config.precision):
            return self._shared(images, targets), targets

    def _accumulate(self, pieces: list[Batch], step: int, counts: Counts) -> list[Losses]:
        """The gradient of all pieces; the graph of each is gone before the next is built."""
        self.optimizer.zero_grad(set_to_none=True)
        judged = []
        for index, piece in enumerate(pieces):
            seed_step(self.config.seed, step, self.processes.rank, index)
            with computing(piece.share), self._silent(unless=index == len(pieces) - 1):
                losses = self.criterion(*self.forward(piece), counts, self.processes.total)
                # The processes' gradients get averaged, but their losses are parts of one sum.
                self.scaler.scale(losses.total * self.processes.world).backward()
            judged.append(losses.detach())
        return judged

    def _silent(self, *, unless: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, after the last piece."""
        if unless or not isinstance(self._shared, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._shared.no_sync()

    def _update(self) -> tuple[float, bool]:
        """Change the weights, unless the gradient is not finite; (its norm, whether changed).

        Every process has the same gradient, so all decide alike.
        """
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, self.config.clip).item()
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.network)
        self.scaler.update()
        return norm, applied

    def _measure(
        self, pieces: list[Batch], judged: list[Losses], images: float, pairs: float
    ) -> dict[str, float]:
        """Losses and errors of the whole step, over all processes."""
        rows = []
        for piece, losses in zip(pieces, judged, strict=True):
            share = len(piece.targets) / images
            # In a step without any object every piece's error is 100, by convention.
            measures = losses.measures(share, losses.pairs / pairs if pairs else share)
            rows.append(torch.stack(list(measures.values())))
        own = torch.stack(rows).double().sum(0).tolist()
        return dict(zip(measures, self.processes.total(own), strict=True))

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for now, then in zip(self._statistics, before, strict=True):
            now.copy_(then)


def _too_large(pieces: list[Batch]) -> UserError:
    count = max(len(piece.targets) for piece in pieces)
    height, width = max(tuple(piece.images.padding.shape[1:]) for piece in pieces)
    return UserError(
        f"the device's memory is too small for {count} images of up to {width} x {height} pixels "
        "at once: train with train.micro_batch=auto, or a smaller number (a step still learns from "
        "the whole batch), with train.gradient_checkpointing=true, or at a smaller image size"
    )


def _suspects(pieces: list[Batch], judged: list[Losses]) -> dict[int, Batch]:
    return {
        index: piece
        for index, (piece, losses) in enumerate(zip(pieces, judged, strict=True))
        if not math.isfinite(losses.total.item())
    }


def to_device(batch: Batch, device: torch.device) -> tuple[ImageBatch, list[Target]]:
    """The images and targets of a batch, where the network is."""
    images = ImageBatch(*(each.to(device, non_blocking=True) for each in batch.images))
    # Not waiting: else each of these small copies would wait for all work the GPU still has.
    targets = [
        Target(*(each.to(device, non_blocking=True) for each in target)) for target in batch.targets
    ]
    return images, targets


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The precision that matrix products and convolutions run in."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def seed_step(seed: int, step: int, rank: int = 0, part: int = 0) -> None:
    """Make what a step draws a function of its number: a resumed run draws the same.

    What the CPU draws depends on (seed, step) only, see ``ops.shares``; a GPU's dropout also on
    the rank and the number of the micro-batch.
    """
    torch.manual_seed(_number("step", seed, step))
    torch.cuda.manual_seed(_number("dropout", seed, step, rank, part))


def _number(*key: str | int) -> int:
    """63 bits that follow from a key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training mode changes."""
    return [
        buffer
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]


def micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    """Cut a batch into pieces of at most ``size`` images.

    Images of similar shape come together and padding that a piece does not need is cut off:
    memory and time go to pixels. The step's gradient does not depend on the order; on the padding
    it does: convolutions see where an image ends, and group norms average over padding.
    """
    count = len(batch.targets)
    if size is None or size >= count:
        return [batch]
    valid = ~batch.images.padding
    heights = valid.any(2).sum(1).tolist()
    widths = valid.any(1).sum(1).tolist()
    order = sorted(range(count), key=lambda i: (heights[i] > widths[i], heights[i], widths[i], i))
    pieces = []
    for chunk in (order[start : start + size] for start in range(0, count, size)):
        height, width = max(heights[i] for i in chunk), max(widths[i] for i in chunk)
        images = ImageBatch(
            batch.images.pixels[chunk, :, :height, :width],
            batch.images.padding[chunk, :height, :width],
        )
        pieces.append(
            batch._replace(
                images=images,
                targets=tuple(batch.targets[i] for i in chunk),
                image_ids=tuple(batch.image_ids[i] for i in chunk),
                original_sizes=tuple(batch.original_sizes[i] for i in chunk),
                share=batch.share
                and batch.share._replace(places=tuple(batch.share.places[i] for i in chunk)),
            )
        )
    return pieces
