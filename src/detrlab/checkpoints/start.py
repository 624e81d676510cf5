"""Initial weights from a checkpoint, and a report of what happened to every tensor.

The report lists what was kept, resized, re-initialised or unused. A tensor that would stay at its
random values without the user having asked for it is an error.
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
from detrlab.presets import build_network
from detrlab.presets.deformable import DeformableDetrTwoStage

if TYPE_CHECKING:
    from detrlab.models.network import Network

ClassRows = Literal["auto", "keep", "seed", "new"]
"""How the rows of the class heads are initialised.

* ``auto``: kept if the classes are the same, in any order; otherwise new.
* ``keep``: kept by index; class names are ignored.
* ``seed``: new, except that rows of classes with the same name are copied.
* ``new``: all new.
"""

_QUERIES = ("queries.position", "queries.embedding", "queries.content", "queries.source.content")
_LABELS = "queries.labels"  # of denoising queries; a row for each class
_OBJECTNESS = "queries.head.classes."  # of two-stage Deformable DETR
# What no shape shows and without which the weights are meaningless.
_MUST_AGREE = ("num_heads", "position_offset")


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor of a network when its initial weights were loaded.

    Attributes:
        source: where the weights come from.
        layout: the naming scheme of the file.
        kept: loaded without change.
        renamed: of the kept ones, our name -> the name in the file, where they differ.
        resized: name -> how its rows were changed.
        reinitialised: name -> why it was re-initialised.
        left_aside: unused contents of the file, such as the optimiser's state.
        notes: further remarks, one sentence each.
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
        """One readable line for each kind of change."""
        total = len(self.kept) + len(self.resized) + len(self.reinitialised)
        renamed = f" ({len(self.renamed)} renamed)" if self.renamed else ""
        lines = [
            f"{self.source} ({self.layout}): kept {len(self.kept)} of {total} tensors{renamed}"
        ]
        lines += _grouped("resized", self.resized)
        lines += _grouped("re-initialised", self.reinitialised)
        if self.left_aside:
            lines.append(f"unused: {listed(self.left_aside, quote=False)}")
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
        class_rows: how the class heads are initialised, see ``ClassRows``.
        reinitialise: patterns (regular expressions, searched) of tensors to re-initialise.
            A tensor that the checkpoint lacks and no pattern matches is an error.
        seed: of the values of re-initialised tensors.

    Raises:
        UserError: a tensor is missing and was not asked to be re-initialised, a pattern matches
            nothing, or the architectures are incompatible.
    """
    network = build_network(config, seed=seed)
    filling = _Filling(imported, config, tuple(classes), class_rows)
    report = filling.fill(network.state_dict(), tuple(reinitialise))
    network.load_state_dict(filling.state, strict=True)
    return network, report


class _Filling:
    """Fills one network's state dict, tensor by tensor, and records what it did."""

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
                self.reinitialised[name] = f"requested by {asked[name]!r}"
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
        if name.endswith(BOOKKEEPING):  # a counter of batches, not a weight
            self.state[name] = new
        elif old is None:
            self._miss(name, new, "the checkpoint has none")
        elif ".classes." in name or name == _LABELS:
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
        objectness = name.startswith(_OBJECTNESS) and isinstance(
            self.config, DeformableDetrTwoStage
        )
        rows = self.config.num_classes if name == _LABELS else len(new)
        if objectness:
            # Row 0 is the objectness of all classes; the others were only trained towards 0.
            pairs = [(row, row) for row in range(len(new))] if len(new) == len(old) else [(0, 0)]
        if pairs == [(row, row) for row in range(rows)] and len(new) == len(old):
            self.state[name] = old
            self.kept.append(name)
            return
        filled = new.clone()
        for to, origin in pairs:
            filled[to] = old[origin]
        self.state[name] = filled
        if len(pairs) == rows:
            self.resized[name] = "rows put into the order of the data's classes"
        elif objectness:
            self.resized[name] = "row 0, the objectness, kept; the others new"
        else:
            self.reinitialised[name] = self.rows.why

    def _miss(self, name: str, new: Tensor, why: str) -> None:
        self.state[name] = new
        self.problems[name] = why

    def _require_comparable(self) -> None:
        for name in _MUST_AGREE:
            had, wanted = getattr(self.old.config, name, None), getattr(self.config, name, None)
            if had != wanted:
                raise UserError(
                    f"{self.imported.where} holds a {self.old.config.preset} with {name} {had!r}; "
                    f"the model ({self.config.preset}) has {wanted!r}, so the weights do not "
                    "fit: choose the same model"
                )

    def _refusal(self) -> UserError:
        had, wanted = self.old.config, self.config
        theirs = had.to_dict()
        differing = [
            f"{name} {theirs[name]!r} instead of {value!r}"
            for name, value in wanted.to_dict().items()
            if name not in ("num_classes", "num_queries", "dropout", "backbone_trains")
            and theirs.get(name, value) != value
        ]
        because = f" ({', '.join(differing)})" if differing else ""
        modules = list(dict.fromkeys(_module(name) for name in self.problems))
        names = list(self.problems)
        return UserError(
            f"{self.imported.where} does not fit this model{because}: {len(names)} tensors would "
            f"stay random, such as {names[0]!r} ({self.problems[names[0]]}). Choose the same "
            "architecture or, to re-initialise them, add --reinitialise "
            + " ".join(f"'^{re.escape(name)}\\.'" for name in modules[:8])
        )

    def _notes(self) -> list[str]:
        notes = list(self.rows.notes)
        old, new = self.old.config, self.config
        if self.old.imagenet_backbone:
            notes.append(f"the backbone is {old.backbone} with its ImageNet weights")
        for name, value in (self.imported.assumed or {}).items():
            notes.append(f"the file does not state {name}: {value} is assumed")
        if old.dilation != new.dilation:
            notes.append(
                "the last stage of the backbone is "
                + ("dilated here and was not" if new.dilation else "not dilated here and was")
                + " when the weights were trained: train them before use"
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
        why: the reason for the rows that are re-initialised.
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
            f"the class rows of {old_config.preset} (another scoring) cannot serve "
            f"{new_config.preset}: use class_rows new"
        )
    if class_rows == "keep" and len(old) != len(new):
        raise UserError(
            f"the checkpoint has {len(old)} classes and the data {len(new)}: class_rows keep needs "
            "the same number"
        )
    # "No object" is the last row of softmax scoring.
    extra = new_config.scoring.num_logits(len(new)) > len(new)
    last = [(len(new), len(old))] if extra and same_scoring else []
    if class_rows == "keep" or (class_rows == "auto" and same_scoring and old == new):
        return _ClassPlan([(row, row) for row in range(len(new))] + last, "")
    place = {name: row for row, name in enumerate(old)}
    if class_rows == "auto" and same_scoring and set(old) == set(new) and len(place) == len(new):
        return _ClassPlan([(row, place[name]) for row, name in enumerate(new)] + last, "")
    why = f"the checkpoint has {_counted(old)}, the data {_counted(new)}"
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
            "class_rows seed has nothing to copy"
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
    """Name -> the pattern that matches it.

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
    """The name of the module that holds a tensor."""
    return ".".join(name.split(".")[:3])


def _grouped(verb: str, changes: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in changes.items():
        reasons.setdefault(why, []).append(name)
    return [
        f"{verb}: {listed(names, limit=4, quote=False)} ({why})" for why, names in reasons.items()
    ]
