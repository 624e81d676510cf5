"""Where deformable attention looks and how much each look weighs.

Everything is recomputed from what the attention was given, by the plain form of the op, so
that it does not depend on the backend that ran the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.explain.capture import MemoryAttention
from detrlab.models.attention import DeformableAttention
from detrlab.ops.reference import sampling_locations
from detrlab.structures import References


class Samples(NamedTuple):
    """Where N queries of one image look, as fractions of the unpadded image.

    Attributes:
        references: (N, 2) centers and sizes (None for points): where each query looks from.
        locations: (N, M, L, P, 2), x and y; they may lie outside of [0, 1], where a sample is 0.
        weights: (N, M, L, P); over L and P of one head they sum to 1.
    """

    references: References
    locations: Tensor
    weights: Tensor


@torch.no_grad()
def samples(call: MemoryAttention, image: int, queries: Sequence[int]) -> Samples:
    """The sampling points and attention weights of some queries.

    Args:
        call: of a ``DeformableAttention``.
        image: index in the batch.
        queries: N indices; in the encoder they are cells of the memory (``attention.cell_at``).

    Source: arXiv 2010.04159, section 4.1; figure 6 draws such points.
    """
    attention, memory = call.attention, call.memory
    assert isinstance(attention, DeformableAttention), type(attention).__name__
    assert call.references is not None
    chosen = torch.as_tensor(queries, device=call.query.device)
    query = call.query[image, chosen]
    shape = (attention.num_heads, attention.levels, attention.points)
    offsets = attention.sampling_offsets(query).unflatten(-1, (*shape, 2))
    scores = attention.attention_weights(query).unflatten(-1, (attention.num_heads, -1))
    centers = call.references.centers[image, chosen]
    sizes = None if call.references.sizes is None else call.references.sizes[image, chosen]
    ratios = memory.valid_ratios[image]
    locations = sampling_locations(
        References(centers[None], None if sizes is None else sizes[None]),
        ratios[None],
        offsets[None].to(ratios.dtype),
        memory.level_shapes,
    )[0]
    return Samples(
        references=References(centers, sizes),
        # From fractions of the padded level to fractions of the image that lies in it.
        locations=locations / ratios[:, None],
        weights=scores.softmax(-1).unflatten(-1, shape[1:]),
    )
