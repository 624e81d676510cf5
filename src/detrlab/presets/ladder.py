"""What the papers say each step of the ladder gains, and steps of the recipe alone.

Gains are AP on COCO val2017 with a ResNet-50. They come from different papers and schedules: only
neighbouring numbers of one source can be compared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_MODELS = "Deformable-DETR repository, 50 epochs"
_DINO = "DINO, arXiv 2203.03605, table 4"
_RT_DETR = "RT-DETR, arXiv 2304.08069"
_D_FINE = "D-FINE, arXiv 2410.13842"
_DEIM = "DEIM, arXiv 2412.04234"


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
    "dino-hybrid": Gain("43.0 to 47.9 AP, from no encoder", f"{_RT_DETR}, table 3"),
    "rt-detr-r50": Gain("47.9 to 48.7 AP", f"{_RT_DETR}, table 4"),
    "rt-detr-v2-r50": Gain("53.1 to 53.4 AP", "RT-DETRv2, arXiv 2407.17140"),
    "rt-detr-v2-r18": Gain("46.5 to 47.9 AP", "RT-DETRv2, arXiv 2407.17140"),
    "deim-rt-detr-v2-r18": Gain("47.9 to 49.0 AP", _DEIM),
    "d-fine-n-light": Gain("53.0 to 53.0 AP, size L", _D_FINE),
    "d-fine-n-fdr": Gain("53.0 to 53.8 AP, size L", _D_FINE),
    "d-fine-n": Gain("53.8 to 54.5 AP, size L", _D_FINE),
    "deim-d-fine-n-dense": Gain("42.8 to 43.0 AP, with MAL and SiLU", _DEIM),
    "deim-d-fine-l": Gain("54.0 to 54.7 AP", _DEIM),
    "deimv2-n": Gain("43.0 to 43.0 AP", "DEIMv2, arXiv 2509.20787"),
}
"""By preset. Replacing the loss (``detr-sigmoid``) and the attention alone was not published."""

OF_THE_RECIPE: dict[str, tuple[str, dict[str, Any]]] = {
    "deim-d-fine-n-dense": (
        "deim-d-fine-n",
        {"data.augmentation": "dense", "data.resize": "square"},
    ),
}
"""Steps that change how a preset is trained: its name and the settings, by their full names."""
