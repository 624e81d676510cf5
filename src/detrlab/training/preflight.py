"""Before the first epoch: what would go wrong in hours, found in seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detrlab.errors import UserError
from detrlab.losses.criterion import Criterion
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import Engine, autocast, micro_batches, seed_step, to_device
from detrlab.training.optim import build_optimizer, clip_gradients, parameter_groups

if TYPE_CHECKING:
    from detrlab.data.batching import Batch

OVERFIT_STEPS = 12
SECONDS = 8.0
"""How long the overfitting of one batch may take."""
FALLS = 0.9
"""Share of its first loss that a batch must fall below."""
SHARE_OF_MEMORY = 0.85
FEW_IMAGES = 10_000
"""Below so many images a detector hardly learns from nothing."""


@dataclass(frozen=True)
class WorstCase:
    """The largest micro-batch that an epoch may hold.

    Attributes:
        height: in pixels, padding included.
        width: in pixels, padding included.
        objects: most annotated objects of an image.
    """

    height: int
    width: int
    objects: int

    def batch(self, images: int, device: torch.device) -> tuple[ImageBatch, list[Target]]:
        """So many images of noise, unpadded, with as many objects as can be."""
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(images, 3, self.height, self.width, generator=draw)
        padding = torch.zeros(images, self.height, self.width, dtype=torch.bool)
        labels = torch.zeros(self.objects, dtype=torch.long)
        boxes = torch.rand(self.objects, 4, generator=draw) * 0.5 + 0.25
        target = Target(labels.to(device), boxes.to(device))
        return ImageBatch(pixels.to(device), padding.to(device)), [target] * images


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """A block after which the network is as before: weights, statistics, gradients, mode."""
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    training = network.training
    try:
        yield
    finally:
        network.load_state_dict(before)
        network.train(training)
        for parameter in network.parameters():
            parameter.grad = None


def one_pass(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    precision: str,
) -> Tensor:
    """Forward and backward once; the loss."""
    with autocast(images.pixels.device, precision):
        output = network(images, targets)
    losses = criterion(output, targets)
    losses.total.backward()
    return losses.total.detach()


# --- memory -------------------------------------------------------------------------------


def largest_micro_batch(
    network: nn.Module, criterion: Criterion, worst: WorstCase, precision: str, limit: int
) -> int:
    """The most images, halving from ``limit``, that a forward and backward pass has room for.

    Raises:
        UserError: there is not even room for one.
    """
    count = limit
    while not has_room(network, criterion, worst, precision, count):
        if count == 1:
            raise no_room(worst, 1)
        count = math.ceil(count / 2)
    return count


def no_room(worst: WorstCase, count: int) -> UserError:
    """What to say, and what to do, when memory is too small."""
    return UserError(
        f"memory is too small for {count} images of {worst.width} x {worst.height} pixels at "
        "once, which an epoch may bring: train with train.micro_batch=auto (a step still "
        "learns from the whole batch), train.gradient_checkpointing=true, or smaller images"
    )


def has_room(
    network: nn.Module, criterion: Criterion, worst: WorstCase, precision: str, count: int
) -> bool:
    """Whether memory holds a forward and backward pass of ``count`` of the largest images.

    A GPU is simply tried. In a computer's own memory, where trying would make it swap, what
    one image needs is measured and multiplied.
    """
    device = next(network.parameters()).device
    if device.type == "cuda":
        return _gpu_has_room(network, criterion, worst, precision, count)
    available = available_memory()
    if available is None:
        return True
    # Twice: the backward pass holds gradients of about the size of what it goes back through.
    return 2 * kept_bytes(network, criterion, worst) * count < SHARE_OF_MEMORY * available


def _gpu_has_room(
    network: nn.Module, criterion: Criterion, worst: WorstCase, precision: str, count: int
) -> bool:
    device = next(network.parameters()).device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with untouched(network):
            one_pass(network.train(), criterion, *worst.batch(count, device), precision)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    # The optimiser's two moments are still to come.
    weights = sum(each.numel() * each.element_size() for each in network.parameters())
    _, total = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_allocated(device) + 2 * weights < SHARE_OF_MEMORY * total


def kept_bytes(network: nn.Module, criterion: Criterion, worst: WorstCase) -> int:
    """What the forward pass of one worst image keeps for the backward pass."""
    seen: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(network.parameters()).device
    images, targets = worst.batch(1, device)
    with untouched(network), torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        criterion(network.train()(images), targets)
    return sum(seen.values())


def available_memory() -> int | None:
    """Bytes that this computer could still give; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        rows = dict(line.split(":", 1) for line in lines)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


