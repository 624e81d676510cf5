"""The published weights: where they are, how accurate, and where they are kept on this machine.

Source: the model tables of facebookresearch/detr, fundamentalvision/Deformable-DETR,
IDEA-Research/DINO, IDEA-Research/detrex, lyuwenyu/RT-DETR, Peterande/D-FINE,
Intellindust-AI-Lab/DEIM and DEIMv2; AP75 and the sizes S, M, L of DETR from arXiv 2005.12872,
table 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrlab.config import ModelConfig
from detrlab.download import cache_folder, user_cache
from detrlab.errors import UserError, did_you_mean
from detrlab.presets import PRESETS, model_config

ASSETS = Path(__file__).parents[1] / "assets"
"""What comes with the package."""
COCO_ROWS = 91
"""Rows of the published class heads: COCO's category ids."""


@dataclass(frozen=True)
class Published:
    """One published checkpoint, trained on COCO 2017.

    Attributes:
        preset: the detector.
        backbone: its timm name.
        url: where it was published.
        file: its name, there and here.
        sha256: what its checksum begins with; empty if none was published.
        hub: the same weights on the Hugging Face Hub; empty where they are not.
        epochs: how long it was trained.
        gflops: published multiply-adds in 10^9, of an 800 x 1066 image, in RT-DETR of 640 x 640;
            None where unknown.
        ap: on COCO val2017 in percent, with ``ap50`` and the others where they were published.
        rows: of the class head.
    """

    preset: str
    backbone: str
    url: str
    file: str
    sha256: str
    hub: str
    epochs: int
    gflops: float | None
    ap: dict[str, float]
    rows: int = COCO_ROWS

    @property
    def config(self) -> ModelConfig:
        """Its architecture."""
        return model_config(self.preset, self.rows, backbone=self.backbone)


def _detr(preset: str, backbone: str, file: str, hub: str, gflops: int, *ap: float) -> Published:
    url, sha256 = f"https://dl.fbaipublicfiles.com/detr/{file}", file[-len("01234567.pth") : -4]
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    values = dict(zip(names, ap, strict=True))
    return Published(preset, backbone, url, file, sha256, f"facebook/{hub}", 500, gflops, values)


def _deformable(preset: str, name: str, drive: str, hub: str, gflops: int, *ap: float) -> Published:
    url = _drive(drive)
    file = f"r50_deformable_detr{name}-checkpoint.pth"
    values = dict(zip(("ap", "ap_small", "ap_medium", "ap_large"), ap, strict=True))
    return Published(preset, _R50, url, file, "", f"SenseTime/{hub}", 50, gflops, values)


def _drive(file: str) -> str:
    return f"https://drive.usercontent.google.com/download?id={file}&export=download&confirm=t"


def _dino(preset: str, file: str, url: str, ap: float, rows: int = COCO_ROWS) -> Published:
    return Published(preset, _R50, url, file, "", "", 12, None, {"ap": ap}, rows)


def _rt_detr(preset: str, file: str, epochs: int, gflops: int, ap: float, ap50: float) -> Published:
    url = f"https://github.com/lyuwenyu/storage/releases/download/v0.1/{file}"
    backbone = PRESETS[preset].model_fields["backbone"].default
    values = {"ap": ap, "ap50": ap50}
    return Published(preset, backbone, url, file, "", "", epochs, gflops, values, 80)


def _hgnet(
    preset: str, file: str, url: str, epochs: int, gflops: float, ap: float, hub: str = ""
) -> Published:
    backbone = PRESETS[preset].model_fields["backbone"].default
    return Published(preset, backbone, url, file, "", hub, epochs, gflops, {"ap": ap}, 80)


def _d_fine(size: str, name: str, epochs: int, gflops: float, ap: float) -> Published:
    file = f"dfine_{size}_coco.pth"
    url = f"https://github.com/Peterande/storage/releases/download/dfinev1.0/{file}"
    hub = f"ustc-community/dfine-{name}-coco"
    return _hgnet(f"d-fine-{size}", file, url, epochs, gflops, ap, hub)


