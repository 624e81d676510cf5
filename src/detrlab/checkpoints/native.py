"""detrlab's checkpoint: one self-describing ``.safetensors`` file, written atomically.

Tensors have the names of ``Network.state_dict()``. The header's metadata holds one JSON text:
architecture, classes, preprocessing, versions, where the weights come from. Nothing in the file
is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypedDict

from detrlab import files
from detrlab.checkpoints.rules import listed
from detrlab.config import DataConfig, ModelConfig, first_mistake
from detrlab.errors import UserError
from detrlab.presets import build_network, parse_config

if TYPE_CHECKING:
    from detrlab.models.network import Network

FORMAT = 1
"""Increased when an older detrlab could misread a newer file."""

_KEY = "detrlab"  # one metadata entry only: their order in the header is not fixed
_PREPROCESSING = ("image_size", "max_size", "mean", "std")
_PACKAGES = ("detrlab", "torch", "timm")
_ROOM = 4 << 20
MAX_HEADER = 100_000_000  # safetensors' own limit


class _Described(TypedDict):
    """What the description of a file must hold; the architecture is checked by its preset."""

    architecture: dict[str, Any]
    classes: list[str]
    category_ids: list[int]
    preprocessing: dict[str, Any]
    threshold: Annotated[float, Field(ge=0, le=1)] | None
    provenance: dict[str, Any]
    versions: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        state: the tensors, by the names of ``Network.state_dict()``, on the CPU.
        config: the architecture.
        classes: the name of each class, by class index.
        category_ids: the data set's id of each class, by class index.
        preprocessing: image size and normalisation; the other fields are at their defaults.
        threshold: the suggested score threshold, if one was measured.
        provenance: where the weights come from, in plain values.
        versions: of the packages that wrote the file.
        extra: further plain values.
        imagenet_backbone: the backbone is not in the file: it has its ImageNet weights as
            installed here, equal to those that the rest was trained with.
        where: names the file in errors.
    """

    state: dict[str, Tensor] = field(repr=False)
    config: ModelConfig
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocessing: DataConfig
    threshold: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    imagenet_backbone: bool = False
    where: str = "the checkpoint"

    def build(self) -> Network:
        """The network with these weights.

        Raises:
            UserError: the tensors do not fit the architecture the file describes.
        """
        wanted = wanted_tensors(self.config, self.state, self.where)
        _require_fit(wanted, self.state, self.where)
        network = build_network(self.config)
        network.load_state_dict(self.state)
        return network


