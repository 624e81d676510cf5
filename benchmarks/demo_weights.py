"""The small weights that the demo starts from.

    python benchmarks/demo_weights.py            # all five, one after another
    python benchmarks/demo_weights.py detr       # only some

trains the five detectors on ``figures``, a generated set that is not the demo's: other images and
other classes. The backbone keeps its ImageNet weights, so its feature maps are computed once for
all images and only the rest is trained. What is trained is written in half precision to
``src/detrlab/assets/figures-PRESET.safetensors``, its numbers to
``docs/results/demo-weights.json``. Interrupted, it continues from the last saved state.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detrlab.boxes import xywh_to_xyxy, xyxy_to_cxcywh
from detrlab.checkpoints import native
from detrlab.checkpoints.weights import figures, first_network
from detrlab.config import DataConfig, ModelConfig, TrainConfig
from detrlab.data import shapes
from detrlab.data.batching import Batch, pad
from detrlab.data.keyed import keyed
from detrlab.data.table import Table
from detrlab.evaluation.coco import Evaluator, evaluate
from detrlab.models.network import Network
from detrlab.models.prepare import prepare
from detrlab.presets import FIVE, build_network, model_config
from detrlab.recipes import recipe
from detrlab.structures import ImageBatch, Target
from detrlab.training import state
from detrlab.training.distributed import join
from detrlab.training.folder import RunConfig
from detrlab.training.loop import build_engine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/demo-weights.json"
STYLE = shapes.FIGURES
TRAIN = TrainConfig(
    epochs=1, batch=16, learning_rate=1e-3, schedule="cosine", warmup_steps=200, weights="imagenet"
)
DENSE = {"batch": 32, "warmup_steps": 500}
TRAIN_EACH = {
    "detr": {**DENSE, "epochs": 20},
    "detr-dc5": {**DENSE, "epochs": 6},
    "deformable-detr": {"epochs": 3, "warmup_steps": 500},
    "deformable-detr-two-stage": {"epochs": 3},
}
"""Dense attention learns more slowly, as in the papers, and a step of it costs less. The two-stage
detector's first stage is new: until it ranks well, its ten proposals lie on one object."""
STARTS = {
    "detr-dc5": "detr",
    "deformable-detr-refine": "deformable-detr",
    "deformable-detr-two-stage": "deformable-detr-refine",
}
"""To save time, a variant starts from the weights of the detector that it changes."""
SECONDS_BETWEEN_STATES = 120


class Features(nn.Module):
    """Stands in for the backbone: its feature maps, computed beforehand.

    Args:
        maps: (N, C, H, W) of each level, for all images.
    """

    def __init__(self, maps: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, positions: Tensor) -> list[Tensor]:
        """(B, 1, 1, 1) positions of images -> their feature maps."""
        rows = positions.flatten().long().numpy()
        return [torch.from_numpy(each[rows]).float() for each in self.maps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(FIVE))
    parser.add_argument("--output", type=Path, default=ROOT / "runs/demo-weights")
    options = parser.parse_args()
    train, val = shapes.shapes(style=STYLE)
    for preset in options.presets:
        folder = options.output / preset
        folder.mkdir(parents=True, exist_ok=True)
        train_preset(preset, folder, train, val)


def train_preset(preset: str, folder: Path, train: Table, val: Table) -> None:
    """Train one detector on cached feature maps and write its packaged weights."""
    tiny = recipe("tiny")
    config = model_config(preset, len(STYLE.classes), **tiny.model)
    settings = TRAIN.change(**TRAIN_EACH.get(preset, {}))
    maps = {table.name: features(config, tiny.data, table, folder.parent) for table in (train, val)}
    network = build_network(config, pretrained_backbone=True, seed=0)
    if preset in STARTS:
        take_fitting(network, native.load(figures(STARTS[preset])).state)
    run = RunConfig(model=config, train=settings, data=tiny.data)
    progress, metrics = train_on(maps, network, run, folder, train, val)
    write(preset, network, config, settings, progress, metrics)


def take_fitting(network: Network, earlier: Mapping[str, Tensor]) -> None:
    """Load what has the same name and shape; the backbone keeps its own."""
    own = network.state_dict()
    fitting = {
        name: each
        for name, each in earlier.items()
        if name in own and own[name].shape == each.shape and not name.startswith("backbone.")
    }
    network.load_state_dict(fitting, strict=False)


