"""The small detector that comes with detrlab, and a picture for it.

    python benchmarks/first_checkpoint.py

trains the two-stage detector on ``shapes`` and writes ``src/detrlab/assets/shapes.safetensors``
(weights rounded to half precision), its metrics to ``docs/results/first-checkpoint.json``, and
``examples/shapes.png``. Interrupted, it continues from the last saved state.
"""

import argparse
import json
from pathlib import Path

import detrlab
from detrlab.checkpoints import native
from detrlab.config import Recipe, TrainConfig
from detrlab.data import DataSet, batches, open_data
from detrlab.data.table import Table
from detrlab.evaluation.coco import Evaluator, as_ground_truth, evaluate
from detrlab.recipes import recipe
from detrlab.training.folder import RunConfig
from detrlab.training.loop import Options, Outcome, plan, train

ROOT = Path(__file__).resolve().parents[1]
ASSET = ROOT / "src/detrlab/assets/shapes.safetensors"
PRESET = "deformable-detr-two-stage"
PICTURE = 22  # of the validation split


def settings(epochs: int) -> Recipe:
    """What the packaged file was trained with."""
    return Recipe(
        name="first-checkpoint",
        model={
            "backbone": "tf_efficientnet_lite0",
            "width": 64,
            "num_heads": 4,
            "ffn_width": 128,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_queries": 30,
            "dropout": 0.0,
        },
        train=TrainConfig(
            epochs=epochs,
            batch=8,
            learning_rate=1e-3,
            drop_epoch=epochs * 5 // 6,
            warmup_steps=100,
        ),
        data=recipe("tiny").data.change(data="shapes", image_size=160, max_size=160),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/first-checkpoint")
    options = parser.parse_args()
    data = open_data("shapes")
    config, outcome = trained_on(data, options.epochs, options.output)

    trained = native.load(outcome.folder.last)
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in trained.state.items()
    }
    provenance = {
        "trained on": "shapes",
        "epochs": options.epochs,
        "note": "weights rounded to half precision",
    }
    native.save(
        ASSET,
        half,
        trained.config,
        trained.classes,
        trained.category_ids,
        trained.preprocessing,
        threshold=trained.threshold,
        provenance=provenance,
    )
    detector = detrlab.load(ASSET)
    evaluator = Evaluator(as_ground_truth(data.val))
    pictures = batches(data.val, config.data, batch=8, train=False, workers=0)
    evaluate(detector.network, detector.scoring, pictures, evaluator)
    report = {
        "file": ASSET.name,
        "megabytes": ASSET.stat().st_size / 1e6,
        "minutes": outcome.epochs[-1]["seconds"] / 60,
        **provenance,
        "trained": {key: outcome.metrics[key] for key in ("ap", "ap50", "ap75")},
        "as_packaged": evaluator.metrics().to_dict(),
    }
    (ROOT / "docs/results/first-checkpoint.json").write_text(json.dumps(report, indent=1) + "\n")
    save_picture(data.val)
    print(json.dumps(report, indent=1))


def trained_on(data: DataSet, epochs: int, output: Path) -> tuple[RunConfig, Outcome]:
    """Train, or resume."""
    config = plan(PRESET, settings(epochs), data)
    resume = (output / "config.yaml").exists()
    return config, train(config, output, data, Options(say=print, resume=resume))


def save_picture(val: Table) -> None:
    """The picture has five objects; the detector finds four and misses one."""
    from PIL import Image

    image = val.read(PICTURE).image
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(ROOT / "examples/shapes.png")


if __name__ == "__main__":
    main()
