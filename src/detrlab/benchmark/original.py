"""A detector in its authors' own code, as a subject of the benchmark.

A folder of originals holds the authors' repositories and ``witness.py``, which builds one of them
from its own configuration. Deformable attention runs in their PyTorch form: their compiled one
needs a GPU.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrlab.benchmark import subjects
from detrlab.config import ModelConfig, TrainConfig
from detrlab.errors import UserError, did_you_mean

VARIABLE = "DETRLAB_ORIGINALS"


def folder_of_originals(given: str | None) -> Path:
    """The folder that is given, or that the environment names.

    Raises:
        UserError: there is none.
    """
    name = given or os.environ.get(VARIABLE, "")
    folder = Path(name).resolve()
    if not name or not (folder / "witness.py").is_file():
        raise UserError(
            "--against original needs a folder with the authors' code and witness.py: name it "
            f"with --originals DIR or {VARIABLE}" + (f" ({name} is none)" if name else "")
        )
    return folder


def original(
    folder: Path, config: ModelConfig, size: tuple[int, int], batch: int = 1
) -> subjects.Subject:
    """The authors' model, criterion and trainable parameters, given the same images.

    Raises:
        UserError: the folder has no such detector.
    """
    witness = _witness(folder, config.preset)
    entry = witness.CASES[config.preset]
    padded = entry["family"] in witness.PADDED
    build = witness.build_args if padded else witness.build_yaml
    case = build(entry, False, {})
    case.model.train()
    images, targets = subjects.pictures(size, batch)
    labels = [{"labels": each.labels, "boxes": each.boxes} for each in targets]
    pixels = case.nested(list(images.pixels)) if padded else images.pixels
    learned = [each for each in case.model.parameters() if each.requires_grad]
    train = TrainConfig()

    def loss() -> Tensor:
        found = case.criterion_call(case.call(pixels, labels), labels, 0)
        weights = case.criterion.weight_dict if padded else dict.fromkeys(found, 1)
        return sum((value * weights[key] for key, value in found.items() if key in weights))

    return subjects.Subject(
        name="original",
        network=case.model,
        predict=lambda: case.call(pixels, None),
        loss=loss,
        clip=lambda: nn.utils.clip_grad_norm_(learned, train.clip),
        optimizer=torch.optim.AdamW(
            learned, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        ),
    )


def commit(folder: Path, name: str) -> list[str]:
    """Where the authors' code comes from: repository and commit."""
    repository = _witness(folder, name).CASES[name]["repo"].split("/")[0]
    return (folder / repository / "COMMIT").read_text(encoding="utf-8").split("\n")[:2]


def _witness(folder: Path, name: str) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    witness = import_module("witness")
    if name not in witness.CASES:
        hint = did_you_mean(name, witness.CASES)
        raise UserError(f"--against original: {folder} has no {name!r}{hint}")
    return witness
