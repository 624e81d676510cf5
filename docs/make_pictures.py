"""Draw the figures of the walkthrough from trained checkpoints and an image.

    python docs/make_pictures.py CHECKPOINT... --photo PHOTO --data DATA --statistics

CHECKPOINTs are files that detrlab wrote (``weights/last.safetensors`` of a run) or folders of runs,
such as the ``runs`` of a comparison. PHOTO is a file of the data set DATA, whose annotations are
used. A figure is drawn if a page below ``docs`` shows it and its detector is among the
checkpoints. Numbers for the captions are printed as JSON. ``--statistics`` adds what needs all
validation images: where queries put their boxes, and the AP of every decoder layer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import detrlab
from detrlab.cli.explain import find_target
from detrlab.data import batches, open_data
from detrlab.errors import UserError
from detrlab.evaluation.coco import evaluate_layers
from detrlab.explain import Explanation, plots
from detrlab.explain.missed import sentence
from detrlab.explain.query_use import explained_share, query_use
from detrlab.presets import FIVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrlab import Detector
    from detrlab.data import DataSet
    from detrlab.structures import Target

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
CUT = 0.25
DPI = 85
LARGEST = 150_000
"""Bytes of one picture in a repository."""
NOTHING_THERE = (0.8, 0.75)


def main() -> int:
    """Draw everything that the checkpoints allow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--photo", required=True, type=Path, help="file of the photograph")
    parser.add_argument("--data", required=True, help="the data set that it belongs to")
    parser.add_argument("--cut", type=float, default=CUT, help="score from which a box counts")
    parser.add_argument("--statistics", action="store_true", help="over the data set, slower")
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the pictures")
    options = parser.parse_args()
    try:
        data = open_data(options.data)
        detectors = load(options.checkpoints)
        told: dict[str, Any] = {}
        for name, detector in detectors.items():
            target = find_target(data, options.photo, detector.classes)
            explanation = detector.explain(options.photo, target)
            for picture, figure in of_photo(explanation, target, options.cut):
                keep(figure, f"{name}-{picture}", options.output)
            told[name] = words(explanation, options.cut)
            if options.statistics:
                figure, numbers = over_data(detector, data)
                keep(figure, f"{name}-queries", options.output)
                told[name] |= numbers
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    json.dump(told, sys.stdout, indent=1, ensure_ascii=False)
    print()
    return 0


def load(paths: list[Path]) -> dict[str, Detector]:
    """One detector of each of the five, in their order; of several runs the first by name."""
    files = [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.rglob("weights/last.safetensors")))
    ]
    if not files:
        raise UserError(f"no weights/last.safetensors below {', '.join(map(str, paths))}")
    loaded: dict[str, Detector] = {}
    for file in files:
        detector = detrlab.load(file)
        loaded.setdefault(detector.config.preset, detector)
    return {name: loaded[name] for name in FIVE if name in loaded}


def of_photo(explanation: Explanation, target: Target, cut: float) -> list[tuple[str, Figure]]:
    """Name and figure of everything that is about one photograph."""
    order = target.boxes[:, 2:].prod(-1).argsort().tolist()
    smallest, largest = order[0], order[-1]
    x, y = target.boxes[smallest, :2].tolist()
    verdicts = explanation.verdicts(cut)
    queries = [verdicts[index].best.query for index in (smallest, largest)]
    queries = list(dict.fromkeys(queries))
    figures = [
        ("detections", plots.draw_detections(explanation, cut)),
        ("decoder", plots.draw_decoder(explanation, queries)),
        ("heads", plots.draw_heads(explanation, queries[0])),
        ("paths", plots.draw_paths(explanation, queries)),
        ("encoder", plots.draw_encoder(explanation, [(x, y), NOTHING_THERE])),
        ("objects", plots.draw_objects(explanation, cut)),
    ]
    if explanation.proposals is not None:
        figures.append(("proposals", plots.draw_proposals(explanation)))
    return figures


def over_data(detector: Detector, data: DataSet) -> tuple[Figure, dict[str, Any]]:
    """Where queries put their boxes over the validation images, and the AP of every layer."""
    parts = list(
        batches(data.val, detector.preprocessing, batch=8, seed=0, epoch=0, train=False, workers=0)
    )
    use = query_use(detector, data.val)
    layers = evaluate_layers(detector.network, detector.scoring, parts, data.val)
    numbers = {
        "images": len(data.val),
        "layer_ap": [layer.metrics().ap for layer in layers],
        "place_known_from_query": explained_share(use),
    }
    return plots.draw_query_use(use), numbers


def words(explanation: Explanation, cut: float) -> dict[str, Any]:
    """What the walkthrough may quote of one photograph."""
    found = [each for each in explanation.detections() if each.score >= cut]
    look = explanation.look(explanation.detections()[0].query)
    entropy = -(look.weights * look.weights.clamp(min=1e-12).log())
    heads = entropy.flatten(-2).sum(-1) if explanation.deformable else entropy.sum(-1)
    return {
        "detections": len(found),
        "objects": [sentence(each, explanation.classes, cut) for each in explanation.verdicts(cut)],
        "places_a_head_attends_to": float(torch.exp(heads).mean()),
    }


def shown() -> set[str]:
    """Names of the pictures of a detector that the pages show."""
    pages = (page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    named = re.compile(rf"\(pictures/((?:{'|'.join(FIVE)})-[\w-]+)\.jpg\)")
    return {name for page in pages for name in named.findall(page)}


def keep(figure: Figure, name: str, folder: Path) -> None:
    """Write a picture that is shown, small enough for a repository."""
    if name not in shown():
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jpg"
    for quality in (78, 65, 50):
        figure.savefig(path, dpi=DPI, pil_kwargs={"quality": quality, "optimize": True})
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
