"""Renaming: one table per layout maps our tensor names to those of another tool.

A layout is a table of pairs (our name, their names). Names hold placeholders, the same on both
sides: ``{i}`` is a number, ``{rest}`` all that remains. On their side there may also stand

* ``{last}``: the number of decoder layers, which is where a two-stage model lists the head of
  its proposals,
* ``{every}``: one name for every decoder layer, all of the same tensor,
* ``[q|k|v]``: names of the parts that are stacked to make ours.

Several names in one row are aliases of one tensor. Exactly one row names each of our tensors,
and every tensor of theirs is consumed, or reported as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.errors import UserError

Row = tuple[str, tuple[str, ...]]
Parts = tuple[str, ...]
"""The names whose tensors, stacked, make one of ours; nearly always a single one."""

BOOKKEEPING = ("num_batches_tracked", "total_params", "total_ops")
"""Suffixes of counters; they are no weights and are dropped."""


@dataclass(frozen=True)
class Layout:
    """How another tool names the tensors of one architecture.

    Attributes:
        name: for messages.
        rows: the table.
        decoder_layers: what ``{every}`` and ``{last}`` stand for.
        needs_all_aliases: whether a file must hold every alias of a tensor (PyTorch's own
            files do; safetensors keep only one of them).
        fallbacks: where a tensor is read from when the file has none of its names.
        counts_batches: whether their norms hold ``num_batches_tracked``: it is written, and
            starts from 0 when it is read.
        derived: tensors of theirs that follow from the architecture: they are written, and
            ignored in a file.
    """

    name: str
    rows: tuple[Row, ...]
    decoder_layers: int
    needs_all_aliases: bool = True
    fallbacks: tuple[Row, ...] = ()
    counts_batches: bool = False
    derived: Mapping[str, Tensor] = field(default_factory=dict)

    def names(self, ours: str) -> tuple[Parts, ...]:
        """Their aliases for one of our names, each as the parts to stack.

        Raises:
            KeyError: no row names it.
        """
        found = self._look_up(ours, self.rows)
        if not found:
            raise KeyError(ours)
        return found

    def fallback(self, ours: str) -> tuple[Parts, ...]:
        """Where else to read one of our tensors; nearly always empty."""
        return self._look_up(ours, self.fallbacks)

    def _look_up(self, ours: str, rows: tuple[Row, ...]) -> tuple[Parts, ...]:
        for pattern, theirs in rows:
            match = _compiled(pattern).fullmatch(ours)
            if match is not None:
                return tuple(
                    _parts(name)
                    for template in theirs
                    for name in self._every(_fill(template, match.groupdict()))
                )
        return ()

    def _every(self, name: str) -> list[str]:
        name = name.replace("{last}", str(self.decoder_layers))
        if "{every}" not in name:
            return [name]
        return [name.replace("{every}", str(layer)) for layer in range(self.decoder_layers)]


class Translation(NamedTuple):
    """A foreign state dict in our names.

    Attributes:
        tensors: by our names; those that share memory in the file share it here.
        missing: our names that the file has no tensor for, with the name it should have.
        unknown: names in the file that no row consumed.
    """

    tensors: dict[str, Tensor]
    missing: dict[str, str]
    unknown: list[str]


def clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of data-parallel wrappers and without bookkeeping entries."""
    prefixed = bool(tensors) and all(name.startswith("module.") for name in tensors)
    return {
        name.removeprefix("module.") if prefixed else name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(BOOKKEEPING)
    }


def translate(tensors: Mapping[str, Tensor], layout: Layout, wanted: Iterable[str]) -> Translation:
    """Rename a foreign state dict to our names.

    Args:
        tensors: the foreign state dict.
        layout: the table to use.
        wanted: all names of our network.

    Raises:
        UserError: aliases that should be one tensor differ.
    """
    tensors = clean(tensors)
    found: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    consumed: set[str] = set()
    for ours in wanted:
        if ours.endswith(BOOKKEEPING):
            if layout.counts_batches:
                found[ours] = torch.tensor(0)
            continue
        aliases = layout.names(ours)
        consumed.update(name for parts in aliases for name in parts)
        present = _present(aliases, tensors) or _present(layout.fallback(ours), tensors)
        absent = [name for parts in aliases for name in parts if name not in tensors]
        if not present or (absent and layout.needs_all_aliases):
            missing[ours] = absent[0]
            continue
        found[ours] = _stack(tensors, present[0])
        for other in present[1:]:
            if not _same(found[ours], _stack(tensors, other)):
                raise UserError(
                    f"{present[0][0]!r} and {other[0]!r} should be the same tensor in "
                    f"{layout.name} weights of this model, but they differ: the file is "
                    "damaged, or it is another model (with iterative refinement?)"
                )
    consumed.update(layout.derived)
    return Translation(found, missing, [name for name in tensors if name not in consumed])


def translate_strictly(
    tensors: Mapping[str, Tensor], layout: Layout, wanted: Iterable[str]
) -> dict[str, Tensor]:
    """As ``translate``, but every name must be consumed and every tensor found.

    Raises:
        UserError: names are unknown or missing; they are listed.
    """
    translation = translate(tensors, layout, wanted)
    problems = []
    if translation.missing:
        problems.append(f"lacks {listed(translation.missing.values())}")
    if translation.unknown:
        problems.append(f"holds unknown {listed(translation.unknown)}")
    if problems:
        raise UserError(
            f"the state dict does not fit the {layout.name} layout of this model: it "
            + " and ".join(problems)
        )
    return translation.tensors


def export(
    tensors: Mapping[str, Tensor], layout: Layout, *, one_name_each: bool = False
) -> dict[str, Tensor]:
    """Our state dict in their names.

    Args:
        tensors: by our names.
        layout: the table to use.
        one_name_each: write the first of several aliases only, as safetensors needs it;
            otherwise all of them, which then share memory.
    """
    exported: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        if ours.endswith(BOOKKEEPING) and not layout.counts_batches:
            continue
        aliases = layout.names(ours)
        for parts in aliases[:1] if one_name_each else aliases:
            pieces = tensor.chunk(len(parts)) if tensor.dim() else (tensor,) * len(parts)
            exported.update(zip(parts, pieces, strict=True))
    return {**exported, **layout.derived}


def listed(names: Iterable[str], limit: int = 5, *, quote: bool = True) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) if quote else name for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    expression = re.escape(pattern)
    expression = expression.replace(r"\{rest\}", "(?P<rest>.+)")
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", expression))


def _fill(template: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        template = template.replace(f"{{{placeholder}}}", value)
    return template


def _parts(name: str) -> Parts:
    """``"a.[q|k]_proj"`` -> ``("a.q_proj", "a.k_proj")``."""
    match = re.search(r"\[([^\]]+)\]", name)
    if match is None:
        return (name,)
    return tuple(
        name[: match.start()] + choice + name[match.end() :] for choice in match[1].split("|")
    )


def _stack(tensors: Mapping[str, Tensor], parts: Parts) -> Tensor:
    if len(parts) == 1:
        return tensors[parts[0]]
    return torch.cat([tensors[name] for name in parts])


def _present(aliases: Iterable[Parts], tensors: Mapping[str, Tensor]) -> list[Parts]:
    return [parts for parts in aliases if all(name in tensors for name in parts)]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)
