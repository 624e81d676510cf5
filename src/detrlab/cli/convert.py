"""``detrlab convert``: checkpoints and data sets in other tools' formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrlab.errors import UserError, did_you_mean

CHECKPOINTS = ("detrlab", "official", "transformers")
DATA = ("coco", "yolo", "voc", "shards")


@dataclass(frozen=True)
class Options:
    """Write a checkpoint or a data set in another format; what is lost is named."""

    source: Annotated[str, tyro.conf.Positional]
    """A checkpoint (any layout, or the name of a preset), or a data set (any format)."""
    to: str
    """For checkpoints: detrlab, official, transformers. For data: coco, yolo, voc,
    shards."""
    output: str | None = None
    """The file or folder to write; by default beside the source. Nothing is overwritten."""
    backbone: str | None = None
    """Name in timm of a checkpoint's backbone, if it cannot be recognised."""


def run(options: Options) -> int:
    """Convert; returns the exit code."""
    from detrlab.cli.common import say

    if options.to in CHECKPOINTS:
        lines = _checkpoint(options)
    elif options.to in DATA:
        lines = _data(options)
    else:
        known = (*CHECKPOINTS, *DATA)
        raise UserError(f"--to {options.to}: unknown format{did_you_mean(options.to, known)}")
    for line in lines:
        say(line)
    return 0


def _checkpoint(options: Options) -> list[str]:
    from detrlab.checkpoints.convert import convert, default_target
    from detrlab.checkpoints.weights import load_detector

    target = options.output or default_target(options.source, options.to)
    imported = load_detector(options.source, backbone=options.backbone)
    return convert(imported, options.to, target)


def _data(options: Options) -> list[str]:
    from detrlab.data.convert import convert
    from detrlab.data.hub import HUB, parse

    source = Path(options.source)
    if options.source.startswith(HUB):
        source = Path(Path(parse(options.source).name).name)
    target = options.output or source.with_name(f"{source.stem}-{options.to}")
    done = convert(options.source, options.to, target)
    return [
        *done.notes,
        *(f"lost: {loss}" for loss in done.changes),
        f"{done.images:,} images and {done.boxes:,} boxes as {options.to}: {done.folder}",
    ]
