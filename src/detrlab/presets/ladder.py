"""From DETR to DINO, one change at a time, and what the papers say each step gains.

Gains are AP on COCO val2017 with a ResNet-50. They come from different papers and schedules: only
neighbouring numbers of one source can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

_MODELS = "Deformable-DETR repository, 50 epochs"
_DINO = "DINO, arXiv 2203.03605, table 4"


class Gain(NamedTuple):
    """What a step gained in its own paper.

    Attributes:
        words: AP before and after, or their difference.
        source: paper and table, or repository.
    """

    words: str
    source: str


PUBLISHED_GAINS: dict[str, Gain] = {
    "deformable-detr": Gain("39.4 to 44.5 AP", _MODELS),
    "deformable-detr-refine": Gain("44.5 to 46.2 AP", _MODELS),
    "deformable-detr-two-stage": Gain("46.2 to 46.9 AP", _MODELS),
    "dab-deformable-detr": Gain("48.2 to 49.7 AP", "detrex model zoo, 50 epochs"),
    "dn-deformable-detr": Gain("+1.9 AP", "DN-DETR, arXiv 2203.01305"),
    "cdn-deformable-detr": Gain("+0.5 AP", _DINO),
    "mixed-deformable-detr": Gain("46.5 to 47.0 AP", _DINO),
    "dino-4scale": Gain("47.0 to 47.4 AP", _DINO),
    "dino-5scale": Gain("49.0 to 49.4 AP", "DINO, arXiv 2203.03605, table 1, 12 epochs"),
    "rt-detr-v2-r18": Gain("46.5 to 47.9 AP", "RT-DETRv2, arXiv 2407.17140"),
    "deim-rt-detr-v2-r18": Gain("47.9 to 49.0 AP", "DEIM, arXiv 2412.04234"),
    "deim-d-fine-l": Gain("54.0 to 54.7 AP", "DEIM, arXiv 2412.04234"),
}
"""By preset. Replacing the loss (``detr-sigmoid``) and the attention alone was not published."""
