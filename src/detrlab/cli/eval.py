"""``detrlab eval``: judge a checkpoint, or another tool's predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    categories: Literal["ids", "from-0", "from-1"] = "ids"
    """How category_id in --predictions is meant: as ids, or as positions counted from 0 or 1."""
    trust: bool = False
    """Judge --predictions as they stand, even if they look like another convention."""
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
    analysis: bool = True
    """Also write analysis.json, pictures and the hardest images."""
    json: bool = False
    """Print the metrics as JSON instead of a table."""


def run(options: Options) -> int:
    """Evaluate; returns the exit code."""
    from detrlab import files
    from detrlab.cli.common import fresh_folder, print_metrics, say
    from detrlab.data import open_data
    from detrlab.evaluation.coco import Evaluator
    from detrlab.evaluation.folder import write_analysis

    if (options.model is None) == (options.predictions is None):
        raise UserError("give either --model CHECKPOINT or --predictions FILE")
    if options.split not in ("val", "train"):
        raise UserError(f"--split {options.split}: known: val, train")
    data = open_data(options.data)
    for note in data.notes:
        say(note)
    table = data.val if options.split == "val" else data.train
    if options.predictions is not None:
        layers = []
        evaluator = _read(options, table)
    else:
        layers = _infer(options, table)
        evaluator = layers[-1] if layers else Evaluator(table)
    metrics = evaluator.metrics().to_dict()
    folder = fresh_folder(options.output)
    files.write_json(folder / "metrics.json", metrics)
    evaluator.save_predictions(folder / "predictions.json")
    if options.analysis:
        write_analysis(table, evaluator, folder, layers)
    if options.json:
        print(json.dumps(metrics))
    else:
        judged = Path(options.model or options.predictions or "").name
        print_metrics(metrics, title=f"{judged} on {data.name}, {options.split} split")
    say(f"written to {folder}")
    return 0


def _read(options: Options, table: Table) -> Evaluator:
    """Another tool's detections."""
    from detrlab.cli.common import say
    from detrlab.evaluation.coco import Evaluator
    from detrlab.evaluation.foreign import load_predictions

    assert options.predictions is not None
    evaluator = Evaluator(table)
    foreign = load_predictions(
        options.predictions, evaluator.truth, categories=options.categories, trust=options.trust
    )
    for note in foreign.notes:
        say(note)
    evaluator.extend(foreign.detected)
    return evaluator


def _infer(options: Options, table: Table) -> list[Evaluator]:
    """The detections of every decoder layer; the last are the detector's."""
    from detrlab.api import load
    from detrlab.cli.common import pick_device
    from detrlab.data import batches
    from detrlab.evaluation.coco import evaluate_layers

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
    return evaluate_layers(detector.network, detector.scoring, stream, table)
