"""The loss: every decoder layer, and the proposals of a two-stage detector, against the objects.

Source: arXiv 2005.12872, section 3.1; arXiv 2010.04159, section 4 and appendix A.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.boxes import cxcywh_to_xyxy, generalized_box_iou
from detrlab.scoring import UNMATCHED, Counts, Scoring
from detrlab.structures import ModelOutput, Predictions, Target
from detrlab.training.matcher import Match, Weights, match_sets, precise


class LossTerms(NamedTuple):
    """The losses of one set of predictions, not yet weighted; scalars."""

    classes: Tensor
    boxes: Tensor
    giou: Tensor

    def weighted(self, weights: Weights) -> Tensor:
        """Their weighted sum."""
        return (
            weights.classes * self.classes + weights.boxes * self.boxes + weights.giou * self.giou
        )

    def detach(self) -> LossTerms:
        """The same numbers without the graph behind them."""
        return LossTerms(*(term.detach() for term in self))


class Losses(NamedTuple):
    """What a batch costs.

    Attributes:
        total: the weighted sum over all sets, the scalar to differentiate.
        layers: of each decoder layer; only of the last without auxiliary losses.
        proposals: of the first stage; None without one.
        class_error: percent of the matched queries whose best logit is another class, in the
            last layer; 100 when nothing was matched. Not trained.
        cardinality_error: mean difference between the number of queries that claim an object
            and the number of objects, in the last layer. Not trained.
        query_spread: standard deviation of the last layer's boxes over the queries of an image,
            mean over coordinates and images; near 0 when all queries say the same.
        matches: the pairs each of ``layers`` was judged by.
        invalid_costs: entries of the matching costs that were NaN or infinite.
    """

    total: Tensor
    layers: tuple[LossTerms, ...]
    proposals: LossTerms | None
    class_error: Tensor
    cardinality_error: Tensor
    query_spread: Tensor
    matches: tuple[list[Match], ...]
    invalid_costs: int

    @property
    def final(self) -> LossTerms:
        """The last decoder layer's terms."""
        return self.layers[-1]

    def detach(self) -> Losses:
        """The same numbers without the graph behind them."""
        return self._replace(
            total=self.total.detach(),
            layers=tuple(terms.detach() for terms in self.layers),
            proposals=None if self.proposals is None else self.proposals.detach(),
        )

    @property
    def pairs(self) -> int:
        """How many queries the last layer's matching gave an object."""
        return sum(len(match.queries) for match in self.matches[-1])

    def measures(self, images: float = 1.0, pairs: float = 1.0) -> dict[str, Tensor]:
        """The numbers worth logging; those of a step's micro-batches add up to the step's.

        The losses are sums over the step already; the others are means and count by share.

        Args:
            images: the share of the step's images that this micro-batch holds.
            pairs: the share of the step's matched pairs.
        """
        named = {
            "loss": self.total,
            "loss_class": self.final.classes,
            "loss_box": self.final.boxes,
            "loss_giou": self.final.giou,
        }
        if self.proposals is not None:
            named["loss_proposal_class"] = self.proposals.classes
            named["loss_proposal_box"] = self.proposals.boxes
            named["loss_proposal_giou"] = self.proposals.giou
        named["class_error"] = self.class_error * pairs
        named["cardinality_error"] = self.cardinality_error * images
        named["query_spread"] = self.query_spread * images
        return named


def tally(targets: Iterable[Target], num_queries: int) -> Counts:
    """The counts of some images. Add those of a whole step up with ``total_counts``."""
    sizes = [len(target.labels) for target in targets]
    return Counts(
        objects=float(sum(sizes)),
        matched=float(sum(min(size, num_queries) for size in sizes)),
        queries=float(len(sizes) * num_queries),
    )


def total_counts(parts: Iterable[Sequence[float]]) -> Counts:
    """The counts of an optimiser step from those of its micro-batches and processes.

    Differs from the reference, which divides by each process's own mean: here a step means the
    same however it is split.
    """
    objects, matched, queries = (sum(column) for column in zip(*parts, strict=True))
    return Counts(max(1.0, objects), matched, queries)


