"""Random but realistic annotations and detections, as COCO dicts, and pycocotools' verdict."""

import contextlib
import dataclasses
import io

import numpy as np

from detrlab.evaluation.coco import Evaluator

NUMBERS = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
]


def scene(
    seed,
    *,
    num_images=12,
    num_classes=4,
    objects=6,
    false_alarms=8,
    crowd_share=0.1,
    found=0.8,
    jitter=0.08,
    confused=0.1,
    decimals=2,
    string_ids=False,
    on_grid=False,
):
    """(ground truth, results): scores are rounded, so that ties are common.

    ``on_grid`` puts all corners on multiples of 8 pixels: then many an IoU is exactly a half.
    """
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    categories = [{"id": 3 + 2 * k, "name": f"class {k}"} for k in range(num_classes)]
    for i in rng.permutation(num_images).tolist():
        image_id = f"image {i:03d}" if string_ids else 7 * i
        images.append({"id": image_id, "width": 640, "height": 480, "file_name": f"{i}.jpg"})
        for _ in range(rng.integers(0, 2 * objects + 1) if rng.random() > 0.15 else 0):
            box = _box(rng)
            label = int(rng.integers(num_classes))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[label]["id"],
                    "bbox": box.tolist(),
                    # As with segmentations: the area is smaller than the box's.
                    "area": float(box[2] * box[3] * rng.uniform(0.5, 1.0)),
                    "iscrowd": int(rng.random() < crowd_share),
                }
            )
            for _ in range(rng.choice([0, 1, 2], p=[1 - found, 0.9 * found, 0.1 * found])):
                seen = label if rng.random() > confused else int(rng.integers(num_classes))
                results.append(
                    _result(
                        image_id,
                        categories[seen]["id"],
                        _moved(rng, box, jitter),
                        round(float(rng.beta(4, 2)), decimals),
                    )
                )
        for _ in range(rng.integers(0, 2 * false_alarms + 1)):
            category = categories[rng.integers(num_classes)]["id"]
            score = round(float(rng.beta(2, 5)), decimals)
            results += [_result(image_id, category, _box(rng), score)]
    if on_grid:
        for row in annotations + results:
            row["bbox"] = [float(max(8, 8 * round(side / 8))) for side in row["bbox"]]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, results


def _box(rng):
    width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
    return np.array([rng.uniform(0, 600), rng.uniform(0, 440), width, height])


def _moved(rng, box, jitter):
    centre = box[:2] + box[2:] / 2 + rng.normal(0, jitter, 2) * box[2:]
    size = box[2:] * np.exp(rng.normal(0, jitter, 2))
    return np.concatenate([centre - size / 2, size])


def _result(image_id, category_id, box, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": box.tolist(), "score": score}


def judged(seed=0, **options):
    """Columns of a scene: the truth and the detections."""
    truth, results = scene(seed, **options)
    evaluator = fill(Evaluator(truth), results)
    return evaluator.truth, evaluator.detected()


def objects(truth, rows):
    """The ground truth with some of its objects."""
    columns = ("image", "label", "boxes", "area", "crowd")
    return dataclasses.replace(truth, **{name: getattr(truth, name)[rows] for name in columns})


def perfect(truth):
    """Detections equal to the objects of a COCO dict."""
    return [
        {**{key: row[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for row in truth["annotations"]
    ]


def fill(evaluator, results):
    """Hand COCO results to an evaluator image by image, as a network's loop would."""
    truth = evaluator.truth
    for image_id in truth.image_ids:
        mine = [row for row in results if row["image_id"] == image_id]
        boxes = np.array([row["bbox"] for row in mine]).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        labels = [truth.label_index[row["category_id"]] for row in mine]
        evaluator.add(image_id, boxes, np.array([row["score"] for row in mine]), labels)
    return evaluator


def pycocotools_metrics(truth, results):
    """The 12 numbers and AP per class name, None for pycocotools' -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {**truth, "info": {}}
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(list(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = dict(zip(NUMBERS, map(_or_none, evaluation.stats), strict=True))
    precision = evaluation.eval["precision"]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    numbers["per_class"] = {}
    for k, category in enumerate(evaluation.params.catIds):
        judged = precision[:, :, k, 0, 2]
        judged = judged[judged > -1]
        numbers["per_class"][names[category]] = float(judged.mean()) if len(judged) else None
    return numbers


def _or_none(value):
    return None if value == -1 else float(value)
