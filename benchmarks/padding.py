"""What padding does to a detector: the same weights on images alone and on padded ones.

``python benchmarks/padding.py --data facemask --weights TITLE=FILE ... --output FILE``

Training pads the images of a batch to one size, evaluation never pads. ``models/aligned.py`` tells
why a backbone with TensorFlow's "SAME" padding minds that; here its convolutions pad once as timm
has them and once aligned.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from timm.layers.padding import pad_same
from torch import Tensor
from torch.nn import functional as F

import detrlab
from detrlab.data import Batch, DataSet, batches, open_data
from detrlab.evaluation.coco import Evaluator, evaluate
from detrlab.models.aligned import SamePadding
from detrlab.models.folding import FoldedConv2d
from detrlab.structures import ImageBatch

Canvas = Callable[[int, int, int], tuple[int, int]]
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", nargs="+", required=True, metavar="TITLE=FILE")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    data = open_data(options.data)
    report: dict[str, dict[str, dict[str, float | None]]] = {}
    for title, _, file in (each.rpartition("=") for each in options.weights):
        detector = detrlab.load(file)
        aligned = {
            module: module._pad
            for module in detector.network.modules()
            if isinstance(module, FoldedConv2d) and isinstance(module._pad, SamePadding)
        }
        report[title] = {}
        for name, canvas in (("aligned, alone", alone), ("aligned, in a square", square)):
            report[title][name] = judged(detector, data, canvas)
        for module in aligned:
            module._pad = as_timm(module)
        report[title]["as timm pads, alone"] = judged(detector, data, alone)
        print(title, report[title], flush=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


def alone(height: int, width: int, _longest: int) -> tuple[int, int]:
    return height, width


def square(_height: int, _width: int, longest: int) -> tuple[int, int]:
    return longest, longest


def as_timm(module: FoldedConv2d) -> Callable[[Tensor], Tensor]:
    """The padding of timm's ``Conv2dSame``."""
    kernel, options = list(module.weight.shape[-2:]), module._options
    return lambda maps: pad_same(maps, kernel, list(options["stride"]), list(options["dilation"]))


def judged(detector: detrlab.Detector, data: DataSet, canvas: Canvas) -> dict[str, float | None]:
    """AP on the validation images."""
    found = batches(data.val, detector.preprocessing, batch=8, train=False, workers=0)
    evaluator = Evaluator(data.val)
    on_canvas = padded(found, canvas, detector.preprocessing.max_size)
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
