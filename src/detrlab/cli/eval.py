"""``detrlab eval``: judge a checkpoint, or another tool's predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data import Table
    from detrlab.evaluation.coco import Evaluator
    from detrlab.export import OtherDetector


@dataclass(frozen=True, kw_only=True)
class Options:
    """Judge a checkpoint, or another tool's detections in COCO json, on a data set."""

    data: str
    """A folder, file or zip of annotated images, or the name of a built-in set."""
    model: str | None = None
    """A checkpoint, an ONNX file of any detector, OpenVINO's .xml, or hf:REPOSITORY."""
    rename: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL=DATA")] = ()
    """Names of the model's classes that the data calls otherwise: person=pedestrian ..."""
    predictions: str | None = None
    """Instead of a model: COCO json results of any tool."""
    categories: Literal["ids", "from-0", "from-1"] = "ids"
    """How category_id in --predictions is meant: as ids, or as positions counted from 0 or 1."""
    trust: bool = False
    """Judge --predictions as they stand, even if they look like another convention."""
    split: Literal["val", "train", "test", "all"] = "val"
    """Which part of the data: val, train, test, or all of data that has no splits."""
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
    from detrlab.cli.common import fresh_folder, open_predictor, print_metrics, say
    from detrlab.data import batches, open_data, open_whole
    from detrlab.evaluation.analysis import BYTES
    from detrlab.evaluation.coco import Evaluator, evaluate_layers
    from detrlab.evaluation.folder import write_analysis
    from detrlab.evaluation.predictor import judge
    from detrlab.evaluation.records import shortage

    if (options.model is None) == (options.predictions is None):
        raise UserError("give either --model CHECKPOINT or --predictions FILE")
    data = open_whole(options.data) if options.split == "all" else open_data(options.data)
    for note in data.notes:
        say(note)
    if data.split_off and options.split == "val":
        say("only these are judged; if no training has seen any, --split all judges all of it")
    tables = {"val": data.val, "train": data.train, "test": data.test, "all": data.val}
    table = tables[options.split]
    if table is None:
        raise UserError(f"{data.name} has no test split beside the one it is judged on: try val")
    if options.predictions is not None:
        layers: list[Evaluator] = []
        evaluator = _read(options, table)
    else:
        assert options.model is not None
        detector = open_predictor(options.model, options.device, options.imgsz)
        rename = _renamed(options.rename)
        table, as_ours = _in_words_of(detector, table, rename)
        if as_ours is None:
            layers = []
            evaluator, notes = judge(detector, table, rename or getattr(detector, "rename", {}))
            for note in notes:
                say(f"note: {note}")
        else:
            config, workers = as_ours.preprocessing, options.workers
            stream = batches(table, config, batch=8, seed=0, epoch=0, train=False, workers=workers)
            layers = evaluate_layers(as_ours.network, as_ours.scoring, stream, table)
            evaluator = layers[-1] if layers else Evaluator(table)
    metrics = evaluator.metrics().to_dict()
    with fresh_folder(options.output) as folder:
        files.write_json(folder / "metrics.json", metrics)
        evaluator.save_predictions(folder / "predictions.json")
        if missing := shortage(evaluator.num_detections, BYTES) if options.analysis else None:
            say(f"metrics alone, without the analysis: {missing}")
        elif options.analysis:
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


def _in_words_of(
    detector: Detector | OtherDetector, table: Table, rename: dict[str, str]
) -> tuple[Table, Detector | None]:
    """The data in the order of our detector's classes; None where classes must be matched.

    Photographs need not show all of the classes.
    """
    from detrlab.api import Detector

    if not isinstance(detector, Detector) or rename:
        return table, None
    try:
        return table.with_classes(detector.classes), detector
    except UserError:
        return table, None


def _renamed(texts: Sequence[str]) -> dict[str, str]:
    """The data's names by the model's."""
    pairs = [text.partition("=") for text in texts]
    for text, (_, equals, _) in zip(texts, pairs, strict=True):
        if not equals:
            raise UserError(f"--rename {text}: write MODEL=DATA, such as person=pedestrian")
    return {old: new for old, _, new in pairs}
