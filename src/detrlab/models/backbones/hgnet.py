"""PP-HGNetV2, the backbone of D-FINE, DEIM and DEIMv2.

Source: PaddleDetection and PaddleClas, ``PPHGNetV2``; DEIMv2, ``backbone/hgnetv2.py`` (the sizes
Atto, Femto and Pico, which end after the third stage).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.errors import UserError, did_you_mean
from detrlab.models.backbones.folding import FoldedConv2d, Kept, Kernel
from detrlab.models.backbones.hgnet_blocks import HGStage, Stage, Stem, initialise
from detrlab.models.backbones.timm import Trains


class _Layout(NamedTuple):
    """A size: the stem's channels, and for each stage channels inside and out, and blocks."""

    stem: tuple[int, int]
    inside: tuple[int, ...]
    out: tuple[int, ...]
    blocks: tuple[int, ...]
    layers: int
    kernel: int = 5


_LAYOUTS = {
    "atto": _Layout((16, 16), (16, 32, 64), (64, 256, 256), (1, 1, 1), 3, kernel=3),
    "femto": _Layout((16, 16), (16, 32, 64), (64, 256, 512), (1, 1, 1), 3),
    "pico": _Layout((16, 16), (16, 32, 64), (64, 256, 512), (1, 1, 2), 3),
    "b0": _Layout((16, 16), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "b1": _Layout((24, 32), (32, 48, 96, 192), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "b2": _Layout((24, 32), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4),
    "b3": _Layout((24, 32), (32, 64, 128, 256), (128, 512, 1024, 2048), (1, 1, 3, 1), 5),
    "b4": _Layout((32, 48), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
    "b5": _Layout((32, 64), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
}
NAMES = tuple(f"hgnetv2_{size}" for size in _LAYOUTS)
SMALL = NAMES[:3]
"""Backbones that timm does not have and that nobody trained on ImageNet."""


def stages_of(name: str) -> list[Stage]:
    """The sizes of each stage.

    Raises:
        UserError: unknown name.
    """
    layout = _layout(name)
    read = (layout.stem[1], *layout.out)
    return [
        Stage(
            channels_in=read[index],
            inside=layout.inside[index],
            channels_out=layout.out[index],
            blocks=layout.blocks[index],
            strided=index > 0,
            light=index > 1,
            kernel=layout.kernel if index > 1 else 3,
            layers=layout.layers,
        )
        for index in range(len(layout.out))
    ]


def stem_of(name: str) -> tuple[int, int]:
    """The stem's channels, inside and out.

    Raises:
        UserError: unknown name.
    """
    return _layout(name).stem


def _layout(name: str) -> _Layout:
    if name not in NAMES:
        raise UserError(f"unknown HGNetV2 {name!r}{did_you_mean(name, NAMES)}")
    return _LAYOUTS[name.removeprefix("hgnetv2_")]


def no_imagenet(name: str) -> str:
    """What to do where only ImageNet weights were asked for."""
    return (
        f"there are no ImageNet weights of {name!r}: start from a trained detector, from the "
        "packaged detector's backbone with --weights coco-backbone (hgnetv2_femto), or from "
        "nothing with --weights none"
    )


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
        rows = stages_of(name)
        self.stem = Stem(*stem_of(name), affine=affine)
        self.stages = nn.ModuleList(HGStage(row, affine=affine) for row in rows)
        initialise(self)
        self.maps = maps
        self.channels = tuple(row.channels_out for row in rows)[-maps:]
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

        if name in SMALL:
            raise UserError(no_imagenet(name))
        try:
            source = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm answers with whatever the download raised
            raise UserError(
                f"the ImageNet weights of {name!r} could not be loaded ({error}): put them into "
                "the Hugging Face cache, or start from nothing with --weights none"
            ) from error
        loaded = {key: value for key, value in source.state_dict().items() if "head" not in key}
        self.load_state_dict(loaded)


def small_hgnet(
    name: str,
    *,
    stages: int,
    dilation: bool,
    norms: Literal["frozen", "trained"],
    trains: Trains,
) -> HGNet:
    """The backbone of DEIMv2-Femto, Atto or Pico for a detector of another family.

    It ends at stride 16, where others end at 32: DETR reads its map of stride 16, DC5 one of
    stride 8, and a pyramid starts with strides 8 and 16.

    Args:
        name: one of ``SMALL``.
        stages: how many feature maps at most, counted from the coarsest; none finer than stride 8.
        dilation: no stride in the last stage, and dilation 2 from its second block on (DC5).
        norms: ``frozen`` replaces batch norms by fixed affine maps.
        trains: see ``freeze``.
    """
    backbone = HGNet(name, min(stages, len(stages_of(name)) - 1))
    if dilation:
        last: Any = backbone.stages[-1]
        last.downsample.conv.stride = (1, 1)
        for module in last.blocks[1:].modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.dilation = (2, 2)
                module.padding = (2 * (module.kernel_size[0] // 2),) * 2
        backbone.strides = (*backbone.strides[:-1], backbone.strides[-1] // 2)
    return freeze(backbone, norms=norms, trains=trains)


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


class BoundedConv(nn.Module):
    """A ``ConvBNAct`` whose inference is one convolution and one bound.

    A ReLU, then a scale s and a shift b: ``s max(y, 0) + b``. For s >= 0 it is
    ``max(s y + b, b)``, else the minimum of the same two, and ``s y + b`` is the convolution with
    other numbers.

    Args:
        block: with a ReLU and a folded norm, whose parts are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv: FoldedConv2d = block.conv
        self.bn, self.act, self.lab = block.bn, block.act, block.lab
        self._kept = Kept[tuple[Kernel, float, bool]]()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if torch.is_grad_enabled() or not self.conv.norm.fixed:
            return self.lab(self.act(self.bn(self.conv(maps))))
        kernel, bound, is_floor = self.numbers()
        found = self.conv.convolve(maps, *kernel)
        return found.clamp_min_(bound) if is_floor else found.clamp_max_(bound)

    def numbers(self) -> tuple[Kernel, float, bool]:
        """The convolution's numbers, the bound, and whether it is the lower one."""
        sources = [*self.conv.sources(), *self.lab.parameters()]
        return self._kept.get(sources, self._make)

    def plain(self) -> nn.Sequential:
        """The same in evaluation mode, of ordinary parts."""
        kernel, bound, is_floor = self.numbers()
        return nn.Sequential(self.conv.plain(kernel), Bound(bound, is_floor=is_floor))

    def _make(self) -> tuple[Kernel, float, bool]:
        kernel = self.conv.kernel()
        if isinstance(self.lab, nn.Identity):
            return kernel, 0.0, True
        scale, shift = self.lab.scale, self.lab.bias
        scaled = Kernel(kernel.weight * scale, kernel.bias * scale + shift)
        return scaled, shift.item(), scale.item() >= 0


class Bound(nn.Module):
    """No number below, or none above, a bound."""

    def __init__(self, bound: float, *, is_floor: bool) -> None:
        super().__init__()
        self.limits = {"min" if is_floor else "max": bound}

    def forward(self, maps: Tensor) -> Tensor:
        """(...) -> (...)."""
        return maps.clamp(**self.limits)


class PairMax(nn.MaxPool2d):
    """The largest of 2 x 2 neighbours, stride 1; PyTorch's pooling is slow channels last."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H - 1, W - 1)."""
        if torch.is_grad_enabled():
            return F.max_pool2d(maps, 2, 1)
        rows = torch.maximum(maps[:, :, 1:], maps[:, :, :-1])
        return torch.maximum(rows[..., 1:], rows[..., :-1])


def shorten(backbone: HGNet) -> None:
    """Do more with each pass over the activations at inference, in place; norms folded before."""
    backbone.stem.pool = PairMax(2, 1)
    for name, block in list(backbone.named_modules()):
        kinds = [type(getattr(block, part, None)) for part in ("conv", "act")]
        if kinds == [FoldedConv2d, nn.ReLU] and not isinstance(block, BoundedConv):
            backbone.set_submodule(name, BoundedConv(block))
