"""The published weights: what there is, where, how large, how good, and where they are kept here.

Source: the model tables of facebookresearch/detr, fundamentalvision/Deformable-DETR,
IDEA-Research/DINO and IDEA-Research/detrex; AP75 and the sizes S, M, L of DETR from arXiv
2005.12872, table 1; multiply-adds of DINO from arXiv 2203.03605, table 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrlab.config import ModelConfig
from detrlab.errors import UserError, did_you_mean
from detrlab.presets import PRESETS, model_config

COCO_ROWS = 91
"""Rows of the published class heads: COCO's category ids."""


@dataclass(frozen=True)
class Published:
    """One published checkpoint, trained on COCO 2017.

    Attributes:
        preset: the detector.
        backbone: its timm name.
        file: name of the file, here and where it was published.
        url: where it was published.
        megabytes: about how large it is; None where that was not published.
        sha256: what its checksum begins with; empty where the publisher names none.
        hub: the same weights on the Hugging Face Hub; empty where they are not.
        ap: on COCO val2017 in percent, with ``ap50`` and the others where they were published.
        epochs: it was trained for.
        gflops: multiply-adds of an 800 x 1066 image, as published, in 10^9.
        rows: of the class head.
    """

    preset: str
    backbone: str
    file: str
    url: str
    megabytes: int | None
    sha256: str
    hub: str
    ap: dict[str, float]
    epochs: int
    gflops: int
    rows: int = COCO_ROWS

    @property
    def config(self) -> ModelConfig:
        """Its architecture."""
        return model_config(self.preset, self.rows, backbone=self.backbone)


def _detr(
    preset: str, backbone: str, file: str, megabytes: int, hub: str, gflops: int, *ap: float
) -> Published:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return Published(
        preset=preset,
        backbone=backbone,
        file=file,
        url=f"https://dl.fbaipublicfiles.com/detr/{file}",
        megabytes=megabytes,
        sha256=file.removesuffix(".pth").split("-")[-1],
        hub=f"facebook/{hub}",
        ap=dict(zip(names, ap, strict=True)),
        epochs=500,
        gflops=gflops,
    )


def _deformable(preset: str, name: str, drive: str, hub: str, gflops: int, *ap: float) -> Published:
    return Published(
        preset=preset,
        backbone="resnet50",
        file=f"r50_deformable_detr{name}-checkpoint.pth",
        url=f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t",
        megabytes=None,
        sha256="",
        hub=f"SenseTime/{hub}",
        ap=dict(zip(("ap", "ap_small", "ap_medium", "ap_large"), ap, strict=True)),
        epochs=50,
        gflops=gflops,
    )


def _dino(preset: str, file: str, url: str, gflops: int, ap: float, rows: int) -> Published:
    return Published(preset, _R50, file, url, None, "", "", {"ap": ap}, 12, gflops, rows)


_DINO_FOLDER = "https://drive.google.com/drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_"
_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.0"
_R50, _R101 = "resnet50", "resnet101"
_REFINED = "_plus_iterative_bbox_refinement"
PUBLISHED: tuple[Published, ...] = (
    _detr("detr", _R50, "detr-r50-e632da11.pth", 159, "detr-resnet-50", 86,
          42.0, 62.4, 44.2, 20.5, 45.8, 61.1),
    _detr("detr-dc5", _R50, "detr-r50-dc5-f0fb7ef5.pth", 159, "detr-resnet-50-dc5", 187,
          43.3, 63.1, 45.9, 22.5, 47.3, 61.1),
    _detr("detr", _R101, "detr-r101-2c7b67e5.pth", 232, "detr-resnet-101", 152,
          43.5, 63.8, 46.4, 21.9, 48.0, 61.8),
    _detr("detr-dc5", _R101, "detr-r101-dc5-a2e86def.pth", 232, "detr-resnet-101-dc5", 253,
          44.9, 64.7, 47.7, 23.7, 49.5, 62.3),
    _deformable("deformable-detr", "", "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA",
                "deformable-detr", 173, 44.5, 27.1, 47.6, 59.6),
    _deformable("deformable-detr-refine", _REFINED, "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI",
                "deformable-detr-with-box-refine", 173, 46.2, 28.3, 49.2, 61.5),
    _deformable("deformable-detr-two-stage", f"{_REFINED}_plus_plus_two_stage",
                "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp",
                "deformable-detr-with-box-refine-two-stage", 173, 46.9, 29.6, 50.1, 61.6),
    _deformable("deformable-detr-single-scale", "_single_scale",
                "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU",
                "deformable-detr-single-scale", 78, 39.4, 20.6, 43.0, 55.5),
    _deformable("deformable-detr-single-scale-dc5", "_single_scale_dc5",
                "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk",
                "deformable-detr-single-scale-dc5", 128, 41.5, 24.1, 45.3, 56.0),
    _dino("dino-4scale", "checkpoint0011_4scale.pth", _DINO_FOLDER, 279, 49.0, COCO_ROWS),
    _dino("dino-5scale", "checkpoint0011_5scale.pth", _DINO_FOLDER, 860, 49.4, COCO_ROWS),
    _dino("dino-4scale-detrex", "dino_r50_4scale_12ep_49_2AP.pth",
          f"{_DETREX}/dino_r50_4scale_12ep_49_2AP.pth", 279, 49.2, 80),
)  # fmt: skip


def published(preset: str, backbone: str = _R50) -> Published:
    """The published weights of a detector.

    Raises:
        UserError: there are none for it, or none with that backbone.
    """
    of_preset = [each for each in PUBLISHED if each.preset == preset]
    if not of_preset:
        having = ", ".join(dict.fromkeys(each.preset for each in PUBLISHED))
        hint = "" if preset in PRESETS else did_you_mean(preset, PRESETS)
        raise UserError(
            f"there are no published COCO weights for {preset!r}{hint}; there are for {having}"
        )
    for each in of_preset:
        if each.backbone == backbone:
            return each
    having = " and ".join(each.backbone for each in of_preset)
    raise UserError(
        f"there are no published COCO weights for {preset!r} with backbone {backbone!r}, only "
        f"with {having}: use --weights imagenet for another backbone"
    )


def cache_folder() -> Path:
    """Where downloaded weights are kept.

    ``DETRLAB_CACHE`` if it is set, otherwise ``detrlab`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    own = os.environ.get("DETRLAB_CACHE")
    return (Path(own).expanduser() if own else _user_cache() / "detrlab") / "weights"


def cached(entry: Published) -> Path | None:
    """The file of published weights if it is here: in our folder, or in PyTorch's own."""
    for folder in (cache_folder(), _torch_hub()):
        if (folder / entry.file).is_file():
            return folder / entry.file
    return None


def in_hub_cache(entry: Published) -> Path | None:
    """The folder of the same weights in the Hugging Face Hub's own cache, if they are there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(entry.hub, "model.safetensors") if entry.hub else None
    return Path(path).parent if isinstance(path, str) else None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _torch_hub() -> Path:
    """Where ``torch.hub`` keeps what it downloaded."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home).expanduser() if home else _user_cache() / "torch") / "hub" / "checkpoints"


@dataclass(frozen=True)
class ModelRow:
    """One detector as ``detrlab models`` lists it.

    Attributes:
        preset: its name.
        backbone: its backbone.
        parameters: of all its parts, with COCO's 91 rows of classes.
        trainable: of these, those that train.
        gflops: as published; None for what was not published.
        ap: the published COCO numbers in percent, empty if there are none.
        weights: the published weights; None if there are none.
        cached: where they lie on this machine, a file or a folder; None if they do not.
    """

    preset: str
    backbone: str
    parameters: int
    trainable: int
    gflops: int | None
    ap: dict[str, float]
    weights: Published | None
    cached: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return {
            "preset": self.preset,
            "backbone": self.backbone,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "gflops": self.gflops,
            **self.ap,
            "epochs": self.weights.epochs if self.weights else None,
            "url": self.weights.url if self.weights else None,
            "hub": self.weights.hub if self.weights else None,
            "cached": str(self.cached) if self.cached else None,
        }


def models() -> list[ModelRow]:
    """Every preset, and every published checkpoint of it.

    Nothing is downloaded; the networks are built without their numbers to count them.
    """
    rows = []
    for preset in PRESETS:
        entries: list[Published | None] = [each for each in PUBLISHED if each.preset == preset]
        rows += [_row(preset, entry) for entry in entries or [None]]
    return rows


def _row(preset: str, entry: Published | None) -> ModelRow:
    import torch

    from detrlab.presets import build_network

    config = entry.config if entry else model_config(preset, COCO_ROWS)
    with torch.device("meta"):
        network = build_network(config)
    sizes = [(each.numel(), each.requires_grad) for each in network.parameters()]
    return ModelRow(
        preset=preset,
        backbone=config.backbone,
        parameters=sum(size for size, _ in sizes),
        trainable=sum(size for size, trains in sizes if trains),
        gflops=entry.gflops if entry else None,
        ap=dict(entry.ap) if entry else {},
        weights=entry,
        cached=(cached(entry) or in_hub_cache(entry)) if entry else None,
    )
