"""``detrlab eval``: judge a checkpoint, or another tool's predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.data import Table
    from detrlab.evaluation.coco import Evaluator


@dataclass(frozen=True, kw_only=True)
class Options:
    """Judge a checkpoint, or another tool's detections in COCO json, on a data set."""

    data: str
    """A folder, file or zip of annotated images, or the name of a built-in set."""
    model: str | None = None
    """A checkpoint that detrlab wrote."""
    predictions: str | None = None
    """Instead of a model: COCO json results of any tool."""
    split: str = "val"
    """Which part of the data: val or train."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with."""
    workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    output: str = "runs/eval"
    """Folder for metrics.json, predictions.json and pictures; nothing in it is overwritten."""
    json: bool = False
    """Print the metrics as JSON instead of a table."""


def run(options: Options) -> int:
    """Evaluate; returns the exit code."""
    from detrlab import files
    from detrlab.cli.common import fresh_folder, print_metrics, say
    from detrlab.data import open_data
    from detrlab.evaluation.coco import Evaluator

    if (options.model is None) == (options.predictions is None):
        raise UserError("give either --model CHECKPOINT or --predictions FILE")
    if options.split not in ("val", "train"):
        raise UserError(f"--split {options.split}: known: val, train")
    data = open_data(options.data)
    for note in data.notes:
        say(note)
    table = data.val if options.split == "val" else data.train
    evaluator = Evaluator(table)
    if options.predictions is not None:
        _read(options.predictions, table, evaluator)
    else:
        _infer(options, table, evaluator)
    metrics = evaluator.metrics().to_dict()
    folder = fresh_folder(options.output)
    files.write_json(folder / "metrics.json", metrics)
    evaluator.save_predictions(folder / "predictions.json")
    if options.json:
        print(json.dumps(metrics))
    else:
        judged = Path(options.model or options.predictions or "").name
        print_metrics(metrics, title=f"{judged} on {data.name}, {options.split} split")
    say(f"written to {folder}")
    return 0


def _read(path: str, table: Table, evaluator: Evaluator) -> None:
    from detrlab.cli.common import say
    from detrlab.evaluation.foreign import load_predictions

    foreign = load_predictions(path, table)
    for note in foreign.notes:
        say(note)
    evaluator.extend(foreign.detected)


def _infer(options: Options, table: Table, evaluator: Evaluator) -> None:
    from detrlab.api import load
    from detrlab.cli.common import pick_device
    from detrlab.data import batches
    from detrlab.evaluation.coco import evaluate

    assert options.model is not None
    detector = load(options.model).to(pick_device(options.device))
    if detector.classes != table.classes:
        raise UserError(
            f"{options.model} knows the classes {', '.join(detector.classes)}; the data has "
            f"{', '.join(table.classes)}: evaluate on data with the checkpoint's classes"
        )
    config = detector.preprocessing
    if options.imgsz is not None:
        scale = options.imgsz / config.image_size
        config = config.change(image_size=options.imgsz, max_size=round(config.max_size * scale))
    stream = batches(table, config, batch=8, seed=0, epoch=0, train=False, workers=options.workers)
    evaluate(detector.network, detector.scoring, stream, evaluator)
