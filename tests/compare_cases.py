"""Comparisons made by hand, for tests that need one without training anything."""

import json

import numpy as np

from detrlab.compare.results import METRICS, Cost, Epoch, RunResult, rows
from detrlab.data.keyed import keyed


def result(
    name, seed=0, ap=0.2, classes=("cat", "dog"), curve=(0.05, 0.1, 0.2), minutes=3.0, **metrics
):
    values = dict.fromkeys(METRICS, ap) | {"ap50": min(1, 2 * ap), "ap_small": None} | metrics
    return RunResult(
        entrant=name,
        seed=seed,
        key=f"{name}-{seed}",
        metrics={**values, "per_class": dict.fromkeys(classes, ap)},
        predictions=f"runs/{name}-{seed}/predictions.json",
        folder=f"runs/{name}-{seed}",
        epochs=epochs(curve, minutes or 1.0),
        cost=Cost(parameters=1_234_567, trainable=1_000_000, minutes=minutes),
    )


def epochs(curve, minutes):
    return tuple(
        Epoch(
            epoch=index + 1,
            minutes=minutes * (index + 1) / len(curve),
            losses={"loss": 10 / (index + 1)},
            metrics={"ap": value, "ap_small": value / 2},
        )
        for index, value in enumerate(curve)
    )


def table(*results):
    names = list(dict.fromkeys(entry.entrant for entry in results))
    return rows(results, names)


def detections(ground_truth, noise, seed=0, missing=0.2, false=1):
    """COCO records: the annotated boxes moved by ``noise`` of their size, some left out."""
    draws = keyed("detections", seed)
    records = []
    for annotation in ground_truth["annotations"]:
        if draws.random() < missing:
            continue
        x, y, w, h = annotation["bbox"]
        move = draws.normal(0, noise, 4) * [w, h, w, h]
        record = {key: annotation[key] for key in ("image_id", "category_id")}
        record["bbox"] = [x + move[0], y + move[1], w + abs(move[2]), h + abs(move[3])]
        record["score"] = float(np.clip(0.8 - 2 * noise + draws.normal(0, 0.1), 0.01, 0.99))
        records.append(record)
    categories = [category["id"] for category in ground_truth["categories"]]
    for image in ground_truth["images"]:
        for _ in range(false):
            corner = draws.uniform(0, 0.7, 2) * [image["width"], image["height"]]
            records.append(
                {
                    "image_id": image["id"],
                    "category_id": int(draws.choice(categories)),
                    "bbox": [*corner.tolist(), 20.0, 20.0],
                    "score": float(draws.uniform(0.05, 0.4)),
                }
            )
    return records


class FakeTrainer:
    """Writes a finished run without training: the later in PRESETS, the better its boxes."""

    def __init__(self, ground_truth, noises, failing=()):
        self.ground_truth = ground_truth
        self.noises = noises
        self.failing = list(failing)
        self.trained = []

    def __call__(self, run, report):
        from detrlab.evaluation.coco import accumulate, as_ground_truth
        from detrlab.evaluation.foreign import load_predictions

        if run.entrant in self.failing:
            raise MemoryError("no more of it")
        self.trained.append((run.entrant, run.seed))
        noise = self.noises[run.entrant]
        path = run.folder / "predictions.json"
        path.write_text(json.dumps(detections(self.ground_truth, noise, run.seed)))
        truth = as_ground_truth(self.ground_truth)
        metrics = accumulate(truth, load_predictions(path, truth, trust=True).detected).metrics(
            truth.classes
        )
        report(f"AP {metrics.ap:.3f}")
        made = RunResult(
            entrant=run.entrant,
            seed=run.seed,
            key=run.key,
            metrics=metrics.to_dict(),
            predictions=f"runs/{run.folder.name}/predictions.json",
            folder=f"runs/{run.folder.name}",
            epochs=epochs([metrics.ap * share for share in (0.2, 0.6, 1.0)], 30 * noise + 1),
            cost=Cost(parameters=10_000_000, trainable=9_000_000, gflops=1.5, minutes=30 * noise),
            environment={"order": "same", "initial_backbone": "same", "python": "3.11"},
        )
        made.save(run.folder)
        return made


def in_process(run, report):
    """Trains a run here, without a process of its own."""
    from detrlab.compare.runner import train_run
    from detrlab.data import open_data

    return train_run(run, open_data(run.data.data), report)


def definition(data, models=("detr",), seeds=(0,), budget=None, **train):
    """What a comparison on a folder of ``write_data`` is about."""
    from detrlab.compare.definition import Definition, facts
    from detrlab.compare.entrants import named
    from detrlab.data import open_data
    from detrlab.data.sources import fingerprint

    found = open_data(data)
    return Definition(
        recipe=small_recipe(data, **train),
        budget=budget,
        contents=fingerprint(found),
        entrants=named(models),
        seeds=seeds,
        predictions={},
        data=facts(found),
    )


SMALL = {
    "backbone": "test_resnet", "backbone_norms": "trained", "backbone_trains": "all",
    "width": 64, "num_heads": 2, "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 2,
    "num_queries": 12,
}  # fmt: skip


def small_recipe(data, epochs=2, **train):
    """Trains in seconds and learns nothing."""
    from detrlab.config import DataConfig, Recipe, TrainConfig

    return Recipe(
        name="small",
        model=SMALL,
        train=TrainConfig(
            **{"epochs": epochs, "batch": 4, "learning_rate": 1e-3, "weights": "none", **train}
        ),
        data=DataConfig(
            data=str(data), image_size=64, max_size=64, augmentation="light", workers=0
        ),
    )


def write_data(folder, train=10, val=6, classes=("box", "disc")):
    """A COCO folder of small pictures with one to three coloured rectangles each."""
    from PIL import Image, ImageDraw

    for split, count, first in (("train", train, 1), ("val", val, 101)):
        images, annotations = [], []
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image_id = first + index
            draws = keyed("picture", image_id)
            height, width = (64, 80) if index % 2 else (80, 64)
            picture = Image.new("RGB", (width, height), (30, 60, 30))
            pen = ImageDraw.Draw(picture)
            for _ in range(int(draws.integers(1, 4))):
                x, y = draws.integers(0, 40, 2).tolist()
                w, h = draws.integers(8, 40, 2).tolist()
                label = int(draws.integers(len(classes)))
                w, h = min(w, width - x), min(h, height - y)
                colour = [(220, 60, 60), (60, 60, 220)][label % 2]
                pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
                annotation |= {"category_id": 3 + 2 * label, "bbox": [x, y, w, h], "area": w * h}
                annotations.append(annotation)
            name = f"{image_id:03}.png"
            picture.save(folder / split / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        categories = [{"id": 3 + 2 * i, "name": name} for i, name in enumerate(classes)]
        (folder / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder
