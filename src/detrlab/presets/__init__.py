"""The named detectors: one class each, which holds the settings and builds the parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, SerializeAsAny
from torch.overrides import TorchFunctionMode

from detrlab.config import ModelConfig
from detrlab.errors import UserError, did_you_mean, excerpt
from detrlab.models.network import Network
from detrlab.presets import saved
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrSingleScale,
    DeformableDetrSingleScaleDC5,
    DeformableDetrTwoStage,
)
from detrlab.presets.deimv2 import DeimV2Atto, DeimV2Femto, DeimV2N, DeimV2Pico
from detrlab.presets.detr import Detr, DetrDC5, DetrSigmoid
from detrlab.presets.dfine import (
    DeimL,
    DeimM,
    DeimN,
    DeimS,
    DeimX,
    DFine,
    DFineL,
    DFineM,
    DFineN,
    DFineX,
)
from detrlab.presets.dino import (
    CdnDeformableDetr,
    DabDeformableDetr,
    Dino,
    Dino5Scale,
    DinoDetrex,
    DnDeformableDetr,
    MixedDeformableDetr,
)
from detrlab.presets.rtdetr import (
    DeimRtDetrV2R18,
    RtDetr,
    RtDetrR18,
    RtDetrR34,
    RtDetrR50M,
    RtDetrR101,
    RtDetrV2,
    RtDetrV2R18,
    RtDetrV2R18Discrete,
    RtDetrV2R34,
    RtDetrV2R50M,
    RtDetrV2R101,
)
from detrlab.presets.rungs import (
    DFineNFdr,
    DFineNLight,
    DFineNMal,
    DinoHybrid,
    RtDetrFocal,
    RtDetrV2N,
)

PRESETS: dict[str, type[ModelConfig]] = {
    "detr": Detr,
    "detr-dc5": DetrDC5,
    "deformable-detr": DeformableDetr,
    "deformable-detr-refine": DeformableDetrRefine,
    "deformable-detr-two-stage": DeformableDetrTwoStage,
    "deformable-detr-single-scale": DeformableDetrSingleScale,
    "deformable-detr-single-scale-dc5": DeformableDetrSingleScaleDC5,
    "detr-sigmoid": DetrSigmoid,
    "dab-deformable-detr": DabDeformableDetr,
    "dn-deformable-detr": DnDeformableDetr,
    "cdn-deformable-detr": CdnDeformableDetr,
    "mixed-deformable-detr": MixedDeformableDetr,
    "dino-4scale": Dino,
    "dino-5scale": Dino5Scale,
    "dino-4scale-detrex": DinoDetrex,
    "dino-hybrid": DinoHybrid,
    "rt-detr-r18": RtDetrR18,
    "rt-detr-r34": RtDetrR34,
    "rt-detr-r50-m": RtDetrR50M,
    "rt-detr-r50-focal": RtDetrFocal,
    "rt-detr-r50": RtDetr,
    "rt-detr-r101": RtDetrR101,
    "rt-detr-v2-r18": RtDetrV2R18,
    "rt-detr-v2-r18-dsp": RtDetrV2R18Discrete,
    "rt-detr-v2-r34": RtDetrV2R34,
    "rt-detr-v2-r50-m": RtDetrV2R50M,
    "rt-detr-v2-r50": RtDetrV2,
    "rt-detr-v2-r101": RtDetrV2R101,
    "rt-detr-v2-n": RtDetrV2N,
    "deim-rt-detr-v2-r18": DeimRtDetrV2R18,
    "d-fine-n-light": DFineNLight,
    "d-fine-n-fdr": DFineNFdr,
    "d-fine-n": DFineN,
    "d-fine-s": DFine,
    "d-fine-m": DFineM,
    "d-fine-l": DFineL,
    "d-fine-x": DFineX,
    "d-fine-n-mal": DFineNMal,
    "deim-d-fine-n": DeimN,
    "deim-d-fine-s": DeimS,
    "deim-d-fine-m": DeimM,
    "deim-d-fine-l": DeimL,
    "deim-d-fine-x": DeimX,
    "deimv2-atto": DeimV2Atto,
    "deimv2-femto": DeimV2Femto,
    "deimv2-pico": DeimV2Pico,
    "deimv2-n": DeimV2N,
}

OWN_PRESETS = "DETRLAB_PRESETS"
"""Environment variable: modules of your own that define presets."""

FIVE = tuple(PRESETS)[:5]
"""The detectors of the original experiment, in the order of its table."""

ORIGINALS = (*FIVE, "deformable-detr-single-scale", "deformable-detr-single-scale-dc5")
"""The detectors that the original repositories can build, and published weights of."""

LADDER = (
    "detr",
    "detr-sigmoid",
    "deformable-detr-single-scale",
    "deformable-detr",
    "deformable-detr-refine",
    "deformable-detr-two-stage",
    "dab-deformable-detr",
    "dn-deformable-detr",
    "cdn-deformable-detr",
    "mixed-deformable-detr",
    "dino-4scale",
    "dino-hybrid",
    "rt-detr-r50-focal",
    "rt-detr-r50",
    "rt-detr-v2-r50",
    "rt-detr-v2-n",
    "d-fine-n-light",
    "d-fine-n-fdr",
    "d-fine-n",
    "d-fine-n-mal",
    "deim-d-fine-n",
    "deimv2-n",
)
"""From DETR to DEIMv2, step by step."""

BESIDE_THE_LADDER = {
    "detr-dc5": "detr",
    "deformable-detr-single-scale-dc5": "deformable-detr-single-scale",
    "dino-5scale": "dino-4scale",
    "dino-4scale-detrex": "dino-4scale",
    "rt-detr-v2-r18": "rt-detr-r18",
    "rt-detr-v2-r34": "rt-detr-r34",
    "rt-detr-v2-r50-m": "rt-detr-r50-m",
    "rt-detr-v2-r101": "rt-detr-r101",
    "rt-detr-v2-r18-dsp": "rt-detr-v2-r18",
    "deim-rt-detr-v2-r18": "rt-detr-v2-r18",
    **{f"deim-d-fine-{size}": f"d-fine-{size}" for size in "smlx"},
    "deim-d-fine-n-dense": "deim-d-fine-n",
}
"""Detectors that no rung builds on, and the one that they are compared with."""


def preset(name: str) -> type[ModelConfig]:
    """The preset of that name: one of ``PRESETS``, or a subclass of ``ModelConfig`` of your own.

    A preset of your own is known once its module has been imported. Modules that the environment
    variable ``DETRLAB_PRESETS`` names (``my_module,other_module``) are imported first.

    Raises:
        UserError: unknown name; the closest match is named.
    """
    if name in PRESETS:
        return PRESETS[name]
    _import_own()
    for each in _subclasses(ModelConfig):
        if each.model_fields["preset"].default == name:
            return each
    raise UserError(f"unknown model {name!r}{did_you_mean(name, PRESETS)}")


def _import_own() -> None:
    """Import the user's modules; the current folder is searched as well."""
    for module in filter(None, os.environ.get(OWN_PRESETS, "").split(",")):
        try:
            with _current_folder_searched():
                import_module(module.strip())
        except ImportError as error:
            raise UserError(f"{OWN_PRESETS}: {module!r} cannot be imported: {error}") from None


@contextmanager
def _current_folder_searched() -> Iterator[None]:
    sys.path.append("")
    try:
        yield
    finally:
        sys.path.remove("")


def _subclasses(kind: type[ModelConfig]) -> Iterator[type[ModelConfig]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def model_config(
    name: str, num_classes: int, *, shared: Mapping[str, Any] | None = None, **changes: Any
) -> ModelConfig:
    """The settings of a named detector.

    Args:
        name: of the preset.
        num_classes: K, the classes of the data.
        shared: changes meant for several detectors; settings that this one lacks but another
            preset has are skipped.
        **changes: settings that should differ from the preset's.

    Raises:
        UserError: unknown preset or setting (the closest match is named), impossible values.
    """
    kind = preset(name)
    skipped = set(settings()) - set(kind.model_fields)
    both = {key: value for key, value in (shared or {}).items() if key not in skipped} | changes
    saved.refuse_removed(both, kind.model_fields, where=f"model {name!r}")
    values = {**both, "preset": name, "num_classes": num_classes}
    return kind.parse(values, where=f"model {name!r}")


def settings() -> tuple[str, ...]:
    """Every setting that some preset has, without the preset's name and the classes."""
    names = dict.fromkeys(name for kind in PRESETS.values() for name in kind.model_fields)
    return tuple(name for name in names if name not in ("preset", "num_classes"))


def parse_config(values: Mapping[str, Any], where: str = "") -> ModelConfig:
    """Settings as ``ModelConfig.to_dict`` gave them, also those of earlier versions.

    Raises:
        UserError: unknown preset or setting, impossible values.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: the model should be settings by name, not {excerpt(values)}")
    current = saved.to_current(values, where)
    name = current.get("preset")
    if not isinstance(name, str):
        raise UserError(f"{where}: the model's preset should be a name, not {name!r}")
    try:
        kind = preset(name)
    except UserError as error:
        raise UserError(f"{where}{': ' * bool(where)}{error}") from None
    return kind.parse(current, where=where)


def _as_preset(values: Any) -> Any:
    return parse_config(values) if isinstance(values, dict) else values


AnyPreset = Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_as_preset)]
"""Type of a record's field that holds the settings of any preset."""


def build_network(
    config: ModelConfig, *, pretrained_backbone: bool = False, seed: int = 0
) -> Network:
    """A detector with the originals' initial values.

    Args:
        config: its settings.
        pretrained_backbone: start the backbone from ImageNet weights.
        seed: of the initial values. Two detectors built with the same seed and backbone start
            with the same backbone weights, whatever else differs.

    Raises:
        UserError: the backbone is unknown, does not fit, or has no weights to be found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = config.build_backbone(pretrained=pretrained_backbone)
        torch.manual_seed(seed)  # the rest starts the same whatever the backbone drew
        return config.build(backbone)


def outline(config: ModelConfig) -> Network:
    """A detector without numbers: its parameters have names and shapes, but no memory.

    Raises:
        UserError: as ``build_network``.
    """
    with torch.device("meta"), _Undrawn():
        return build_network(config)


class _Undrawn(TorchFunctionMode):
    """Draws no normal numbers: PyTorch's way to draw none, too, imports its whole compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in (torch.Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)
