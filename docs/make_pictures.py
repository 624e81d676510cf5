"""The walkthrough's pictures, from the runs of a comparison on real photographs.

    python docs/make_pictures.py runs/compare/facemask-laptop path/to/facemask PHOTO.jpg

PHOTO is the file name of a validation image. Detectors whose weights are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import detrlab
from detrlab.data import batches, open_data
from detrlab.explain import Explanation, explain_image, pictures
from detrlab.explain.curves import observe
from detrlab.explain.inquiry import find_target
from detrlab.explain.missed import sentence
from detrlab.explain.queries import explained_share, query_use
from detrlab.presets import FIVE

PICTURES = Path(__file__).resolve().parent / "pictures"
CUT = 0.25
DPI = 85
NOTHING_THERE = (0.8, 0.75)
SHOWN = (
    "detr-encoder", "deformable-detr-two-stage-encoder",
    "deformable-detr-two-stage-proposals",
    "detr-decoder", "deformable-detr-two-stage-decoder",
    "deformable-detr-two-stage-heads", "deformable-detr-two-stage-paths",
    "detr-objects", "deformable-detr-two-stage-objects",
    "deformable-detr-two-stage-detections",
    "detr-queries", "deformable-detr-two-stage-queries",
)  # fmt: skip
"""The pictures that the walkthrough uses."""


def main() -> None:
    """Draw everything that the checkpoints allow."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("comparison", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("photo")
    arguments.add_argument("--statistics", action="store_true", help="over the data set, slower")
    options = arguments.parse_args()

    data = open_data(options.data)
    position = next(i for i in range(len(data.val)) if Path(data.val.file(i)).name == options.photo)
    target = find_target(data, Path(options.photo))
    detectors = {}
    for path in options.comparison.glob("runs/*/weights/last.safetensors"):
        detector = detrlab.load(path)
        detectors[detector.config.preset] = detector
    detectors = {name: detectors[name] for name in FIVE if name in detectors}
    photo = data.val.picture(position)
    explained = {name: explain_image(each, photo, target) for name, each in detectors.items()}

    order = target.boxes[:, 2:].prod(-1).argsort().tolist()
    smallest, largest = order[0], order[-1]
    small_place = tuple(target.boxes[smallest, :2].tolist())
    for name, each in explained.items():
        verdicts = each.verdicts(CUT)
        queries = [verdicts[index].final.best.query for index in (smallest, largest)]
        queries = list(dict.fromkeys(queries))
        keep(pictures.draw_detections(each, CUT), f"{name}-detections")
        keep(pictures.draw_decoder(each, queries), f"{name}-decoder")
        keep(pictures.draw_heads(each, queries[0]), f"{name}-heads")
        keep(pictures.draw_paths(each, queries), f"{name}-paths")
        keep(pictures.draw_encoder(each, [small_place, NOTHING_THERE]), f"{name}-encoder")
        keep(pictures.draw_objects(each, CUT), f"{name}-objects")
        if each.proposals is not None:
            keep(pictures.draw_proposals(each), f"{name}-proposals")
    told = {name: words(each) for name, each in explained.items()}
    if options.statistics:
        for name, detector in detectors.items():
            parts = batches(
                data.val, detector.preprocessing, batch=8, seed=0, epoch=0, train=False, workers=0
            )
            parts = list(parts)
            use = query_use(detector.network, detector.scoring, (each.images for each in parts))
            keep(pictures.draw_query_use(use), f"{name}-queries")
            layer_ap, _ = observe(detector.network, detector.scoring, parts, data.val)
            told[name] |= {"layer_ap": layer_ap, "place_known_from_query": explained_share(use)}
    json.dump(told, sys.stdout, indent=1)


def words(explanation: Explanation) -> dict[str, object]:
    """What the walkthrough may quote."""
    found = [each for each in explanation.detections() if each.score >= CUT]
    look = explanation.look(explanation.detections()[0].query)
    entropy = -(look.weights * look.weights.clamp(min=1e-12).log())
    heads = entropy.flatten(-2).sum(-1) if explanation.deformable else entropy.sum(-1)
    return {
        "detections": len(found),
        "objects": [sentence(each, explanation.classes, CUT) for each in explanation.verdicts(CUT)],
        "places_a_head_attends_to": float(torch.exp(heads).mean()),
    }


def keep(figure: object, name: str) -> None:
    """Write one of the pictures that are used, small enough for a repository."""
    if name not in SHOWN:
        return
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{name}.jpg"
    figure.savefig(path, dpi=DPI, pil_kwargs={"quality": 78, "optimize": True})
    assert path.stat().st_size < 150_000, f"{path.name} is too large"


if __name__ == "__main__":
    main()
