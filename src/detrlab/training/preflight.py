"""Pre-flight checks: find before the first epoch what would go wrong after hours."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from detrlab.config import DataConfig
from detrlab.data.transforms import evaluation_size
from detrlab.errors import UserError
from detrlab.losses.criterion import Criterion
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import (
    Engine,
    autocast,
    micro_batches,
    running_statistics,
    seed_step,
    to_device,
)
from detrlab.training.folder import RunConfig
from detrlab.training.optim import build_optimizer, clip_gradients, parameter_groups

if TYPE_CHECKING:
    from detrlab.data.batching import Batch
    from detrlab.data.table import Table

OVERFIT_STEPS = 12
OVERFIT_SECONDS = 8.0
MUST_FALL_TO = 0.9
"""Of its first value: the loss that overfitting one batch must reach."""
SHARE_OF_MEMORY = 0.85
FEW_IMAGES = 10_000
"""With fewer images, training from random weights rarely succeeds."""


@dataclass(frozen=True)
class WorstCase:
    """The largest image that an epoch may contain.

    Attributes:
        height: in pixels, padding included.
        width: in pixels, padding included.
        objects: the most annotated objects of an image.
    """

    height: int
    width: int
    objects: int

    @classmethod
    def of(cls, table: Table, config: DataConfig) -> WorstCase:
        """The largest sides and the most objects over all images of a table.

        A mosaic of the four images with most objects has them all.
        """
        shapes = {tuple(size) for size in table.sizes.tolist()}
        side = max(config.sides)
        resized = [evaluation_size(height, width, config, side) for height, width in shapes]
        together = 4 if config.augmentation == "dense" and config.mosaic else 1
        return cls(
            height=max(height for height, _ in resized),
            width=max(width for _, width in resized),
            objects=int(np.sort(np.diff(table.starts))[-together:].sum()),
        )

    def batch(self, images: int, device: torch.device) -> tuple[ImageBatch, list[Target]]:
        """A batch of random pixels without padding, with the most objects in every image."""
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(images, 3, self.height, self.width, generator=draw)
        padding = torch.zeros(images, self.height, self.width, dtype=torch.bool)
        labels = torch.zeros(self.objects, dtype=torch.long)
        boxes = torch.rand(self.objects, 4, generator=draw) * 0.5 + 0.25
        target = Target(labels.to(device), boxes.to(device))
        return ImageBatch(pixels.to(device), padding.to(device)), [target] * images


def check(
    engine: Engine, config: RunConfig, table: Table, first: Batch, steps: int
) -> Iterator[str]:
    """Run all checks; the engine is left unchanged.

    Args:
        engine: of the run.
        config: of the run.
        table: the training split.
        first: this process's share of the first batch.
        steps: of the whole run.

    Yields:
        Log lines.

    Raises:
        UserError: the largest images do not fit in memory.
    """
    network, count = engine.network, len(first.targets)
    per_pass = min(engine.micro_batch or count, count)
    learns_norms = bool(running_statistics(network))
    for warning in settings_warnings(
        config, table, per_pass=per_pass, learns_norms=learns_norms, steps=steps
    ):
        yield f"note: {warning}"
    worst = WorstCase.of(table, config.data)
    if not fits(network, engine.criterion, worst, config.train.precision, per_pass):
        raise too_large(worst, per_pass)
    if engine.processes.world == 1:  # several would have to exchange gradients
        yield from overfit(engine, first, steps)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """A block after which the network's weights, statistics, gradients and mode are restored."""
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    training = network.training
    try:
        yield
    finally:
        network.load_state_dict(before)
        network.train(training)
        network.zero_grad(set_to_none=True)


def _forward_backward(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    precision: str,
) -> Tensor:
    with autocast(images.pixels.device, precision):
        output = network(images, targets)
    total = criterion(output, targets).total
    total.backward()
    return total.detach()


# --- memory -------------------------------------------------------------------------------


def largest_micro_batch(
    network: nn.Module, criterion: Criterion, worst: WorstCase, precision: str, limit: int
) -> int:
    """The number of images, halved from ``limit`` on, whose forward and backward pass fits.

    Raises:
        UserError: not even one image fits.
    """
    count = limit
    while not fits(network, criterion, worst, precision, count):
        if count == 1:
            raise too_large(worst, 1)
        count = math.ceil(count / 2)
    return count


def too_large(worst: WorstCase, count: int) -> UserError:
    """The error for too little memory, with the remedies."""
    return UserError(
        f"not enough memory for {count} images of {worst.width} x {worst.height} pixels in one "
        "forward pass: set train.micro_batch=auto (the batch size of a step stays the same) or "
        "train.gradient_checkpointing=true, or use smaller images"
    )


def fits(
    network: nn.Module, criterion: Criterion, worst: WorstCase, precision: str, count: int
) -> bool:
    """Whether the forward and backward pass of ``count`` of the largest images fits in memory.

    On a GPU it is tried. On a CPU, where trying would swap, one image is measured and multiplied.
    """
    device = next(network.parameters()).device
    if device.type != "cuda":
        # Twice, because the backward pass needs gradients of about the same size.
        needed = 2 * saved_bytes(network, criterion, worst) * count
        return needed < SHARE_OF_MEMORY * psutil.virtual_memory().available
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with unchanged(network):
            _forward_backward(network.train(), criterion, *worst.batch(count, device), precision)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    # AdamW's two moments are allocated later.
    moments = 2 * sum(each.numel() * each.element_size() for each in network.parameters())
    needed = torch.cuda.max_memory_allocated(device) + moments
    return needed < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[1]


