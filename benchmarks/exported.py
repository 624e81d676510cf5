"""Latency and detections of exported detectors: PyTorch, ONNX Runtime, OpenVINO, 16 and 8 bits.

    python benchmarks/exported.py deimv2-femto --photos ../shared/data/facemask
    python benchmarks/exported.py d-fine-n --random

Writes a row for each detector into docs/results/exported.json. All runtimes are timed in one
alternating run, with one thread and with two; the processor's milliseconds are hardly affected by
other programs. The photographs have no labels of COCO's classes: the detections of PyTorch that
score at least 0.3 are the truth, so the AP here says how much of them each file keeps.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

import detrlab
from detrlab import files
from detrlab.benchmark.cost import provenance
from detrlab.benchmark.timing import in_turn
from detrlab.boxes import box_iou
from detrlab.data import open_data, open_whole
from detrlab.evaluation.predictor import judge
from detrlab.export import deploy, load, lowered
from detrlab.export.agreement import agreement
from detrlab.export.certificate import TOLERANCE, versions
from detrlab.export.sessions import KEY
from detrlab.images import read_picture
from detrlab.models.prepare import plain, prepare

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "exported.json"
CALIBRATION, PHOTOGRAPHS, ROUNDS, SCORE = 128, 57, 20, 0.3


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--random", action="store_true", help="untrained, with COCO's 80 classes")
    parser.add_argument("--photos", type=Path, help="folder with train2017 and val2017")
    options = parser.parse_args()
    detector = opened(options.model, random=options.random)
    with tempfile.TemporaryDirectory() as folder:
        made = exported(
            detector, Path(folder), photographs(options.photos, "train2017", CALIBRATION)
        )
        row = {
            "weights": "random" if options.random else "published",
            "size": list(size_of(detector)),
            **provenance(),
            "versions": versions(),
            "rounds": ROUNDS,
            "megabytes": {name: bytes_of(path) / 1e6 for name, path in made.items()},
            "threads": {str(count): times(detector, made, count) for count in (1, 2)},
        }
        if options.photos is not None:
            found = photographs(options.photos, "val2017", PHOTOGRAPHS)
            row["photographs"] = kept(detector, made, found, Path(folder))
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    files.write_json(RESULTS, {**rows, options.model: row})


def opened(name, *, random):
    if not random:
        return detrlab.load(name)
    built = detrlab.build(name, [f"class {index}" for index in range(80)])
    prepare(built.network)
    built.preprocessing = built.config.preprocessing()
    return built


def size_of(detector):
    config = detector.preprocessing
    square = config.resize == "square"
    return (config.image_size,) * 2 if square else (config.image_size, config.max_size)


def photographs(folder, part, count):
    """Photographs, or generated pictures without a folder."""
    if folder is None:
        table = open_data("shapes").val
        return [table.picture(row) for row in range(16)]
    paths = sorted((folder / part).glob("*.jpg"))
    return [read_picture(path) for path in paths[:: max(1, len(paths) // count)]]


def exported(detector, folder, calibration):
    """Every file, by the name of its row."""
    metadata = {KEY: json.dumps(deploy.reading_for(detector).to_dict())}
    first = folder / "float32.onnx"
    program = deploy.trace(deploy.deployed(detector, plain(detector.network)), size_of(detector))
    deploy.write_onnx(program, first, metadata)
    lowered.to_float16(first, folder / "float16.onnx")
    lowered.to_int8(first, folder / "int8.onnx", feeds(load(first), calibration))
    made = {}
    for precision in ("float32", "float16", "int8"):
        source = folder / f"{precision}.onnx"
        target = source.with_suffix(".xml")
        deploy.write_openvino(source, target, metadata)
        made |= {f"ONNX Runtime {precision}": source, f"OpenVINO {precision}": target}
    return made


def feeds(one, pictures):
    return [one.feeds(one.prepare(each)[0], tuple(each.shape[1:])) for each in pictures]


def bytes_of(path):
    parts = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    return sum(each.stat().st_size for each in parts)


def times(detector, made, threads):
    torch.set_num_threads(threads)
    height, width = size_of(detector)
    picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    module = deploy.deployed(detector)
    image, sizes = picture[None], torch.tensor([[width, height]])
    calls = {"PyTorch": torch.inference_mode()(lambda: module(image, sizes))}
    opened_files = {name: load(path, threads=threads) for name, path in made.items()}
    calls |= {name: each.inference(picture) for name, each in opened_files.items()}
    return {name: each.to_dict() for name, each in in_turn(calls, ROUNDS).items()}


def kept(detector, made, pictures, folder):
    """What each file keeps of PyTorch's detections."""
    asked = {"threshold": None, "limit": deploy.LIMIT, "keep_image": False}
    first = list(detector.predict_each(pictures, **asked))
    data = folder / "labelled"
    write_labels(data, pictures, [each.above(SCORE) for each in first])
    table = open_whole(str(data)).val
    rows = {}
    for name, path in {"PyTorch": None, **made}.items():
        one = detector if path is None else load(path)
        second = list(one.predict_each(pictures, **asked))
        sure = [each.above(SCORE) for each in first]
        exact = agreement(sure, second, TOLERANCE)
        rows[name] = {
            "sure": exact.compared,
            "kept": sum(overlapping(*pair) for pair in zip(sure, second, strict=True)),
            "beyond_5_px": exact.lost,
            "box_px_of_640": exact.box,
            "score": exact.score,
            "ap": judge(one, table)[0].metrics().ap,
        }
    return {"images": len(pictures), "truth": f"PyTorch, score {SCORE}", "rows": rows}


def overlapping(first, second):
    """How many detections have one of the same class in the same place (IoU above 0.5)."""
    same = first.labels[:, None] == second.labels
    overlaps = box_iou(first.boxes[:, None], second.boxes[None]) * same
    return int((overlaps.amax(1) > 0.5).sum()) if len(first) else 0


def write_labels(folder, pictures, found):
    """A COCO folder whose truth are detections."""
    from PIL import Image

    folder.mkdir()
    images, annotations = [], []
    for number, (pixels, each) in enumerate(zip(pictures, found, strict=True), 1):
        name = f"{number}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
        height, width = each.size
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for record in each.to_coco():
            x, y, w, h = record["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": record["category_id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    used = {each["category_id"] for each in annotations}
    names = dict(zip(found[0].category_ids, found[0].classes, strict=True))
    categories = [{"id": key, "name": names[key]} for key in sorted(used)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
