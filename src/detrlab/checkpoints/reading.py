"""Reading checkpoints of detrlab, the original repositories and transformers.

The contents of a file decide what it is, not its name. Reading is strict: every tensor of the
file is used or named, every tensor of the architecture is found, and every shape agrees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detrlab.checkpoints import coco, hf, hf_config, native, pth
from detrlab.checkpoints.recognise import recognise, told_by_arguments
from detrlab.checkpoints.rules import BOOKKEEPING, Layout, clean, listed, translate_strictly
from detrlab.config import DataConfig, ModelConfig
from detrlab.errors import UserError
from detrlab.files import read_bytes
from detrlab.presets.rtdetr import RtDetr

HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HF_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Imported:
    """A checkpoint as detrlab's own record, and where it comes from.

    Attributes:
        checkpoint: the tensors by our names, architecture, classes, preprocessing.
        where: the file or folder, as the user named it.
        layout: the naming scheme of the file.
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
        told: known fields of ``ModelConfig``, such as ``dilation``, for what the file does not
            say.
        likely: as ``told``, but guesses: those that are used are reported.

    Raises:
        UserError: there is no such file, it is damaged or unsafe, or it holds no detector that
            detrlab knows.
    """
    path, told, likely = Path(path), told or {}, likely or {}
    last = path / "weights" / "last.safetensors"
    if last.is_file():
        raise UserError(f"{path} is the folder of a run: give {last}")
    if path.is_dir():
        return _read_transformers(path, {**likely, **told}.get("backbone"))
    if path.name in HF_WEIGHTS and (path.parent / "config.json").is_file():
        return _read_transformers(path.parent, {**likely, **told}.get("backbone"))
    if not _is_safetensors(path):
        contents = pth.read(path)
        arguments = told_by_arguments(contents.arguments)
        tensors, others = contents.tensors, contents.others
    elif native.is_native(path):
        return Imported(native.load(path), str(path), "detrlab", {})
    else:
        tensors, arguments, others = native.read_tensors(path), {}, ()
    found = recognise(clean(tensors), str(path), told={**told, **arguments}, likely=likely)
    imported = _imported(path, tensors, found.layout, found.config)
    return replace(imported, left_aside=others + imported.left_aside, assumed=found.assumed)


def _read_transformers(folder: Path, backbone: str | None) -> Imported:
    settings, images = folder / "config.json", folder / "preprocessor_config.json"
    with understood(settings):
        described = hf_config.from_transformers(read_json(settings), str(settings), backbone)
    tensors = _read_folder(folder)
    preprocessing = DataConfig()
    if images.is_file():
        with understood(images):
            preprocessing = hf_config.preprocessing_from_transformers(read_json(images))
    layout = hf.layout(described.config, hf.spelling_of(tensors))
    return _imported(folder, tensors, layout, described.config, described.classes, preprocessing)


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Values of any kind stand in a description: what they break names its file."""
    try:
        yield
    except UserError as error:
        named = str(path) in str(error)
        raise error if named else UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{path} cannot be understood ({error}): get it again") from None


def _imported(
    path: Path,
    tensors: Mapping[str, Tensor],
    layout: Layout,
    config: ModelConfig,
    classes: tuple[str, ...] = (),
    preprocessing: DataConfig | None = None,
) -> Imported:
    """Tensors of another layout, translated; ``classes`` may be placeholders or empty."""
    count = config.num_classes
    placeholders = tuple(f"class {index}" for index in range(count))
    if classes in ((), placeholders):  # 91 rows are COCO's
        classes = coco.CLASSES if count == len(coco.CLASSES) else placeholders
    ids = tuple(range(count))
    categories = tuple(name for _, name in sorted(coco.BY_ID.items()))
    unnamed = classes == placeholders and (layout.name == "detrex" or isinstance(config, RtDetr))
    if (unnamed and count == len(categories)) or classes == categories:
        # The rows are COCO's 80 categories.
        ids, classes = zip(*sorted(coco.BY_ID.items()), strict=True)
    state = _translated(tensors, layout, config, str(path))
    checkpoint = native.Checkpoint(
        state=state,
        config=config,
        classes=classes,
        category_ids=ids,
        preprocessing=preprocessing or config.preprocessing(),
        provenance={"imported": path.name, "layout": layout.name},
        where=str(path),
    )
    theirs = {ours: " + ".join(layout.names(ours)[0]) for ours in state}
    return Imported(
        checkpoint,
        str(path),
        layout.name,
        renamed={ours: name for ours, name in theirs.items() if ours != name},
        left_aside=tuple(name for name in tensors if name.endswith(BOOKKEEPING)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        values = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {path.name}: give a checkpoint file, or a folder that "
            "transformers wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): get it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold a JSON object")
    return values


def shards_of(index: Path) -> list[str]:
    """The files that transformers split a model into.

    Raises:
        UserError: it cannot be read, or names files elsewhere.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise UserError(f"{index} should have a 'weight_map' of tensors and file names")
    shards = sorted(set(places.values()))
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
        return pth.read(pickled).tensors
    raise UserError(f"{folder} holds neither {safe.name} nor {pickled.name}")


def _translated(
    tensors: Mapping[str, Tensor], layout: Layout, config: ModelConfig, where: str
) -> dict[str, Tensor]:
    wanted = native.wanted_tensors(config, tensors, where)
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


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < native.MAX_HEADER
