"""The criterion: every supervised set of a model's output against the objects.

Source: arXiv 2005.12872, section 3.1; arXiv 2010.04159, section 4 and appendix A.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.losses.matching import HungarianMatcher, Match
from detrlab.losses.pairs import Counts, MatchedPairs, Weighted, precise, tally, total_counts
from detrlab.losses.union import of_union, union
from detrlab.scoring import Scoring
from detrlab.structures import FINAL, ModelOutput, Pairs, SupervisedSet, Target


class Losses(NamedTuple):
    """The losses of a batch.

    Attributes:
        total: the weighted sum over all sets, the scalar to differentiate.
        terms: unweighted losses by set name, then by term name.
        class_error: percent of the matched queries whose best logit is another class, in the
            last layer; 100 when nothing was matched. Not trained.
        cardinality_error: mean difference between the number of queries that predict an object
            and the number of objects, in the last layer. Not trained.
        query_spread: standard deviation of the last layer's boxes over the queries of an image,
            mean over coordinates and images; near 0 when all queries predict the same box.
        matches: the pairs of each matched set, by set name.
        invalid_costs: entries of the matching costs that were NaN or infinite.
    """

    total: Tensor
    terms: dict[str, dict[str, Tensor]]
    class_error: Tensor
    cardinality_error: Tensor
    query_spread: Tensor
    matches: dict[str, list[Match]]
    invalid_costs: int

    @property
    def final(self) -> dict[str, Tensor]:
        """The last decoder layer's terms."""
        return self.terms[FINAL]

    def detach(self) -> Losses:
        """The same numbers without their graph."""
        terms = {
            name: {term: value.detach() for term, value in row.items()}
            for name, row in self.terms.items()
        }
        return self._replace(total=self.total.detach(), terms=terms)

    @property
    def pairs(self) -> int:
        """How many queries of the last layer were matched to an object."""
        return sum(len(match.queries) for match in self.matches[FINAL])

    def measures(self, images: float = 1.0, pairs: float = 1.0) -> dict[str, Tensor]:
        """The numbers to log; those of a step's micro-batches add up to the step's.

        The losses are sums over the step already; the others are means and count by share.
        Earlier decoder layers are left out.

        Args:
            images: the share of the step's images that this micro-batch holds.
            pairs: the share of the step's matched pairs.
        """
        named = {"loss": self.total}
        for name, row in self.terms.items():
            if "layer" not in name:
                prefix = "loss" if name == FINAL else f"loss_{name.removesuffix(f'_{FINAL}')}"
                named |= {f"{prefix}_{term}": value for term, value in row.items()}
        named["class_error"] = self.class_error * pairs
        named["cardinality_error"] = self.cardinality_error * images
        named["query_spread"] = self.query_spread * images
        return named


