"""The weights that the detectors of the study start from: a training on generated pictures.

    python benchmarks/study_start.py --recipe docs/results/study-bccd/recipe.yaml

Hundreds of epochs on two hundred photographs are not enough for DETR to learn where objects are
(docs/study.md). So every detector of the study first learns that from generated pictures with up
to nineteen figures each, of other classes than the photographs. The backbone is the recipe's and
does not train, so its feature maps are computed once. Writes PRESET.safetensors and results.json.
Interrupted, it continues from the last saved state.
"""

import argparse
import json
from pathlib import Path

import torch
from demo_weights import features, take_fitting, train_on

from detrlab.checkpoints import native
from detrlab.checkpoints.weights import first_network
from detrlab.config import Recipe, TrainConfig
from detrlab.data import shapes
from detrlab.presets import model_config
from detrlab.training.folder import RunConfig

STYLE = shapes.FIGURES._replace(
    name="crowd",
    train=8_000,
    val=200,
    stream=0x63726F7764,  # "crowd"
    sizes=((144, 192),),
    objects=(10, 10),
    sides=((4, 9, 8), (16, 22, 16), (20, 40, 30)),
)
"""As the demo's figures, but many of them, small, medium and large, in one picture."""
TRAIN = TrainConfig(
    epochs=3, batch=16, learning_rate=1e-3, schedule="cosine", warmup_steps=500, weights="none"
)
DENSE = {"batch": 32, "epochs": 30}
SHORT = {"batch": 32, "epochs": 6}
TRAIN_EACH = {"detr": DENSE, "detr-dc5": SHORT, "detr-sigmoid": SHORT}
"""Dense attention learns more slowly, and a step of it costs less."""
STARTS = {"detr-dc5": "detr", "detr-sigmoid": "detr"}
"""To save time: the first differs in the resolution of its features, the second in its scores."""
MODELS = (
    "detr",
    "detr-dc5",
    "detr-sigmoid",
    "deformable-detr",
    "deformable-detr-refine",
    "deformable-detr-two-stage",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--output", type=Path, default=Path("runs/study-start"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.load(options.recipe)
    tables = shapes.shapes(style=STYLE)
    print(f"drawn: {sum(map(len, tables)):,} pictures", flush=True)
    for preset in options.models:
        train_preset(preset, recipe, tables, options.output)


def train_preset(preset, recipe, tables, folder: Path) -> None:
    """Train one detector on cached feature maps and write its weights and its numbers."""
    train, val = tables
    config = model_config(preset, len(STYLE.classes), shared=recipe.model)
    settings = TRAIN.change(**TRAIN_EACH.get(preset, {}))
    maps = {
        each.name: features(config, recipe.data, each, folder, "coco-backbone") for each in tables
    }
    network = first_network(config, "coco-backbone", STYLE.classes, seed=0).network
    if preset in STARTS:
        take_fitting(network, native.load(folder / f"{STARTS[preset]}.safetensors").state)
    run = RunConfig(model=config, train=settings, data=recipe.data)
    states = folder / preset
    states.mkdir(exist_ok=True)
    progress, metrics = train_on(maps, network, run, states, train, val)
    provenance = {
        "started from": STARTS.get(preset, "nothing but the backbone"),
        "trained on": f"{STYLE.name}: {STYLE.train:,} generated pictures of other classes",
        "epochs": settings.epochs,
    }
    native.save(
        folder / f"{preset}.safetensors",
        network.state_dict(),
        config,
        STYLE.classes,
        range(1, len(STYLE.classes) + 1),
        recipe.data,
        provenance=provenance,
    )
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    minutes = progress.seconds / 60
    results[preset] = {**provenance, "steps": progress.step, "minutes": minutes, "val": metrics}
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
