"""The effect of padding: the same weights on images without and with padding.

    python benchmarks/padding.py --data facemask --weights TITLE=FILE ... --train runs/held-grid

Training pads the images of a batch to one size, evaluation never pads. Convolutions see where an
image ends, and the group norms of Deformable DETR's neck average over padding. A backbone with
TensorFlow's "SAME" padding minds its size besides: a strided convolution pads an even side at its
end and an odd one on both sides, so that the grid of cells lies elsewhere in the image.
``held_grid`` pads every side as its next multiple of the stride; ``--train`` trains a small
two-stage detector on ``shapes`` in both ways. Writes docs/results/padding.json.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch.nn import functional as F

import detrlab
from detrlab.config import DataConfig, Recipe, TrainConfig
from detrlab.data import Batch, DataSet, batches, open_data
from detrlab.evaluation.coco import Evaluator, as_ground_truth, evaluate
from detrlab.models.backbones import folding
from detrlab.recipes import recipe
from detrlab.structures import ImageBatch
from detrlab.training.loop import Options, plan, train

RESULT = Path(__file__).resolve().parents[1] / "docs/results/padding.json"
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
Canvas = Callable[[int, int, int], tuple[int, int]]
Numbers = dict[str, float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", nargs="*", default=(), metavar="TITLE=FILE")
    parser.add_argument("--train", type=Path)
    options = parser.parse_args()
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {"weights": {}, "shapes": {}}
    data = open_data(options.data) if options.weights else None
    for title, _, file in (each.rpartition("=") for each in options.weights):
        detector = detrlab.load(file)
        row = {
            "alone": judged(detector, data, alone),
            "in a square": judged(detector, data, square),
        }
        with held_grid():
            row["alone, grid held"] = judged(detector, data, alone)
        report["weights"][title] = row
        print(title, row, flush=True)
    if options.train is not None:
        shapes = open_data("shapes")
        report["shapes"] = {"as timm pads": trained_and_judged(shapes, options.train / "timm")}
        with held_grid():
            report["shapes"]["grid held"] = trained_and_judged(shapes, options.train / "held")
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def trained_and_judged(data: DataSet, output: Path) -> Numbers:
    """Train a small two-stage detector, or resume, and give its AP."""
    sizes = {"width": 64, "num_heads": 4, "ffn_width": 128, "encoder_layers": 1, "num_queries": 30}
    settings = Recipe(
        name="padding",
        model={
            "backbone": "tf_efficientnet_lite0", "decoder_layers": 2, "dropout": 0.0, **sizes,
        },
        train=TrainConfig(
            epochs=20, batch=8, learning_rate=1e-3, drop_epoch=16, warmup_steps=100
        ),
        data=recipe("tiny").data.change(data="shapes", image_size=160, max_size=160),
    )  # fmt: skip
    config = plan("deformable-detr-two-stage", settings, data)
    resume = (output / "config.yaml").exists()
    outcome = train(config, output, data, Options(say=print, resume=resume))
    return judged(detrlab.load(outcome.folder.last), data, alone)


def alone(height: int, width: int, _longest: int) -> tuple[int, int]:
    return height, width


def square(_height: int, _width: int, longest: int) -> tuple[int, int]:
    return longest, longest


@contextmanager
def held_grid() -> Iterator[None]:
    """Every strided convolution's grid starts at the same pixel, whatever the image's size.

    Only convolutions with a norm behind them are changed, which in these detectors are all.
    """

    with mock.patch.object(folding, "_margins", margins):
        yield


def margins(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after a side."""
    lacking = max(0, dilation * (kernel - 1) + 1 - stride)
    whole = -(-side // stride) * stride
    return lacking // 2, whole - side + lacking - lacking // 2


def judged(detector: detrlab.Detector, data: DataSet, canvas: Canvas) -> Numbers:
    """AP on the validation images."""
    settings: DataConfig = detector.preprocessing
    found = batches(data.val, settings, batch=8, train=False, workers=0)
    evaluator = Evaluator(as_ground_truth(data.val))
    on_canvas = padded(found, canvas, settings.max_size)
    evaluate(detector.network, detector.scoring, on_canvas, evaluator)
    metrics = evaluator.metrics().to_dict()
    return {key: metrics[key] for key in NUMBERS}


def padded(found: Iterable[Batch], canvas: Canvas, longest: int) -> Iterator[Batch]:
    """Every image in the upper left corner of a canvas."""
    for batch in found:
        pixels, padding = batch.images
        height, width = pixels.shape[-2:]
        down, right = canvas(height, width, longest)
        margin = (0, right - width, 0, down - height)
        images = ImageBatch(F.pad(pixels, margin), F.pad(padding, margin, value=True))
        yield batch._replace(images=images)


if __name__ == "__main__":
    main()