def save(
    path: str | Path,
    network: nn.Module | Mapping[str, Tensor],
    config: ModelConfig,
    classes: Sequence[str],
    category_ids: Sequence[int],
    preprocessing: DataConfig,
    *,
    threshold: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    imagenet_backbone: bool = False,
) -> Path:
    """Write a checkpoint atomically.

    Args:
        path: of the file; ``.safetensors`` is added where it is missing.
        network: the network, or its state dict (such as an average of several).
        config: its architecture.
        classes: the name of each class, by class index.
        category_ids: the data set's id of each class, by class index.
        preprocessing: only image size and normalisation are kept.
        threshold: the suggested score threshold.
        provenance: where the weights come from, in JSON values.
        extra: further JSON values.
        imagenet_backbone: the backbone was frozen at its ImageNet weights: store their digest
            instead of them.

    Returns:
        The path written.

    Raises:
        UserError: the file cannot be written; a previous file is unchanged.
    """
    assert len(classes) == len(category_ids) == config.num_classes, (classes, category_ids, config)
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(f"{path.name}.safetensors")
    state = network.state_dict() if isinstance(network, nn.Module) else network
    backbone = {}
    if imagenet_backbone:
        backbone = {"imagenet_backbone": digest(_backbone_of(state))}
        state = {name: each for name, each in state.items() if name not in _backbone_of(state)}
    described = {
        "format": FORMAT,
        "architecture": config.to_dict(),
        "classes": list(classes),
        "category_ids": [int(number) for number in category_ids],
        "preprocessing": _described(preprocessing),
        "threshold": threshold,
        "provenance": dict(provenance or {}),
        "versions": _versions(),
        "extra": dict(extra or {}),
        **backbone,
    }
    text = json.dumps(described, ensure_ascii=False, allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    files.write_bytes(path, serialized(tensors, {_KEY: text}))
    return path


def serialized(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file.

    Not save_file: it reports a full disk as an error of its own and ignores the umask. Where memory
    ends safetensors would end the process, so its two copies are asked for (not filled) before.
    """
    from safetensors.torch import save

    bytearray(2 * sum(each.nbytes for each in tensors.values()) + _ROOM)
    return save(dict(tensors), metadata=metadata)


def _described(preprocessing: DataConfig) -> dict[str, Any]:
    """What inference needs. The way of resizing only where it is not the usual one.

    So older versions read most files, and refuse those that they would misread.
    """
    values = preprocessing.to_dict()
    names = _PREPROCESSING if preprocessing.resize == "short_side" else (*_PREPROCESSING, "resize")
    return {name: values[name] for name in names}


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: there is no such file, it is damaged, another tool's, or newer than this
            version of detrlab.
    """
    path = Path(path)
    described = describe(path)
    try:
        TypeAdapter(_Described).validate_python(described)
        config = parse_config(described["architecture"], where=str(path))
        state = _current_names(read_tensors(path))
        if "imagenet_backbone" in described:
            state |= _imagenet_backbone(config, described["imagenet_backbone"], path)
        checkpoint = Checkpoint(
            state=state,
            config=config,
            classes=tuple(described["classes"]),
            category_ids=tuple(described["category_ids"]),
            preprocessing=DataConfig.parse(described["preprocessing"], where=str(path)),
            threshold=described["threshold"],
            provenance=described["provenance"],
            versions=described["versions"],
            extra=described["extra"],
            imagenet_backbone="imagenet_backbone" in described,
            where=str(path),
        )
    except ValidationError as error:
        reason = first_mistake(error)
        raise UserError(f"{path} is damaged: its description is incomplete ({reason})") from None
    sizes = {len(checkpoint.classes), len(checkpoint.category_ids), checkpoint.config.num_classes}
    if len(sizes) != 1:
        raise UserError(
            f"{path} is damaged: it names {len(checkpoint.classes)} classes and "
            f"{len(checkpoint.category_ids)} category ids for an architecture of "
            f"{checkpoint.config.num_classes}"
        )
    return checkpoint


def _current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are now: until 0.1 the neck stood beside the encoder."""
    return {
        f"encoder.{name}" if name.startswith("neck.") else name: tensor
        for name, tensor in tensors.items()
    }


def describe(path: str | Path) -> dict[str, Any]:
    """The description in a checkpoint's header, without reading its tensors.

    Raises:
        UserError: as ``load``.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if _KEY not in metadata:
        raise UserError(
            f"{path} was not written by detrlab: it holds tensors without a description of the "
            "model; import it with 'detrlab convert'"
        )
    try:
        described = json.loads(metadata[_KEY])
        written = int(described["format"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is damaged: its description cannot be read") from None
    if written > FORMAT:
        by = described.get("versions", {}).get("detrlab", "a newer version")
        raise UserError(
            f"{path} was written by detrlab {by} in format {written}, and this version reads "
            f"formats up to {FORMAT}: pip install --upgrade detrlab"
        )
    return described


def is_native(path: str | Path) -> bool:
    """Whether the file is a safetensors file that detrlab wrote; False when it is damaged."""
    try:
        return _KEY in read_metadata(path)
    except UserError:
        return False


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of any safetensors file.

    Raises:
        UserError: there is no such file, or it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    require_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _damaged(path, error) from None


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of any safetensors file, on the CPU.

    Raises:
        UserError: there is no such file, or it is no whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    require_safetensors(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def require_safetensors(path: Path) -> None:
    """Check the first bytes, so that the error message can name the actual format.

    Raises:
        UserError: there is no such file, or it has another format.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder, not a checkpoint: give the file, such as "
            f"{path / 'weights' / 'last.safetensors'}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise UserError(f"{path} is empty: the file is incomplete; download or copy it again")
    # A header length can equal another format's first bytes: 19,280 is "PK".
    if head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise UserError(
            f"{path} is a PyTorch file (pickle), not safetensors: import it with 'detrlab convert'"
        )
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or length > MAX_HEADER:
        raise UserError(f"{path} is not a safetensors file")
    if path.stat().st_size < 8 + length:
        raise _cut_short(path)


def fill(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` into ``network``; every name and every shape must agree.

    Args:
        network: the network to fill.
        state: by the names of its state dict.
        where: names the origin in the error.

    Raises:
        UserError: names or shapes differ; they are listed.
    """
    _require_fit(network.state_dict(), state, where)
    network.load_state_dict(dict(state), strict=True)


def wanted_tensors(
    config: ModelConfig, state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Name and shape of every tensor of an architecture, without memory for their numbers.

    A small hostile file may describe a network of any size.

    Args:
        config: the architecture.
        state: the tensors that are there.
        where: names the origin in the error.

    Raises:
        UserError: there are fewer tensors than layers, or the sizes are absurd.
    """
    from detrlab.presets import outline

    settings = config.to_dict()
    layers = settings.get("encoder_layers", 0) + settings.get("decoder_layers", 0)
    if layers > len(state):
        raise UserError(f"{where} describes {layers:,} layers but holds {len(state):,} tensors")
    try:
        return outline(config).state_dict()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except RuntimeError as error:
        raise UserError(f"{where} describes an impossible network ({error})") from None


def _require_fit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    problems = []
    if missing := [name for name in wanted if name not in state]:
        problems.append(f"lacks {listed(missing)}")
    if unknown := [name for name in state if name not in wanted]:
        problems.append(f"holds unknown {listed(unknown)}")
    differing = [
        f"{name} {tuple(state[name].shape)} where the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if differing:
        problems.append(f"has other shapes: {listed(differing, quote=False)}")
    if problems:
        raise UserError(f"{where} does not fit its own description: it " + "; ".join(problems))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors, independent of their names and order."""
    each = (
        hashlib.sha256(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
        for tensor in tensors.values()
    )
    return hashlib.sha256("".join(sorted(part.hexdigest() for part in each)).encode()).hexdigest()


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each for name, each in state.items() if name.startswith("backbone.")}


def _imagenet_backbone(config: ModelConfig, wanted: str, path: Path) -> dict[str, Tensor]:
    """The backbone's tensors for a file that holds only their digest.

    Raises:
        UserError: they cannot be had, or are not those that the rest was trained with.
    """
    network = build_network(config, pretrained_backbone=True)
    tensors = _backbone_of(network.state_dict())
    if digest(tensors) != wanted:
        raise UserError(
            f"{path} was trained with other ImageNet weights of {config.backbone} than those "
            "installed here: install the package versions that the file names "
            f"({describe(path)['versions']})"
        )
    return tensors


def _damaged(path: Path, error: Exception) -> UserError:
    if "incomplete" in str(error).lower() or "not fully covered" in str(error).lower():
        return _cut_short(path)
    return UserError(f"{path} is damaged ({error}); download or copy it again")


def _cut_short(path: Path) -> UserError:
    return UserError(f"{path} is truncated: the file is incomplete; download or copy it again")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    found["torch"] = str(torch.__version__)
    return found