@dataclass(frozen=True)
class Criterion:
    """Matches a detector's output to the objects and says what it costs.

    Attributes:
        scoring: how the logits are read.
        weights: of the three terms, in matching and loss.
        auxiliary: also judge the decoder layers before the last. The proposals are always
            judged: without a loss the first stage would learn nothing.
    """

    scoring: Scoring
    weights: Weights
    auxiliary: bool = True

    def __call__(
        self, output: ModelOutput, targets: Sequence[Target], counts: Counts | None = None
    ) -> Losses:
        """The losses of one (micro-)batch.

        Args:
            output: of the detector, for B images.
            targets: B of them, on the same device.
            counts: what the whole optimiser step divides by; None: this batch is the step.

        Returns:
            Losses in float32 at least, whatever autocast chose for the output.
        """
        if counts is None:
            counts = total_counts([tally(targets, output.final.logits.shape[1])])
        # Autocast would run some of the arithmetic below in half precision.
        with torch.autocast(output.final.logits.device.type, enabled=False):
            return self._judge(output, targets, counts)

    def _judge(self, output: ModelOutput, targets: Sequence[Target], counts: Counts) -> Losses:
        layers = output.layers if self.auxiliary else output.layers[-1:]
        terms, matches, invalid = self._judge_sets(layers, targets, counts)
        total = torch.stack([each.weighted(self.weights) for each in terms]).sum()
        proposals = None
        if output.proposals is not None:
            # The first stage only tells objects from background: every object has label 0.
            unnamed = [Target(torch.zeros_like(each.labels), each.boxes) for each in targets]
            (proposals,), _, bad = self._judge_sets([output.proposals], unnamed, counts)
            total = total + proposals.weighted(self.weights)
            invalid += bad
        logits = precise(output.final.logits)
        return Losses(
            total=total,
            layers=tuple(terms),
            proposals=proposals,
            class_error=_class_error(logits, matches[-1], targets),
            cardinality_error=_cardinality_error(logits, self.scoring, targets),
            query_spread=precise(output.final.boxes.detach()).std(1, correction=0).mean(),
            matches=tuple(matches),
            invalid_costs=invalid,
        )

    def _judge_sets(
        self, sets: Sequence[Predictions], targets: Sequence[Target], counts: Counts
    ) -> tuple[list[LossTerms], list[list[Match]], int]:
        """The terms and pairs of each set, and the number of invalid costs."""
        sets = [Predictions(precise(each.logits), precise(each.boxes)) for each in sets]
        matching = match_sets(sets, targets, self.scoring, self.weights)
        device, num_queries = sets[0].logits.device, sets[0].logits.shape[1]
        pairs = torch.stack([_flat_pairs(each, targets, num_queries) for each in matching.sets])
        pairs = pairs.to(device)  # (sets, 2, pairs): one transfer for all
        labels = torch.cat([each.labels for each in targets])  # (N of the batch,)
        boxes = torch.cat([each.boxes for each in targets]).to(sets[0].boxes.dtype)
        terms = [
            self._terms(each, queries, labels[objects], boxes[objects], counts)
            for each, (queries, objects) in zip(sets, pairs, strict=True)
        ]
        return terms, matching.sets, matching.invalid

    def _terms(
        self,
        predictions: Predictions,
        queries: Tensor,
        wanted_labels: Tensor,
        wanted_boxes: Tensor,
        counts: Counts,
    ) -> LossTerms:
        """The losses of one set; matched query i, counted over the batch, should yield row i."""
        logits, boxes = predictions
        labels = logits.new_full(logits.shape[:2], UNMATCHED, dtype=torch.long)
        labels.view(-1)[queries] = wanted_labels
        found = boxes.flatten(0, 1)[queries]  # (pairs, 4)
        overlap = generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted_boxes))
        return LossTerms(
            classes=self.scoring.loss(logits, labels, counts),
            boxes=(found - wanted_boxes).abs().sum() / counts.objects,
            giou=(1 - overlap).sum() / counts.objects,
        )


def _flat_pairs(matches: list[Match], targets: Sequence[Target], num_queries: int) -> Tensor:
    """The pairs of all images as (2, pairs) indices into the batch's queries and objects."""
    queries = [image * num_queries + match.queries for image, match in enumerate(matches)]
    starts = [0, *itertools.accumulate(len(target.labels) for target in targets)]
    objects = [start + match.objects for start, match in zip(starts, matches, strict=False)]
    return torch.stack([torch.cat(queries), torch.cat(objects)])


@torch.no_grad()
def _class_error(logits: Tensor, matches: list[Match], targets: Sequence[Target]) -> Tensor:
    queries, objects = _flat_pairs(matches, targets, logits.shape[1]).to(logits.device)
    if len(queries) == 0:
        return logits.new_tensor(100.0)
    wanted = torch.cat([each.labels for each in targets])[objects]
    hits = logits.flatten(0, 1)[queries].argmax(-1) == wanted
    return 100 - 100 * hits.float().mean()


@torch.no_grad()
def _cardinality_error(logits: Tensor, scoring: Scoring, targets: Sequence[Target]) -> Tensor:
    sizes = torch.tensor([len(each.labels) for each in targets], device=logits.device)
    return (scoring.claims(logits).sum(1) - sizes).abs().float().mean()