@dataclass(frozen=True)
class Criterion:
    """Matches a detector's output to the objects and computes its losses.

    Attributes:
        terms: the losses of each set, see ``terms``.
        matcher: finds the pairs of sets that bring none.
        scoring: how the logits are read, for the measures that are only logged.
        auxiliary: also train the decoder layers before the last. Other sets (proposals) are
            always trained: without a loss the first stage would learn nothing.
        late: the matcher of the last epochs, where a detector has one.
    """

    terms: tuple[Weighted, ...]
    matcher: HungarianMatcher
    scoring: Scoring
    auxiliary: bool = True
    late: HungarianMatcher | None = None

    def at_the_end(self) -> Criterion:
        """With the matcher of the last epochs."""
        return self if self.late is None else replace(self, matcher=self.late)

    def __call__(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        counts: Counts | None = None,
        sums: Callable[[Sequence[float]], Sequence[float]] = tuple,
    ) -> Losses:
        """The losses of one (micro-)batch.

        Args:
            output: of the detector, for B images.
            targets: B of them, on the same device.
            counts: what the whole optimiser step divides by; None: this batch is the step.
            sums: adds numbers up over the processes that compute such a batch at the same time.

        Returns:
            Losses in float32 at least, whatever autocast chose for the output.
        """
        if counts is None:
            counts = total_counts([tally(targets, output.final.logits.shape[1])])
        # Autocast would run some of the arithmetic below in half precision.
        with torch.autocast(output.final.logits.device.type, enabled=False):
            return self._compute(output, targets, counts, sums)

    def _compute(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        counts: Counts,
        sums: Callable[[Sequence[float]], Sequence[float]],
    ) -> Losses:
        sets = [
            each._replace(predictions=precise(each.predictions))
            for each in output.sets
            if self.auxiliary or not each.auxiliary
        ]
        pairs, matches, invalid = self._assign(sets, targets)
        labels = torch.cat([each.labels for each in targets])  # (N of the batch,)
        boxes = torch.cat([each.boxes for each in targets]).to(sets[0].predictions.boxes.dtype)
        batch, queries = sets[-1].predictions.logits.shape[0], output.final.logits.shape[1]
        agreed, union_counts = pairs[FINAL], counts
        if any(term.union for term in self.terms):
            agreed = union(list(matches.values()), targets, queries).to(labels.device)
            union_counts = of_union(counts, *sums([len(agreed.queries), len(labels)]))
        taken = (len(agreed.queries), batch * queries - len(agreed.queries))

        def matched(each: SupervisedSet, found: Pairs, counts: Counts) -> MatchedPairs:
            wanted = labels[found.objects]
            return MatchedPairs(
                each.predictions,
                found.queries,
                torch.zeros_like(wanted) if each.class_agnostic else wanted,
                boxes[found.objects],
                counts._replace(objects=counts.objects * each.repeats),
                taken,
            )

        terms: dict[str, dict[str, Tensor]] = {}
        totals = []
        for each in sets:
            own = matched(each, pairs[each.name], counts)
            # Denoising queries bring their pairs; the others can agree on some.
            shared = own if each.pairs is not None else matched(each, agreed, union_counts)
            found = [term.function(shared if term.union else own) for term in self.terms]
            row = {
                term.name: value
                for term, value in zip(self.terms, found, strict=True)
                if value is not None
            }
            weighted = [term.weight * row[term.name] for term in self.terms if term.name in row]
            terms[each.name] = row
            total = torch.stack(weighted).sum()
            totals.append(total if each.weight == 1.0 else each.weight * total)
        logits = precise(output.final.logits)
        return Losses(
            total=torch.stack(totals).sum(),
            terms=terms,
            class_error=_class_error(logits, pairs[FINAL], labels),
            cardinality_error=_cardinality_error(logits, self.scoring, targets),
            query_spread=precise(output.final.boxes.detach()).std(1, correction=0).mean(),
            matches=matches,
            invalid_costs=invalid,
        )

    def _assign(
        self, sets: Sequence[SupervisedSet], targets: Sequence[Target]
    ) -> tuple[dict[str, Pairs], dict[str, list[Match]], int]:
        """The pairs of each set by name, on the sets' device; the matches; invalid costs."""
        pairs = {each.name: each.pairs for each in sets if each.pairs is not None}
        matches: dict[str, list[Match]] = {}
        invalid = 0
        alike: dict[tuple[bool, torch.Size], list[SupervisedSet]] = {}
        for each in sets:
            if each.pairs is None:
                key = (each.class_agnostic, each.predictions.logits.shape)
                alike.setdefault(key, []).append(each)
        for (agnostic, shape), group in alike.items():
            wanted = [
                Target(torch.zeros_like(each.labels), each.boxes) if agnostic else each
                for each in targets
            ]
            matching = self.matcher([each.predictions for each in group], wanted)
            invalid += matching.invalid
            flat = torch.stack([flat_pairs(rows, targets, shape[1]) for rows in matching.sets])
            # One transfer for all sets.
            flat = flat.to(group[0].predictions.logits.device, non_blocking=True)
            for each, rows, indices in zip(group, matching.sets, flat, strict=True):
                pairs[each.name] = Pairs(*indices)
                matches[each.name] = rows
        return pairs, matches, invalid


def flat_pairs(matches: Sequence[Match], targets: Sequence[Target], num_queries: int) -> Tensor:
    """The pairs of all images as (2, P) indices into the batch's queries and objects."""
    queries = [image * num_queries + match.queries for image, match in enumerate(matches)]
    starts = [0, *itertools.accumulate(len(target.labels) for target in targets)]
    objects = [start + match.objects for start, match in zip(starts, matches, strict=False)]
    return torch.stack([torch.cat(queries), torch.cat(objects)])


@torch.no_grad()
def _class_error(logits: Tensor, pairs: Pairs, labels: Tensor) -> Tensor:
    if len(pairs.queries) == 0:
        return logits.new_tensor(100.0)
    hits = logits.flatten(0, 1)[pairs.queries].argmax(-1) == labels[pairs.objects]
    return 100 - 100 * hits.float().mean()


@torch.no_grad()
def _cardinality_error(logits: Tensor, scoring: Scoring, targets: Sequence[Target]) -> Tensor:
    sizes = torch.tensor([len(each.labels) for each in targets], device=logits.device)
    return (scoring.claims(logits).sum(1) - sizes).abs().float().mean()