def _deim(size: str, drive: str, epochs: int, gflops: float, ap: float) -> Published:
    file = f"deim_dfine_hgnetv2_{size}_coco_{epochs}e.pth"
    return _hgnet(f"deim-d-fine-{size}", file, _drive(drive), epochs, gflops, ap)


def _deimv2(size: str, drive: str, epochs: int, gflops: float, ap: float) -> Published:
    file = f"deimv2_hgnetv2_{size}_coco.pth"
    return _hgnet(f"deimv2-{size}", file, _drive(drive), epochs, gflops, ap)


_DINO_FOLDER = "https://drive.google.com/drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_"
_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.0"
_R50, _R101 = "resnet50", "resnet101"
_REFINED = "_plus_iterative_bbox_refinement"
PUBLISHED: tuple[Published, ...] = (
    _detr("detr", _R50, "detr-r50-e632da11.pth", "detr-resnet-50", 86,
          42.0, 62.4, 44.2, 20.5, 45.8, 61.1),
    _detr("detr-dc5", _R50, "detr-r50-dc5-f0fb7ef5.pth", "detr-resnet-50-dc5", 187,
          43.3, 63.1, 45.9, 22.5, 47.3, 61.1),
    _detr("detr", _R101, "detr-r101-2c7b67e5.pth", "detr-resnet-101", 152,
          43.5, 63.8, 46.4, 21.9, 48.0, 61.8),
    _detr("detr-dc5", _R101, "detr-r101-dc5-a2e86def.pth", "detr-resnet-101-dc5", 253,
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
    _dino("dino-4scale", "checkpoint0011_4scale.pth", _DINO_FOLDER, 49.0),
    _dino("dino-5scale", "checkpoint0011_5scale.pth", _DINO_FOLDER, 49.4),
    _dino("dino-4scale-detrex", "dino_r50_4scale_12ep_49_2AP.pth",
          f"{_DETREX}/dino_r50_4scale_12ep_49_2AP.pth", 49.2, 80),
    # The multiply-adds are half of the published GFLOPs.
    _rt_detr("rt-detr-r18", "rtdetr_r18vd_dec3_6x_coco_from_paddle.pth", 72, 30, 46.4, 63.7),
    _rt_detr("rt-detr-r34", "rtdetr_r34vd_dec4_6x_coco_from_paddle.pth", 72, 46, 48.9, 66.8),
    _rt_detr("rt-detr-r50-m", "rtdetr_r50vd_m_6x_coco_from_paddle.pth", 72, 50, 51.3, 69.5),
    _rt_detr("rt-detr-r50", "rtdetr_r50vd_6x_coco_from_paddle.pth", 72, 68, 53.1, 71.2),
    _rt_detr("rt-detr-r101", "rtdetr_r101vd_6x_coco_from_paddle.pth", 72, 130, 54.3, 72.8),
    _rt_detr("rt-detr-v2-r18", "rtdetrv2_r18vd_120e_coco.pth", 120, 30, 47.9, 64.9),
    _rt_detr("rt-detr-v2-r34", "rtdetrv2_r34vd_120e_coco_ema.pth", 120, 46, 49.9, 67.5),
    _rt_detr("rt-detr-v2-r50-m", "rtdetrv2_r50vd_m_7x_coco_ema.pth", 84, 50, 51.9, 69.9),
    _rt_detr("rt-detr-v2-r50", "rtdetrv2_r50vd_6x_coco_ema.pth", 72, 68, 53.4, 71.6),
    _rt_detr("rt-detr-v2-r101", "rtdetrv2_r101vd_6x_coco_from_paddle.pth", 72, 130, 54.3, 72.8),
    Published(
        "deim-rt-detr-v2-r18", "resnet18d", _drive("153_JKff6EpFgiLKaqkJsoDcLal_0ux_F"),
        "deim_rtdetrv2_r18vd_coco_120e.pth", "", "", 120, 30, {"ap": 49.0}, 80,
    ),
    _d_fine("n", "nano", 160, 3.5, 42.8),
    _d_fine("s", "small", 132, 12.5, 48.5),
    _d_fine("m", "medium", 132, 28.5, 52.3),
    _d_fine("l", "large", 80, 45.5, 54.0),
    _d_fine("x", "xlarge", 80, 101, 55.8),
    _deim("n", "1ZPEhiU9nhW4M5jLnYOFwTSLQC1Ugf62e", 160, 3.5, 43.0),
    _deim("s", "1tB8gVJNrfb6dhFvoHJECKOF5VpkthhfC", 132, 12.5, 49.0),
    _deim("m", "18Lj2a6UN6k_n_UzqnJyiaiLGpDzQQit8", 102, 28.5, 52.7),
    _deim("l", "1PIRf02XkrA2xAD3wEiKE2FaamZgSGTAr", 58, 45.5, 54.7),
    _deim("x", "1dPtbgtGgq1Oa7k_LgH1GXPelg1IVeu0j", 58, 101, 56.5),
    _deimv2("atto", "18sRJXX3FBUigmGJ1y5Oo_DPC5C3JCgYc", 500, 0.4, 23.8),
    _hgnet("deimv2-femto", "deimv2-femto-coco.safetensors",
           "https://github.com/Intellindust-AI-Lab/DEIMv2", 500, 0.85, 31.0),
    _deimv2("pico", "1PXpUxYSnQO-zJHtzrCPqQZ3KKatZwzFT", 500, 2.6, 38.5),
    _deimv2("n", "1G_Q80EVO4T7LZVPfHwZ3sT65FX5egp9K", 160, 3.4, 43.0),
)  # fmt: skip


def published(preset: str, backbone: str | None = None) -> Published:
    """The published weights of a detector, by default with its usual backbone.

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
        if backbone in (None, each.backbone):
            return each
    having = " and ".join(each.backbone for each in of_preset)
    raise UserError(
        f"there are no published COCO weights for {preset!r} with backbone {backbone!r}, only "
        f"with {having}: use --weights imagenet for another backbone"
    )


def weights_folder() -> Path:
    """Where downloaded weights are kept."""
    return cache_folder() / "weights"


def cached(entry: Published) -> Path | None:
    """The file of published weights if it is here: in the package, our cache, or PyTorch's."""
    torch_home = os.environ.get("TORCH_HOME")
    torch_cache = Path(torch_home).expanduser() if torch_home else user_cache() / "torch"
    for folder in (ASSETS, weights_folder(), torch_cache / "hub" / "checkpoints"):
        if (folder / entry.file).is_file():
            return folder / entry.file
    return None


def in_hub_cache(entry: Published) -> Path | None:
    """The folder of the same weights in the Hugging Face Hub's cache, if they are there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(entry.hub, "model.safetensors") if entry.hub else None
    return Path(path).parent if isinstance(path, str) else None


def models() -> list[dict[str, Any]]:
    """Every preset and every published checkpoint of it, as ``detrlab models --json`` prints it.

    Parameters are counted with COCO's 91 rows of classes, without allocating them. ``cached``
    is a file or a folder on this machine, or None.
    """
    rows = []
    for preset in PRESETS:
        entries: list[Published | None] = [each for each in PUBLISHED if each.preset == preset]
        rows += [_row(preset, entry) for entry in entries or [None]]
    return rows


def _row(preset: str, entry: Published | None) -> dict[str, Any]:
    from detrlab.presets import outline

    config = entry.config if entry else model_config(preset, COCO_ROWS)
    parameters = list(outline(config).parameters())
    here = (cached(entry) or in_hub_cache(entry)) if entry else None
    return {
        "preset": preset,
        "backbone": config.backbone,
        "parameters": sum(each.numel() for each in parameters),
        "trainable": sum(each.numel() for each in parameters if each.requires_grad),
        "gflops": entry.gflops if entry else None,
        **(entry.ap if entry else {}),
        "epochs": entry.epochs if entry else None,
        "url": entry.url if entry else None,
        "hub": entry.hub if entry else None,
        "cached": str(here) if here else None,
    }
