"""PP-HGNetV2, the backbone of D-FINE, DEIM and DEIMv2, built from timm's blocks.

Source: PaddleDetection and PaddleClas, ``PPHGNetV2``; DEIMv2, ``backbone/hgnetv2.py`` (the sizes
Atto, Femto and Pico, which end after the third stage).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from detrlab.errors import UserError, did_you_mean
from detrlab.models.backbones.timm import Trains

_SMALL: list[list[Any]] = [
    [16, 16, 64, 1, False, False, 3, 3],
    [64, 32, 256, 1, True, False, 3, 3],
]
_SIZES: dict[str, list[list[Any]]] = {
    "atto": [*_SMALL, [256, 64, 256, 1, True, True, 3, 3]],
    "femto": [*_SMALL, [256, 64, 512, 1, True, True, 5, 3]],
    "pico": [*_SMALL, [256, 64, 512, 2, True, True, 5, 3]],
}
NAMES = tuple(f"hgnetv2_{size}" for size in (*_SIZES, *(f"b{index}" for index in range(6))))


def stages_of(name: str) -> list[list[Any]]:
    """For each stage: channels in, inside and out, blocks, strided, light blocks, kernel, layers.

    Raises:
        UserError: unknown name.
    """
    from timm.models.hgnet import model_cfgs

    if name not in NAMES:
        raise UserError(f"unknown HGNetV2 {name!r}{did_you_mean(name, NAMES)}")
    size = name.removeprefix("hgnetv2_")
    layouts: dict[str, Any] = model_cfgs
    return _SIZES.get(size) or [layouts[name][f"stage{number}"] for number in range(1, 5)]


class HGNet(nn.Module):
    """The stem and the stages of PP-HGNetV2.

    Args:
        name: one of ``NAMES``.
        maps: how many feature maps, counted from the coarsest.
        affine: a learned scale and shift after each activation ("LAB": all but B4 and B5).

    Raises:
        UserError: unknown name.

    Attributes:
        channels: of each feature map, finest first.
        strides: of each feature map, in pixels.
    """

    def __init__(self, name: str, maps: int, *, affine: bool = True) -> None:
        super().__init__()
        from timm.models.hgnet import HighPerfGpuNet, model_cfgs

        rows = stages_of(name)
        # timm's network always has four stages; the smallest sizes end after three.
        four = [*rows, rows[-1]][:4]
        layout = {f"stage{number}": row for number, row in enumerate(four, 1)}
        stem = model_cfgs.get(name, {"stem_chs": [16, 16]})["stem_chs"]
        network = HighPerfGpuNet(
            {"stem_type": "v2", "stem_chs": stem, **layout},
            num_classes=0,
            head_hidden_size=None,
            use_lab=affine,
        )
        self.stem = network.stem
        self.stages = nn.ModuleList(network.stages[: len(rows)])
        self.maps = maps
        self.channels = tuple(row[2] for row in rows)[-maps:]
        self.strides = tuple(4 * 2**index for index in range(len(rows)))[-maps:]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> feature maps (B, C_l, ceil(H / stride_l), ceil(W / stride_l))."""
        maps = [self.stem(pixels)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-self.maps :]

    def load_imagenet(self, name: str) -> None:
        """Load the weights that timm publishes for B0 to B5.

        Raises:
            UserError: there are none, or they cannot be had.
        """
        import timm

        if name.removeprefix("hgnetv2_") in _SIZES:
            raise UserError(
                f"there are no ImageNet weights of {name!r}: start from a trained detector, "
                "or from nothing with --weights none"
            )
        try:
            source = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm answers with whatever the download raised
            raise UserError(
                f"the ImageNet weights of {name!r} could not be loaded ({error}): put them into "
                "the Hugging Face cache, or start from nothing with --weights none"
            ) from error
        loaded = {key: value for key, value in source.state_dict().items() if "head" not in key}
        self.load_state_dict(loaded)


def freeze(
    backbone: HGNet,
    *,
    norms: Literal["frozen", "trained"],
    trains: Trains,
) -> HGNet:
    """Fix what does not train: norms, and the stem, the stem and the first stage, or all."""
    if norms == "frozen":
        from timm.utils.model import freeze_batch_norm_2d

        freeze_batch_norm_2d(backbone)
    stem = backbone.stem
    fixed: dict[str, list[nn.Module]] = {
        "body": [stem],
        "late": [stem, backbone.stages[0]],
        "none": [backbone],
        "all": [],
    }
    for part in fixed[trains]:
        part.requires_grad_(False)
    return backbone
