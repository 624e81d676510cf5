"""First weights: where a network starts from, and a report of what happened to every tensor.

Nothing is left random silently. What is taken over, resized, re-initialised or left aside is
said; what would start anew without anybody having asked for it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detrlab.checkpoints import coco
from detrlab.checkpoints.reading import Imported
from detrlab.checkpoints.rules import BOOKKEEPING, listed
from detrlab.config import ModelConfig
from detrlab.errors import UserError
from detrlab.models.build import build_network

if TYPE_CHECKING:
    from detrlab.models.network import Network

ClassRows = Literal["auto", "keep", "seed", "new"]
"""What becomes of the class heads' rows.

* ``auto``: kept if the classes are the same (in whatever order), otherwise new.
* ``keep``: kept by index, whatever the classes are called.
* ``seed``: new, but rows of classes that both know by name are taken over.
* ``new``: all new.
"""

_QUERIES = ("queries.position", "queries.embedding")
_OBJECTNESS = "queries.head.classes."
# Settings that no shape shows and without which the numbers mean nothing.
_MUST_AGREE = ("num_heads", "position_offset")


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor of a network when its first weights were loaded.

    Attributes:
        source: where the weights come from.
        layout: whose names they followed.
        kept: taken over as they are.
        renamed: of the kept ones, our name -> the name in the file, where they differ.
        resized: name -> how its rows were changed.
        reinitialised: name -> why it starts anew.
        left_aside: what the file holds beside, such as the optimiser's state.
        notes: what else is worth knowing, one sentence each.
    """

    source: str
    layout: str
    kept: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    reinitialised: dict[str, str] = field(default_factory=dict)
    left_aside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: one line for each kind of change."""
        total = len(self.kept) + len(self.resized) + len(self.reinitialised)
        renamed = f" ({len(self.renamed)} renamed)" if self.renamed else ""
        lines = [
            f"{self.source} ({self.layout}): kept {len(self.kept)} of {total} tensors{renamed}"
        ]
        lines += _grouped("resized", self.resized)
        lines += _grouped("re-initialised", self.reinitialised)
        if self.left_aside:
            lines.append(f"left aside: {listed(self.left_aside, quote=False)}")
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """For machines: plain values."""
        return {
            "source": self.source,
            "layout": self.layout,
            "kept": list(self.kept),
            "renamed": dict(self.renamed),
            "resized": dict(self.resized),
            "reinitialised": dict(self.reinitialised),
            "left_aside": list(self.left_aside),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def start_from(
    imported: Imported,
    config: ModelConfig,
    classes: Sequence[str],
    *,
    class_rows: ClassRows = "auto",
    reinitialise: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Network, LoadReport]:
    """A network that starts from a checkpoint.

    Args:
        imported: the checkpoint.
        config: the architecture wanted.
        classes: the name of each class wanted, by class index.
        class_rows: what becomes of the class heads, see ``ClassRows``.
        reinitialise: patterns (regular expressions, searched) of tensors that are to start
            anew; without one, a tensor that the checkpoint lacks is a refusal.
        seed: of the initial values of whatever starts anew.

    Raises:
        UserError: a tensor would start anew without having been asked for, a pattern matches
            nothing, or the architectures differ in a way that makes the numbers meaningless.
    """
    network = build_network(config, seed=seed)
    filling = _Filling(imported, config, tuple(classes), class_rows)
    report = filling.fill(network.state_dict(), tuple(reinitialise))
    network.load_state_dict(filling.state, strict=True)
    return network, report


class _Filling:
    """Fills one network's state dict, tensor by tensor, and remembers what it did."""

    def __init__(
        self,
        imported: Imported,
        config: ModelConfig,
        classes: tuple[str, ...],
        class_rows: ClassRows,
    ) -> None:
        self.imported = imported
        self.old = imported.checkpoint
        self.config = config
        self.rows = _plan_classes(self.old.classes, classes, self.old.config, config, class_rows)
        self.state: dict[str, Tensor] = {}
        self.kept: list[str] = []
        self.resized: dict[str, str] = {}
        self.reinitialised: dict[str, str] = {}
        self.problems: dict[str, str] = {}

    def fill(self, fresh: Mapping[str, Tensor], patterns: tuple[str, ...]) -> LoadReport:
        asked = _matching(fresh, patterns)
        self._require_comparable()
        for name, new in fresh.items():
            if name in asked:
                self.state[name] = new
                self.reinitialised[name] = f"asked for by {asked[name]!r}"
            else:
                self._fill_one(name, new)
        if self.problems:
            raise self._refusal()
        unused = [name for name in self.old.state if name not in fresh]
        unused = [name for name in unused if not name.endswith(BOOKKEEPING)]
        return LoadReport(
            source=self.imported.where,
            layout=self.imported.layout,
            kept=tuple(self.kept),
            renamed={n: self.imported.renamed[n] for n in self.kept if n in self.imported.renamed},
            resized=self.resized,
            reinitialised=self.reinitialised,
            left_aside=(*self.imported.left_aside, *unused),
            notes=tuple(self._notes()),
        )

    def _fill_one(self, name: str, new: Tensor) -> None:
        old = self.old.state.get(name)
        if name.endswith(BOOKKEEPING):  # counts batches; means nothing here
            self.state[name] = new
        elif old is None:
            self._miss(name, new, "the checkpoint has none")
        elif ".classes." in name:
            self._fill_classes(name, new, old)
        elif name in _QUERIES and len(old) != len(new) and old.shape[1:] == new.shape[1:]:
            self.state[name] = old[torch.arange(len(new)) % len(old)]
            change = f"the first of {len(old)}" if len(new) < len(old) else f"{len(old)} repeated"
            self.resized[name] = f"{len(new)} rows: {change}"
        elif old.shape != new.shape:
            shapes = f"{tuple(old.shape)} in the checkpoint, {tuple(new.shape)} here"
            self._miss(name, new, shapes)
        else:
            self.state[name] = old
            self.kept.append(name)

    def _fill_classes(self, name: str, new: Tensor, old: Tensor) -> None:
        if old.shape[1:] != new.shape[1:]:
            self._miss(name, new, f"{tuple(old.shape)} in the checkpoint, {tuple(new.shape)} here")
            return
        pairs = self.rows.pairs
        if name.startswith(_OBJECTNESS):
            # Row 0 says whether there is an object, whatever class it is named after; the
            # others were only ever pushed down.
            pairs = [(row, row) for row in range(len(new))] if len(new) == len(old) else [(0, 0)]
        if pairs == [(row, row) for row in range(len(old))] and len(new) == len(old):
            self.state[name] = old
            self.kept.append(name)
            return
        filled = new.clone()
        for to, origin in pairs:
            filled[to] = old[origin]
        self.state[name] = filled
        if len(pairs) == len(new):
            self.resized[name] = "rows put into the order of the data's classes"
        elif name.startswith(_OBJECTNESS):
            self.resized[name] = "row 0, the objectness, kept; the others new"
        else:
            self.reinitialised[name] = self.rows.why

    def _miss(self, name: str, new: Tensor, why: str) -> None:
        self.state[name] = new
        self.problems[name] = why

    def _require_comparable(self) -> None:
        for name in _MUST_AGREE:
            had, wanted = getattr(self.old.config, name), getattr(self.config, name)
            if had != wanted:
                raise UserError(
                    f"{self.imported.where} holds a {self.old.config.preset} with {name} {had!r}; "
                    f"the model ({self.config.preset}) has {wanted!r}, and its weights would mean "
                    "nothing there: choose the same model"
                )

    def _refusal(self) -> UserError:
        had, wanted = self.old.config, self.config
        differing = [
            f"{field} {getattr(had, field)!r} instead of {getattr(wanted, field)!r}"
            for field in type(wanted).model_fields
            if field not in ("preset", "num_classes", "num_queries", "dropout", "backbone_trains")
            and getattr(had, field) != getattr(wanted, field)
        ]
        because = f" ({', '.join(differing)})" if differing else ""
        modules = list(dict.fromkeys(_module(name) for name in self.problems))
        names = list(self.problems)
        return UserError(
            f"{self.imported.where} does not fit this model{because}: {len(names)} tensors would "
            f"start at random, such as {names[0]!r} ({self.problems[names[0]]}). Choose the same "
            "architecture or, if you want them to start anew, ask for it: --reinitialise "
            + " ".join(f"'^{re.escape(name)}\\.'" for name in modules[:8])
        )

    def _notes(self) -> list[str]:
        notes = list(self.rows.notes)
        old, new = self.old.config, self.config
        if self.old.imagenet_backbone:
            notes.append(f"the backbone is {old.backbone} with its ImageNet weights")
        for name, value in (self.imported.assumed or {}).items():
            notes.append(f"the file does not tell {name}: {value} is assumed")
        if old.dilation != new.dilation:
            notes.append(
                "the last stage of the backbone is "
                + ("dilated here and was not" if new.dilation else "not dilated here and was")
                + " when the weights were trained: they need training before they serve"
            )
        if old.backbone_norms != new.backbone_norms:
            notes.append(
                f"the backbone's norms were {old.backbone_norms} and are {new.backbone_norms} here"
            )
        return notes


