"""Any checkpoint to our own record: ours, the originals', transformers'.

The contents of a file decide what it is, not its name. Everything is strict: every tensor of the
file is consumed or named, every tensor of the architecture is found, and every shape agrees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrlab.checkpoints import coco, hf, hf_config, native, restricted
from detrlab.checkpoints.recognise import recognise, told_by_arguments
from detrlab.checkpoints.rules import BOOKKEEPING, Layout, clean, listed, translate_strictly
from detrlab.config import DataConfig, ModelConfig
from detrlab.errors import UserError
from detrlab.presets import build_network

HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HF_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Imported:
    """A checkpoint in our record, and how it came to be one.

    Attributes:
        checkpoint: the tensors by our names, architecture, classes, preprocessing.
        where: the file or folder, as the user named it.
        layout: whose names the file followed.
        renamed: our name -> theirs, for every tensor that had another.
        left_aside: entries of the file that hold no weights, such as the optimiser's state.
        assumed: settings that the file does not tell, and the values that were taken.
    """

    checkpoint: native.Checkpoint
    where: str
    layout: str
    renamed: dict[str, str]
    left_aside: tuple[str, ...] = ()
    assumed: dict[str, Any] | None = None


def read(
    path: str | Path,
    *,
    told: Mapping[str, Any] | None = None,
    likely: Mapping[str, Any] | None = None,
) -> Imported:
    """Read a checkpoint of any known kind.

    Args:
        path: a file (``.safetensors``, ``.pth``, ``.bin``) or a folder that transformers wrote.
        told: fields of ``ModelConfig`` that the caller knows, such as ``dilation``; for what
            the file does not tell.
        likely: as ``told``, but only a guess: what is taken of it is reported.

    Raises:
        UserError: there is no such file, it is damaged or unsafe, or its tensors are not those
            of a detector that detrlab knows.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "weights" / "last.safetensors").is_file():
            raise UserError(
                f"{path} is the folder of a run: give {path / 'weights' / 'last.safetensors'}"
            )
        return _read_transformers(path, {**(likely or {}), **(told or {})})
    if path.name in HF_WEIGHTS and (path.parent / "config.json").is_file():
        return _read_transformers(path.parent, {**(likely or {}), **(told or {})})
    if not _is_safetensors(path):
        contents = restricted.read(path)
        arguments = told_by_arguments(contents.arguments)
        tensors, others = contents.tensors, contents.others
    elif native.is_native(path):
        return Imported(native.load(path), str(path), "detrlab", {})
    else:
        tensors, arguments, others = native.read_tensors(path), {}, ()
    found = recognise(
        clean(tensors), str(path), told={**(told or {}), **arguments}, likely=likely or {}
    )
    dropped = tuple(name for name in tensors if name.endswith(BOOKKEEPING))
    classes = dict(enumerate(_classes(found.config.num_classes)))
    if found.layout.name == "detrex" and len(classes) == len(coco.BY_ID):
        classes = dict(sorted(coco.BY_ID.items()))
    checkpoint = native.Checkpoint(
        state=_translated(tensors, found.layout, found.config, str(path)),
        config=found.config,
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        preprocessing=DataConfig(),
        provenance={"imported": path.name, "layout": found.layout.name},
    )
    return Imported(
        checkpoint,
        str(path),
        found.layout.name,
        _renamed(checkpoint.state, found.layout),
        others + dropped,
        found.assumed,
    )


def _read_transformers(folder: Path, told: Mapping[str, Any]) -> Imported:
    described = hf_config.from_transformers(
        read_json(folder / "config.json"), str(folder / "config.json"), told.get("backbone")
    )
    tensors = _read_folder(folder)
    layout = hf.layout(described.config, hf.spelling_of(tensors))
    preprocessing = DataConfig()
    if (folder / "preprocessor_config.json").is_file():
        preprocessing = hf_config.preprocessing_from_transformers(
            read_json(folder / "preprocessor_config.json")
        )
    classes = described.classes
    if classes == _placeholders(len(classes)):
        classes = _classes(len(classes))
    checkpoint = native.Checkpoint(
        state=_translated(tensors, layout, described.config, str(folder)),
        config=described.config,
        classes=classes,
        category_ids=tuple(range(len(classes))),
        preprocessing=preprocessing,
        provenance={"imported": folder.name, "layout": layout.name},
    )
    return Imported(
        checkpoint,
        str(folder),
        layout.name,
        _renamed(checkpoint.state, layout),
        tuple(name for name in tensors if name.endswith(BOOKKEEPING)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {path.name}: give a checkpoint file, or a folder that "
            "transformers wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold a JSON object")
    return values


def wanted_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Name and shape of every tensor of an architecture; they hold no numbers."""
    with torch.device("meta"):
        return build_network(config).state_dict()


def shards_of(index: Path) -> list[str]:
    """The files that an ``index.json`` of transformers divides a model into.

    Raises:
        UserError: it cannot be read, or names files elsewhere.
    """
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names files outside its folder: {outside[0]}")
    return shards


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / HF_INDEX).is_file():
        return {
            name: tensor
            for shard in shards_of(folder / HF_INDEX)
            for name, tensor in native.read_tensors(folder / shard).items()
        }
    safe, pickled = (folder / name for name in HF_WEIGHTS)
    if safe.is_file():
        return native.read_tensors(safe)
    if pickled.is_file():
        return restricted.read(pickled).tensors
    raise UserError(f"{folder} holds neither {safe.name} nor {pickled.name}")


def _translated(
    tensors: Mapping[str, Tensor], layout: Layout, config: ModelConfig, where: str
) -> dict[str, Tensor]:
    wanted = wanted_tensors(config)
    try:
        state = translate_strictly(tensors, layout, wanted)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    differing = [
        f"{layout.names(name)[0][0]} {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name].shape
    ]
    if differing:
        raise UserError(
            f"{where} does not fit a {config.preset} with backbone {config.backbone}: it has "
            f"{listed(differing, quote=False)}"
        )
    return state


def _renamed(state: Mapping[str, Tensor], layout: Layout) -> dict[str, str]:
    theirs = {name: " + ".join(layout.names(name)[0]) for name in state}
    return {ours: name for ours, name in theirs.items() if ours != name}


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < native.MAX_HEADER


def _classes(count: int) -> tuple[str, ...]:
    """Names for the rows of a head that does not say them; 91 rows are COCO's."""
    return coco.CLASSES if count == len(coco.CLASSES) else _placeholders(count)


def _placeholders(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))
