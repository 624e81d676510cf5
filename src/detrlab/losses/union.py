"""Pairs that all layers agree on: the union of their matchings.

Source: arXiv 2410.13842 (D-FINE), section 4.2 ("Global Optimal Localization Self-Distillation");
``_get_go_indices`` of the original code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detrlab.losses.matching import Match
from detrlab.losses.pairs import Counts
from detrlab.structures import Pairs, Target


def union(sets: Sequence[Sequence[Match]], targets: Sequence[Target], num_queries: int) -> Pairs:
    """Each query with the object that most sets give it; of several, the first after sorting.

    An object may have several queries.

    Args:
        sets: the pairs of each matched set, for each image.
        targets: of the images.
        num_queries: Q.

    Returns:
        Pairs of the batch, on the CPU.
    """
    queries, objects = [], []
    start = 0
    for image, target in enumerate(targets):
        pairs = torch.cat([torch.stack([*each[image]], dim=1) for each in sets])
        found, counts = torch.unique(pairs, return_counts=True, dim=0)
        # Which of equal counts comes first is not defined, but it is the same as in the original.
        found = found[torch.argsort(counts, descending=True)]
        seen: dict[int, int] = {}
        for query, thing in found.tolist():
            seen.setdefault(query, thing)
        queries += [image * num_queries + query for query in seen]
        objects += [start + thing for thing in seen.values()]
        start += len(target.labels)
    return Pairs(*(torch.tensor(each, dtype=torch.long) for each in (queries, objects)))


def of_union(counts: Counts, pairs: float, objects: float) -> Counts:
    """What terms over the union divide by: its pairs instead of the objects.

    The union is known only after the forward pass, so a step of several micro-batches counts the
    pairs of each by its own ratio of pairs to objects.

    Args:
        counts: of the step.
        pairs: of this batch's union, over all processes.
        objects: of this batch, over all processes.
    """
    return counts._replace(objects=counts.objects * max(1, pairs) / max(1, objects))