# --- a batch that must be learnt ------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """A few steps on one batch.

    Attributes:
        first: its loss before.
        last: its lowest loss after.
        steps: how many.
        seconds: of one step, the first left out.
        unreached: parameters that train but never had a gradient other than zero.
    """

    first: float
    last: float
    steps: int
    seconds: float
    unreached: tuple[str, ...]

    @property
    def learns(self) -> bool:
        """Whether the loss fell."""
        return self.last < FALLS * self.first

    def lines(self, steps: int) -> list[str]:
        """For people, if the whole run takes ``steps`` steps."""
        found = [
            f"rehearsal: {self.steps} steps on one batch took the loss from {self.first:.4g} to "
            f"{self.last:.4g}; the {steps:,} steps of the run will take about "
            f"{duration(steps * self.seconds)}, evaluation not counted"
        ]
        if not self.learns:
            found.append(
                "note: the loss of that one batch hardly fell: look at the learning rate, at what "
                "is frozen, and at the annotations"
            )
        if self.unreached:
            more = f" and {len(self.unreached) - 5} more" if len(self.unreached) > 5 else ""
            found.append(
                f"note: no gradient reaches {', '.join(self.unreached[:5])}{more}: they will not "
                "learn"
            )
        return found


def rehearse(engine: Engine, share: Batch, seconds: float = SECONDS) -> Rehearsal:
    """Overfit one batch for a few steps; afterwards everything is as before.

    Args:
        engine: of the run; neither its optimiser nor its scaler is used.
        share: the first images of the run.
        seconds: after which no further step is taken; three are taken in any case.
    """
    network, config = engine.network, engine.config
    piece = micro_batches(share, engine.micro_batch)[0]
    images, targets = to_device(piece, engine.processes.device)
    losses, times = [], []
    waiting = {name for name, each in network.named_parameters() if each.requires_grad}
    # Overflowing is float16's business; whether the batch can be learnt shows in float32.
    precision = "float32" if config.precision == "float16" else config.precision
    with untouched(network):
        optimizer = build_optimizer(parameter_groups(network, config), config)
        network.train()
        for step in range(OVERFIT_STEPS):
            clock = time.perf_counter()
            seed_step(config.seed, step)
            optimizer.zero_grad()
            loss = one_pass(network, engine.criterion, images, targets, precision)
            losses.append(loss.item())
            waiting -= {
                name
                for name, each in network.named_parameters()
                if name in waiting and each.grad is not None and each.grad.any()
            }
            clip_gradients(optimizer, config.clip)
            optimizer.step()
            times.append(time.perf_counter() - clock)
            if step >= 2 and sum(times) > seconds:
                break
    later = times[1:] or times
    return Rehearsal(
        first=losses[0],
        last=min(losses),
        steps=len(losses),
        seconds=sum(later) / len(later) * math.ceil(len(share.targets) / len(piece.targets)),
        unreached=tuple(sorted(waiting)),
    )


# --- words --------------------------------------------------------------------------------


def advice(
    *,
    images: int,
    objects: dict[str, int],
    most_objects: int,
    num_queries: int,
    weights: str,
    batch: int,
    learns_norms: bool,
    epochs: int,
    drop_epoch: int | None,
    steps: int,
    warmup_steps: int,
) -> list[str]:
    """What is known to end badly, in plain words, from the settings and the annotations alone.

    Args:
        images: in the training split.
        objects: annotated training objects of each class.
        most_objects: of one image.
        num_queries: of the detector.
        weights: what training starts from.
        batch: images that a forward pass sees at once.
        learns_norms: whether batch norms follow the batches.
        epochs: of the run.
        drop_epoch: after how many of them the learning rate falls, each time; None: never.
        steps: of the optimiser in the whole run.
        warmup_steps: how many of them the learning rate rises over.
    """
    found = []
    if drop_epoch is not None and (epochs - 1) // drop_epoch >= 2:
        found.append(
            f"the learning rate is divided by 10 after every {drop_epoch} of the {epochs} epochs: "
            f"from epoch {2 * drop_epoch + 1} on hardly anything is learnt; one drop near the end "
            f"is usual, as with --set train.drop_epoch={max(1, round(0.8 * epochs))}"
        )
    if warmup_steps > steps / 4:
        found.append(
            f"the learning rate rises over {warmup_steps} of the {steps} steps of this run, which "
            f"leaves few at its height; --set train.warmup_steps={steps // 10} is a tenth of them"
        )
    if weights == "none" and images < FEW_IMAGES:
        found.append(
            f"training from nothing on {images:,} images: expect little. These detectors need "
            "pretrained features; --weights imagenet or coco makes the difference"
        )
    empty = [name for name, count in objects.items() if count == 0]
    if empty:
        found.append(
            f"{len(empty)} classes have no training objects and cannot be learnt: "
            f"{', '.join(empty[:8])}"
        )
    if most_objects > num_queries:
        found.append(
            f"an image has {most_objects} objects, the detector {num_queries} queries: the "
            f"others cannot be found; set model.num_queries to {most_objects * 2} or more"
        )
    if learns_norms and batch < 4:
        found.append(
            f"batch norms learn from {batch} images at a time, which is too few to be steady: "
            "freeze them (model.backbone_norms=frozen) or let a pass see more images"
        )
    return found


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * size:
            number = seconds / size
            return f"{number:.0f} {unit}" if unit != "h" or number >= 10 else f"{number:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
