"""Monitoring: find the source of values that are not finite, and signs that learning has failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from detrlab.losses.criterion import Criterion
from detrlab.ops.shares import computing
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import (
    Engine,
    StepReport,
    autocast,
    micro_batches,
    running_statistics,
    seed_step,
    to_device,
)

if TYPE_CHECKING:
    from detrlab.data.table import Table

MIN_SPREAD = 0.005
"""Below this standard deviation over queries, all queries predict nearly the same box."""
FIRST_EPOCH = 3
"""No warnings in earlier epochs: their metrics are unreliable."""
MIN_AP = 0.05
"""No warnings about single classes below this AP."""


class Found(NamedTuple):
    """The first value that is not finite.

    Attributes:
        where: in words.
        images: positions in the batch of the images it belongs to; all of them where the value
            belongs to no image.
    """

    where: str
    images: tuple[int, ...]


def explain_skipped(engine: Engine, report: StepReport, table: Table) -> str:
    """Compute a skipped step again, in all processes, and describe the first value not finite.

    Args:
        engine: that skipped the step; its network is left unchanged.
        report: of the step.
        table: the training split.
    """
    suspected = engine.processes.total([len(report.suspects)])[0] > 0
    pieces = report.suspects
    if not suspected:
        pieces = dict(enumerate(micro_batches(report.share, engine.micro_batch)))
    own = None
    for part, piece in pieces.items():
        seed_step(engine.config.seed, report.step, engine.processes.rank, part)
        images, targets = to_device(piece, engine.processes.device)
        precision = engine.config.precision
        with computing(piece.share):
            found = find_nonfinite(engine.network, engine.criterion, images, targets, precision)
        if found is not None:
            files = {table.image_id(i): table.file(i) for i in range(len(table))}
            names = (files[piece.image_ids[index]] for index in found.images)
            own = f"{found.where} (images {', '.join(names)})"
            break
    everywhere = engine.processes.gather(own)
    return next((each for each in everywhere if each), "finite when computed again")


def find_nonfinite(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    precision: str = "float32",
) -> Found | None:
    """Run forward and backward again and describe the first infinity or NaN.

    The network is left unchanged: weights, gradients and running statistics.

    Args:
        network: in the mode and on the device of the step.
        criterion: of the training.
        images: on the network's device.
        targets: one for each image.
        precision: of the training.

    Returns:
        None if everything is finite.
    """
    everything = tuple(range(len(targets)))
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            kind = "weights" if name in dict(network.named_parameters()) else "statistics"
            return Found(f"the {kind} {name} are not finite", everything)
    bad = _rows(images.pixels)
    if bad:
        return Found("the images contain values that are not finite", bad)
    bad = tuple(i for i, target in enumerate(targets) if _rows(target.boxes))
    if bad:
        return Found("the annotated boxes contain values that are not finite", bad)
    statistics = running_statistics(network)
    before = [each.clone() for each in statistics]
    gradients = [each.grad for each in network.parameters()]
    network.zero_grad(set_to_none=True)
    try:
        return _first_nonfinite(network, criterion, images, targets, precision)
    finally:
        with torch.no_grad():
            for now, then in zip(statistics, before, strict=True):
                now.copy_(then)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _first_nonfinite(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    precision: str,
) -> Found | None:
    found: list[Found] = []
    handles = [
        module.register_forward_hook(_observer(name, len(targets), found))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with autocast(images.pixels.device, precision):
            output = network(images, targets)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        # Hooks run when a module ends, so the first is the innermost module that ran first.
        return found[0]
    everything = tuple(range(len(targets)))
    losses = criterion(output, list(targets))
    for name, terms in losses.terms.items():
        for term, value in terms.items():
            if not torch.isfinite(value):
                where = f"the network's outputs are finite, but the {term} loss of {name} is not"
                return Found(where, everything)
    losses.total.backward()
    bad = [
        name
        for name, each in network.named_parameters()
        if each.grad is not None and not torch.isfinite(each.grad).all()
    ]
    if not bad:
        return None
    # The backward pass runs from the last module to the first.
    return Found(
        f"the loss is finite, but the gradients of {len(bad)} parameters are not; the one nearest "
        f"to the loss is {bad[-1]}",
        everything,
    )


def _observer(name: str, images: int, found: list[Found]) -> Any:
    where = f"the first output that is not finite is that of the module {name}"

    def observe(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
        for each in () if found else _tensors(output):
            bad = _rows(each)
            if bad:
                known = len(each) == images
                found.append(Found(where, bad if known else tuple(range(images))))
                return

    return observe


def _rows(values: Tensor) -> tuple[int, ...]:
    """Where along the first axis something is not finite."""
    good = torch.isfinite(values).flatten(1).all(1) if values.dim() > 1 else values.isfinite()
    return tuple((~good).nonzero().flatten().tolist())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def epoch_warnings(rows: Sequence[Mapping[str, Any]], objects: Mapping[str, int]) -> list[str]:
    """What looks wrong after an epoch, each with the usual remedy.

    Args:
        rows: of the epochs so far.
        objects: annotated training objects of each class, by name.
    """
    row = rows[-1]
    if row["epoch"] < FIRST_EPOCH:
        return []
    return [*_collapsed_queries(rows), *_missed_classes(row, objects)]


def _collapsed_queries(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    recent = [row.get("query_spread") for row in rows[-2:]]
    if any(spread is None or spread >= MIN_SPREAD for spread in recent):
        return []
    return [
        "the queries have collapsed: all predict nearly the same box (standard deviation "
        f"{recent[-1]:.4f} of the image). Train longer (DETR's queries need many steps to become "
        "different), or with a larger batch, a lower learning rate, or pretrained weights"
    ]


def _missed_classes(row: Mapping[str, Any], objects: Mapping[str, int]) -> list[str]:
    if row["ap"] is None or row["ap"] < MIN_AP:
        return []
    missed = [name for name, ap in row["per_class"].items() if ap is not None and ap < 0.001]
    if not missed:
        return []
    counted = ", ".join(f"{name} ({objects.get(name, 0)} objects)" for name in missed[:5])
    more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
    return [
        f"{len(missed)} of {len(row['per_class'])} classes have an AP of 0: {counted}{more}. "
        "Check their annotations; rare classes need more images or more epochs"
    ]