@dataclass(frozen=True)
class _ClassPlan:
    """Which old row goes where.

    Attributes:
        pairs: (new row, old row) of the decoder heads.
        why: the reason for the rows that start anew.
        notes: for the report.
    """

    pairs: list[tuple[int, int]]
    why: str
    notes: tuple[str, ...] = ()


def _plan_classes(
    old: tuple[str, ...],
    new: tuple[str, ...],
    old_config: ModelConfig,
    new_config: ModelConfig,
    class_rows: ClassRows,
) -> _ClassPlan:
    same_scoring = old_config.scoring == new_config.scoring
    if class_rows in ("keep", "seed") and not same_scoring:
        raise UserError(
            f"the class rows of {old_config.scoring} scoring mean nothing to {new_config.scoring} "
            "scoring: they can only start anew"
        )
    if class_rows == "keep" and len(old) != len(new):
        raise UserError(
            f"the checkpoint has {len(old)} classes and the data {len(new)}: their rows cannot "
            "all be kept"
        )
    # "No object" is the last row of softmax scoring.
    last = [(len(new), len(old))] if new_config.scoring == "softmax" and same_scoring else []
    if class_rows == "keep" or (class_rows == "auto" and same_scoring and old == new):
        return _ClassPlan([(row, row) for row in range(len(new))] + last, "")
    place = {name: row for row, name in enumerate(old)}
    if class_rows == "auto" and same_scoring and set(old) == set(new) and len(place) == len(new):
        return _ClassPlan([(row, place[name]) for row, name in enumerate(new)] + last, "")
    why = f"the checkpoint knows {_counted(old)}, the data {_counted(new)}"
    if class_rows != "seed":
        return _ClassPlan([], why)
    similar = {_plain(name): row for row, name in enumerate(old)}
    pairs = [
        (row, similar[_plain(name)]) for row, name in enumerate(new) if _plain(name) in similar
    ]
    if not pairs:
        raise UserError(
            f"none of the data's classes ({listed(new)}) is among those of the checkpoint "
            f"({listed(name for name in old if not coco.is_unused(name))}): "
            "their rows cannot be seeded"
        )
    seeded = ", ".join(f"{new[to]!r} from {old[origin]!r}" for to, origin in pairs)
    note = f"rows of the class heads seeded by name: {seeded}"
    return _ClassPlan(pairs + last, f"{why}; rows of shared names seeded", (note,))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _counted(classes: Sequence[str]) -> str:
    used = [name for name in classes if not coco.is_unused(name)]
    return f"{len(used)} classes ({listed(used, limit=3, quote=False)})"


def _matching(names: Mapping[str, Tensor], patterns: tuple[str, ...]) -> dict[str, str]:
    """Name -> the pattern that asks for it.

    Raises:
        UserError: a pattern is no regular expression, or matches nothing.
    """
    asked: dict[str, str] = {}
    for pattern in patterns:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise UserError(f"{pattern!r} is not a regular expression ({error})") from None
        if not found:
            raise UserError(
                f"{pattern!r} matches no tensor of the model; their names begin with "
                f"{', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
            )
        asked.update(dict.fromkeys(found, pattern))
    return asked


def _module(name: str) -> str:
    """The part of a name that says where it is, without the tensor's own."""
    return ".".join(name.split(".")[:3])


def _grouped(verb: str, changes: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in changes.items():
        reasons.setdefault(why, []).append(name)
    return [
        f"{verb}: {listed(names, limit=4, quote=False)} ({why})" for why, names in reasons.items()
    ]