def saved_bytes(network: nn.Module, criterion: Criterion, worst: WorstCase) -> int:
    """The bytes that autograd saves for the backward pass of one of the largest images."""
    seen: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, targets = worst.batch(1, next(network.parameters()).device)
    with unchanged(network), torch.autograd.graph.saved_tensors_hooks(count, lambda each: each):
        criterion(network.train()(images), targets)
    return sum(seen.values())


# --- overfitting one batch ----------------------------------------------------------------


def overfit(
    engine: Engine, share: Batch, steps: int, seconds: float = OVERFIT_SECONDS
) -> list[str]:
    """Train a few steps on one batch; the engine and its network are left unchanged.

    Args:
        engine: of the run; its optimiser and loss scale are not used.
        share: the first images of the run.
        steps: of the whole run.
        seconds: no further step is taken after this time, but always at least three.

    Returns:
        Log lines: the loss, the expected time of the run, parameters without a gradient.
    """
    network, config = engine.network, engine.config
    piece = micro_batches(share, engine.micro_batch)[0]
    images, targets = to_device(piece, engine.processes.device)
    losses, times = [], []
    without = {name: each for name, each in network.named_parameters() if each.requires_grad}
    # Without a loss scale float16 would overflow.
    precision = "float32" if config.precision == "float16" else config.precision
    with unchanged(network):
        optimizer = build_optimizer(parameter_groups(network, config), config)
        network.train()
        for step in range(OVERFIT_STEPS):
            clock = time.perf_counter()
            seed_step(config.seed, step)
            optimizer.zero_grad()
            loss = _forward_backward(network, engine.criterion, images, targets, precision)
            losses.append(loss.item())
            reached = [name for name, each in without.items() if _has_gradient(each)]
            for name in reached:
                del without[name]
            clip_gradients(optimizer, config.clip)
            optimizer.step()
            times.append(time.perf_counter() - clock)
            if step >= 2 and sum(times) > seconds:
                break
    pieces = math.ceil(len(share.targets) / len(piece.targets))
    step_time = sum(times[1:]) / len(times[1:]) * pieces  # the first step is slower
    lines = [
        f"pre-flight: {len(losses)} steps on one batch reduced the loss from {losses[0]:.4g} to "
        f"{min(losses):.4g}; the {steps:,} steps of the run will take about "
        f"{timedelta(seconds=round(steps * step_time))} (h:min:s), without evaluation"
    ]
    if min(losses) >= MUST_FALL_TO * losses[0]:
        lines.append(
            "note: the loss of this batch hardly fell: check the learning rate, the frozen "
            "parameters and the annotations"
        )
    if without:
        names = sorted(without)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(
            f"note: no gradient reaches {', '.join(names[:5])}{more}: they will not change"
        )
    return lines


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


# --- settings -----------------------------------------------------------------------------


def settings_warnings(
    config: RunConfig, table: Table, *, per_pass: int, learns_norms: bool, steps: int
) -> list[str]:
    """Settings that are known to give poor results, each with the remedy.

    Args:
        config: of the run.
        table: the training split.
        per_pass: images of a forward pass.
        learns_norms: whether batch norms learn their statistics.
        steps: of the whole run.
    """
    train, num_queries = config.train, config.model.num_queries
    found = []
    drop, epochs = train.drop_epoch, train.epochs
    if train.schedule == "step" and drop is not None and (epochs - 1) // drop >= 2:
        found.append(
            f"the learning rate is divided by 10 after every {drop} of the {epochs} epochs, so "
            f"that little is learnt from epoch {2 * drop + 1} on; one drop near the end is usual: "
            f"--set train.drop_epoch={max(1, round(0.8 * epochs))}"
        )
    if train.warmup_steps > steps / 4:
        found.append(
            f"the warm-up takes {train.warmup_steps} of the {steps} steps of this run; "
            f"--set train.warmup_steps={steps // 10} is a tenth of them"
        )
    if train.weights == "none" and len(table) < FEW_IMAGES:
        found.append(
            f"training from random weights on {len(table):,} images gives poor results: use "
            "pretrained ones, --weights imagenet or coco"
        )
    empty = [name for name, count in objects_by_class(table).items() if count == 0]
    if empty:
        found.append(
            f"{len(empty)} classes have no training objects and cannot be learnt: "
            f"{', '.join(empty[:8])}"
        )
    most = int(np.diff(table.starts).max())
    if most > num_queries:
        found.append(
            f"an image has {most} objects, but the detector only {num_queries} queries: "
            f"set model.num_queries to {most * 2} or more"
        )
    if learns_norms and per_pass < 4:
        found.append(
            f"batch norms learn their statistics from {per_pass} images per forward pass, which is "
            "too few: freeze them (model.backbone_norms=frozen) or use larger micro-batches"
        )
    return found


def objects_by_class(table: Table) -> dict[str, int]:
    """The number of annotated objects of each class, by name."""
    counts = np.bincount(table.labels, minlength=len(table.classes))
    return dict(zip(table.classes, counts.tolist(), strict=True))
