"""An eye on the training: where a number stops being one, and signs that learning has stopped.

What it finds it says together with what usually helps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detrlab import files
from detrlab.errors import UserError
from detrlab.losses.criterion import Criterion, Losses
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import autocast, running_statistics, seed_step

if TYPE_CHECKING:
    from detrlab.data.batching import Batch

SPREAD = 0.005
"""Below this standard deviation over queries, all of them say nearly the same box."""
CALM_EPOCHS = 3
"""Epochs in which nothing is said: early on every detector looks ill."""
LEARNT = 0.05
"""AP from which on a class at zero stands out."""


@dataclass(frozen=True)
class Trouble:
    """Where a number stopped being finite.

    Attributes:
        where: a parameter, the input, a module of the network, the loss, or a gradient.
        what: one sentence for people.
    """

    where: str
    what: str


def find_trouble(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    *,
    precision: str = "float32",
) -> Trouble | None:
    """Run forward and backward once more and say where the first infinity or NaN appears.

    The network is left as it was: weights, gradients and running statistics.

    Args:
        network: in the mode and on the device of the step in question.
        criterion: of the training.
        images: on the network's device.
        targets: one for each image.
        precision: of the training.

    Returns:
        None when everything is finite.
    """
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            return Trouble(name, f"the weights {name} are not finite any more")
    if not torch.isfinite(images.pixels).all():
        return Trouble("input", "the images themselves hold values that are not finite")
    for target in targets:
        if not torch.isfinite(target.boxes).all():
            return Trouble("input", "the annotated boxes hold values that are not finite")
    statistics = running_statistics(network)
    before = [each.clone() for each in statistics]
    gradients = {name: each.grad for name, each in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = None
    try:
        return _rerun(network, criterion, images, targets, precision)
    finally:
        with torch.no_grad():
            for now, then in zip(statistics, before, strict=True):
                now.copy_(then)
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name]


def _rerun(
    network: nn.Module,
    criterion: Criterion,
    images: ImageBatch,
    targets: Sequence[Target],
    precision: str,
) -> Trouble | None:
    found: list[str] = []
    handles = [
        module.register_forward_hook(_observer(name, found))
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
        # Modules report when they end, so the first is the innermost one that ran first.
        return Trouble(found[0], f"the output of {found[0]} is the first that is not finite")
    losses = criterion(output, list(targets))
    if not torch.isfinite(losses.total):
        return Trouble("loss", f"the outputs are finite, but {_bad_term(losses)} is not")
    losses.total.backward()
    bad = [
        name
        for name, each in network.named_parameters()
        if each.grad is not None and not torch.isfinite(each.grad).all()
    ]
    if not bad:
        return None
    # The backward pass runs from the last module to the first: the last name is nearest.
    return Trouble(
        bad[-1],
        f"the loss is finite, but the gradients of {len(bad)} tensors are not, the nearest to "
        f"the loss being {bad[-1]}",
    )


def _observer(name: str, found: list[str]) -> Any:
    def observe(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
        if not found and not all(torch.isfinite(each).all() for each in _tensors(output)):
            found.append(name)

    return observe


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def _bad_term(losses: Losses) -> str:
    for name, terms in losses.terms.items():
        for term, value in terms.items():
            if not torch.isfinite(value):
                return f"the {term} loss of set {name}"
    return "the sum of the losses"


# --- a reproduction on disk ---------------------------------------------------------------


def save_reproduction(
    folder: Path, network: nn.Module, batch: Batch, about: Mapping[str, Any]
) -> Path:
    """Write what it takes to see the trouble again: weights, images, targets, settings.

    Args:
        folder: to write to.
        network: as it was in the step.
        batch: the images and targets of one micro-batch.
        about: plain values, among them ``seed``, ``step``, ``rank``, ``part`` and ``precision``.

    Returns:
        The folder.
    """
    from safetensors.torch import save as serialize

    tensors = {f"network.{name}": each for name, each in network.state_dict().items()}
    tensors["pixels"], tensors["padding"] = batch.images
    for index, target in enumerate(batch.targets):
        tensors[f"target.{index}.labels"], tensors[f"target.{index}.boxes"] = target
    plain = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    files.write_bytes(folder / "tensors.safetensors", serialize(plain))
    files.write_json(folder / "about.json", dict(about))
    return folder


def replay(folder: Path, network: nn.Module, criterion: Criterion) -> Trouble | None:
    """Run what ``save_reproduction`` wrote, and say where the first infinity or NaN appears.

    Args:
        folder: of the reproduction.
        network: of the run's architecture, on any device; gets the weights of the reproduction.
        criterion: of the run.

    Raises:
        UserError: the folder holds no reproduction.
    """
    from safetensors.torch import load_file

    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        device = next(network.parameters()).device
        tensors = load_file(folder / "tensors.safetensors", device=str(device))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no reproduction: {error}") from None
    network.load_state_dict(
        {
            name.removeprefix("network."): each
            for name, each in tensors.items()
            if name.startswith("network.")
        }
    )
    targets = [
        Target(tensors[f"target.{index}.labels"], tensors[f"target.{index}.boxes"])
        for index in range(len(tensors["pixels"]))
    ]
    seed_step(about["seed"], about["step"], about["rank"], about["part"])
    images = ImageBatch(tensors["pixels"], tensors["padding"])
    return find_trouble(network.train(), criterion, images, targets, precision=about["precision"])


# --- signs over epochs --------------------------------------------------------------------


def signs(rows: Sequence[Mapping[str, Any]], objects: Mapping[str, int]) -> list[str]:
    """What looks wrong after an epoch, each with what usually helps.

    Args:
        rows: of the epochs so far.
        objects: annotated training objects of each class, by name.
    """
    row = rows[-1]
    if row["epoch"] < CALM_EPOCHS:
        return []
    return [*_collapse(rows), *_dead_classes(row, objects)]


def _collapse(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    recent = [row.get("query_spread") for row in rows[-2:]]
    if any(spread is None or spread >= SPREAD for spread in recent):
        return []
    return [
        f"the queries have collapsed: their boxes differ by {recent[-1]:.4f} of the image only, "
        "so every query says the same. Train longer (DETR needs many steps before its queries "
        "part), with a larger batch, a lower learning rate, or pretrained weights"
    ]


def _dead_classes(row: Mapping[str, Any], objects: Mapping[str, int]) -> list[str]:
    if row["ap"] is None or row["ap"] < LEARNT:
        return []
    dead = [name for name, ap in row["per_class"].items() if ap is not None and ap < 0.001]
    if not dead:
        return []
    counted = ", ".join(f"{name} ({objects.get(name, 0)} objects)" for name in dead[:5])
    more = f" and {len(dead) - 5} more" if len(dead) > 5 else ""
    return [
        f"{len(dead)} of {len(row['per_class'])} classes are not found at all: {counted}{more}. "
        "Look at their annotations; rare classes need more images or more epochs"
    ]