def train_on(
    maps: dict[str, list[np.ndarray]],
    network: Network,
    run: RunConfig,
    folder: Path,
    train: Table,
    val: Table,
) -> tuple[state.Progress, dict[str, object]]:
    """Train all but the backbone, from the last state in the folder on.

    Returns:
        Steps and processor seconds, and the metrics on the validation images.
    """
    epochs, steps = run.train.epochs, len(train) // run.train.batch
    backbone, network.backbone = network.backbone, Features(maps["train"])
    engine = build_engine(network.train(), run, steps, join("cpu"))
    progress = state.Progress()
    if saved := state.load_latest(folder):
        state.restore(saved, engine)
        progress = saved.progress
    saved_at = time.monotonic()
    sums: dict[str, float] = {}
    while progress.step < epochs * steps:
        epoch, start = divmod(progress.step, steps)
        for batch in training_batches(train, run.train.batch, epoch, start):
            before = processor_seconds()
            report = engine.step(batch, progress.step)
            progress.step += 1
            progress.seconds += processor_seconds() - before
            for name, value in report.measures.items():
                sums[name] = sums.get(name, 0.0) + value / steps
            if time.monotonic() - saved_at > SECONDS_BETWEEN_STATES:
                state.save(folder, engine, progress, {})
                saved_at = time.monotonic()
        metrics = judge(network, run.model, maps, val) if epoch % 4 == 3 else {}
        shown = " ".join(
            f"{name} {value:.3f}"
            for name, value in {**sums, **metrics}.items()
            if isinstance(value, float)
        )
        print(
            f"{run.model.preset} {epoch + 1}/{epochs} {progress.seconds:.0f} s {shown}", flush=True
        )
        sums.clear()
    state.save(folder, engine, progress, {})
    metrics = judge(network, run.model, maps, val)
    network.backbone = backbone
    return progress, metrics


def features(
    config: ModelConfig, data: DataConfig, table: Table, folder: Path, weights: str = "imagenet"
) -> list[np.ndarray]:
    """The first backbone's feature maps of all images, computed once and kept on disk."""
    network = prepare(first_network(config, weights, table.classes).network).eval()
    with torch.no_grad():
        levels = len(network.backbone(torch.zeros(1, 3, 64, 64)))
    kind = f"{levels}-dc5" if config.dilation else str(levels)
    paths = [folder / f"features-{kind}-{table.name}-{level}.npy" for level in range(levels)]
    if not all(path.exists() for path in paths):
        _compute_features(network, data, table, paths)
    return [np.load(path, mmap_mode="r") for path in paths]


@torch.no_grad()
def _compute_features(network: Network, data: DataConfig, table: Table, paths: list[Path]) -> None:
    maps: list[list[np.ndarray]] = [[] for _ in paths]
    for start in range(0, len(table), 16):
        images = [table.read(i).image for i in range(start, min(start + 16, len(table)))]
        found = network.backbone(pad(images, data).pixels)
        for kept, each in zip(maps, found, strict=True):
            kept.append(each.half().contiguous().numpy())
    for path, kept in zip(paths, maps, strict=True):
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(kept))
        partial.rename(path)


def training_batches(table: Table, batch: int, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of an epoch from ``start`` on; the images are their positions."""
    order = keyed("demo-weights", epoch).permutation(len(table))
    for step in range(start, len(table) // batch):
        yield _batch(table, order[step * batch : (step + 1) * batch])


def _batch(table: Table, rows: np.ndarray) -> Batch:
    side = table.sizes[0].tolist()
    positions = torch.from_numpy(rows.astype(np.float32))[:, None, None, None]
    targets = []
    for row in rows:
        objects = slice(table.starts[row], table.starts[row + 1])
        corners = xywh_to_xyxy(torch.tensor(table.boxes[objects], dtype=torch.float32))
        scale = corners.new_tensor([side[1], side[0]] * 2)
        labels = torch.tensor(table.labels[objects])
        targets.append(Target(labels, xyxy_to_cxcywh(corners / scale)))
    return Batch(
        images=ImageBatch(positions, torch.zeros(len(rows), *side, dtype=torch.bool)),
        targets=tuple(targets),
        image_ids=tuple(table.image_id(int(row)) for row in rows),
        original_sizes=tuple((side[0], side[1]) for _ in rows),
    )


def judge(
    network: Network, config: ModelConfig, maps: dict[str, list[np.ndarray]], val: Table
) -> dict[str, object]:
    """The metrics on the validation images."""
    network.backbone = Features(maps["val"])
    evaluator = Evaluator(val)
    parts = (_batch(val, np.arange(i, min(i + 50, len(val)))) for i in range(0, len(val), 50))
    evaluate(network, config.scoring, parts, evaluator)
    network.backbone = Features(maps["train"])
    return evaluator.metrics().to_dict()


def write(
    preset: str,
    network: Network,
    config: ModelConfig,
    settings: TrainConfig,
    progress: state.Progress,
    metrics: dict[str, object],
) -> None:
    """Write the packaged weights and their line of the results."""
    provenance = {
        "started from": STARTS.get(preset, "nothing but ImageNet's backbone"),
        "trained on": f"{STYLE.name}: {STYLE.train:,} generated images of other figures",
        "epochs": settings.epochs,
        "note": "weights rounded to half precision",
    }
    path = figures(preset)
    native.save(
        path,
        {
            name: tensor if name.startswith("backbone.") else tensor.half()
            for name, tensor in network.state_dict().items()
        },
        config,
        STYLE.classes,
        range(1, len(STYLE.classes) + 1),
        recipe("tiny").data,
        provenance=provenance,
        imagenet_backbone=True,
    )
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[preset] = {
        "megabytes": path.stat().st_size / 1e6,
        "steps": progress.step,
        "processor_minutes": progress.seconds / 60,
        **provenance,
        "figures_val": metrics,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
