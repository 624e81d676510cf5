"""First weights from another detector: what fits is taken over, and it is said what did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detrlab.errors import UserError

_QUERIES = ("queries.position", "queries.embedding")
_OBJECTNESS = "queries.head.classes."


def start_from(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    known: Sequence[str],
    where: str,
) -> list[str]:
    """Fill a freshly initialised network from a checkpoint of the same architecture.

    Rows of the class heads are taken over for the classes that both know by name; the others
    keep their initial values. A two-stage detector's proposal head keeps its first row, which
    is no class but says whether there is an object. With another number of queries the old
    ones are repeated or cut off.

    Args:
        network: to be filled.
        tensors: by the names of its state dict.
        classes: of the new data, by class index.
        known: classes of the checkpoint, by class index.
        where: the checkpoint, for messages.

    Returns:
        What was not taken over as it is, one sentence each.

    Raises:
        UserError: the checkpoint is of another architecture.
    """
    wanted = network.state_dict()
    problems = [f"lacks {name}" for name in wanted if name not in tensors]
    problems += [f"has {name} too" for name in tensors if name not in wanted]
    rows = _class_rows(classes, known)
    filled = {}
    for name, new in wanted.items():
        old = tensors.get(name)
        if old is None:
            continue
        if _is_class_head(name):
            filled[name] = _fill_classes(name, new, old, rows, len(classes), len(known))
        elif name in _QUERIES and old.shape[1:] == new.shape[1:]:
            filled[name] = old[torch.arange(len(new)) % len(old)]
        elif old.shape == new.shape:
            filled[name] = old
        else:
            problems.append(f"has {name} {tuple(old.shape)}, not {tuple(new.shape)}")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(
            f"{where} is of another architecture: it {'; it '.join(problems[:4])}{more}"
        )
    network.load_state_dict(filled)
    return _notes(wanted, tensors, classes, rows)


def _is_class_head(name: str) -> bool:
    return ".classes." in name and (name.startswith("decoder.heads.") or _OBJECTNESS in name)


def _class_rows(classes: Sequence[str], known: Sequence[str]) -> list[tuple[int, int]]:
    """(new row, old row) of every class that both know."""
    place = {name: index for index, name in enumerate(known)}
    return [(new, place[name]) for new, name in enumerate(classes) if name in place]


def _fill_classes(
    name: str,
    new: Tensor,
    old: Tensor,
    rows: Sequence[tuple[int, int]],
    num_new: int,
    num_old: int,
) -> Tensor:
    filled = new.clone()
    pairs = list(rows)
    if name.startswith(_OBJECTNESS):
        # Its other rows were only ever pushed down, whatever class they are named after.
        pairs = [(row, row) for row in range(len(new))] if len(new) == len(old) else [(0, 0)]
    if len(new) == num_new + 1 and len(old) == num_old + 1:
        pairs.append((num_new, num_old))  # "no object"
    for to, origin in pairs:
        filled[to] = old[origin]
    return filled


def _notes(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    classes: Sequence[str],
    rows: Sequence[tuple[int, int]],
) -> list[str]:
    notes = []
    taken = {new for new, _ in rows}
    fresh = [name for index, name in enumerate(classes) if index not in taken]
    if fresh:
        shown = ", ".join(fresh[:8]) + (" ..." if len(fresh) > 8 else "")
        notes.append(f"the checkpoint does not know {len(fresh)} classes, they start anew: {shown}")
    for name in _QUERIES:
        new, old = len(wanted.get(name, ())), len(tensors.get(name, ()))
        if new != old:
            change = "cut" if new < old else "repeated"
            notes += [f"the checkpoint's {old} queries were {change} to {new}"]
    return notes
