"""Reading ``.pth`` files, which are pickles, without ever running what they ask for.

A pickle is a program: it names functions and calls them. Before anything is unpickled, every
name in it is read and compared with a short list (tensors, plain containers,
``argparse.Namespace``, in which training programs keep their settings); then PyTorch's own
restricted unpickler reads it, and what came out is looked over once more.
"""

from __future__ import annotations

import argparse
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from detrlab.errors import UserError

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "collections Counter",  # in some schedulers' state
        "builtins set",
        "argparse Namespace",
        "torch Size",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in _STORAGES),
    }
)
"""What a file may name: "module name"."""

# Instructions that name things in ways that cannot be read off beforehand, or newer than
# PyTorch's files, which keep to the pickle protocol 2.
_OPAQUE = frozenset(
    {"INST", "OBJ", "STACK_GLOBAL", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "FRAME"}
)
_CAN_HARM = frozenset(
    {
        *("os", "posix", "nt", "subprocess", "sys", "builtins", "shutil", "socket", "runpy"),
        *("pty", "code", "ctypes", "importlib", "pickle", "operator", "functools", "webbrowser"),
    }
)
_PLAIN = (str, bytes, int, float, bool, type(None))
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, version, system, the object itself, the storages' keys
_STATE_DICT_NAMES = ("model", "state_dict", "model_state_dict")


class PthContents(NamedTuple):
    """What a ``.pth`` file holds.

    Attributes:
        tensors: the state dict.
        arguments: the settings of the program that wrote it, if it kept them.
        others: names of further entries, such as the optimiser's state.
    """

    tensors: dict[str, Tensor]
    arguments: dict[str, Any]
    others: tuple[str, ...]


def read(path: str | Path) -> PthContents:
    """Read a checkpoint that ``torch.save`` wrote.

    Raises:
        UserError: it is no such file, damaged, or asks for anything but tensors and plain
            containers. Nothing of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _inspect(path, file)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return _sort_out(path, _load(path))


def _inspect(path: Path, file: IO[bytes]) -> None:
    """Read every instruction of the file's pickles; none is carried out."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise UserError(f"{path} is empty: it was not downloaded or written to its end")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run 'git lfs pull'")
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path} is a tar archive, as PyTorch wrote them before 2017: load it there and "
            "save it again"
        )
    if head.startswith(b"PK"):
        _inspect_zip(path)
    elif head.startswith(b"\x80"):
        _inspect_legacy(path, file)
    else:
        raise UserError(f"{path} is not a PyTorch checkpoint")


def _inspect_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(name.endswith("constants.pkl") for name in names):
                raise UserError(
                    f"{path} is a TorchScript program, not weights: save model.state_dict() instead"
                )
            pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip archive, but not one that torch.save wrote")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError(
                    f"{path} is compressed, as no file of PyTorch's is: it may unpack to any size"
                )
            with archive.open(pickles[0]) as file:
                _inspect_pickle(path, file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}): get it again") from None


def _inspect_legacy(path: Path, file: IO[bytes]) -> None:
    """PyTorch before 1.6 wrote five pickles one after the other, then the numbers."""
    if _inspect_pickle(path, file) != _LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not one that torch.save wrote")
    for _ in range(_LEGACY_PICKLES - 1):
        _inspect_pickle(path, file)


def _inspect_pickle(path: Path, file: IO[bytes]) -> int | None:
    """Read the instructions of one pickle; returns its first long number.

    Raises:
        UserError: it names something that is not on the list, or cannot be read.
    """
    first: int | None = None
    try:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "GLOBAL" and _modern(str(argument)) not in ALLOWED:
                raise _forbidden(path, _modern(str(argument)))
            newer = instruction.name == "PROTO" and isinstance(argument, int) and argument > 2
            if newer or instruction.name in _OPAQUE:
                raise UserError(
                    f"{path} uses {instruction.name} of a pickle protocol that PyTorch's "
                    "checkpoints do not use: it was not opened"
                )
            if instruction.name == "LONG1" and first is None and isinstance(argument, int):
                first = argument
    except (ValueError, UnicodeError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is cut short or damaged ({error}): get it again") from None
    return first


def _modern(name: str) -> str:
    """Python 2 called the module ``builtins`` otherwise."""
    return name.replace("__builtin__ ", "builtins ")


def _forbidden(path: Path, name: str) -> UserError:
    dotted = name.replace(" ", ".")
    if name.split(".")[0].split(" ")[0] in _CAN_HARM:
        return UserError(
            f"{path} would call {dotted} when it is opened, which no checkpoint needs: it was "
            "not opened; do not use this file"
        )
    return UserError(
        f"{path} holds a {dotted}, which is neither a tensor nor a plain container: it was not "
        "opened; save only model.state_dict() in it"
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # Whatever damage makes PyTorch raise: it has many kinds.
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} is cut short or damaged ({reason}): get it again") from None


def _sort_out(path: Path, contents: Any) -> PthContents:
    for value in _everything(contents):
        if isinstance(value, Tensor):
            _require_ordinary(path, value)
        elif not isinstance(value, (dict, list, tuple, set, argparse.Namespace, *_PLAIN)):
            raise _forbidden(path, f"{type(value).__module__} {type(value).__qualname__}")
    if not isinstance(contents, dict):
        raise UserError(
            f"{path} holds a {type(contents).__name__}, not a state dict: save "
            "model.state_dict() in it"
        )
    state = next((contents[name] for name in _STATE_DICT_NAMES if name in contents), contents)
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no state dict: it has {_shown(contents)}")
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not all(isinstance(name, str) for name in state):
        raise UserError(
            f"{path} holds no state dict: it has {_shown(contents)}, and only "
            f"{', '.join(map(repr, _STATE_DICT_NAMES))} or tensors alone are looked for"
        )
    broken = [name for name, each in state.items() if not each.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {broken[0]!r} holds numbers that are NaN or infinite: the training that "
            "wrote it had failed"
        )
    arguments = contents.get("args", {})
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    others = (
        ()
        if state is contents
        else tuple(str(name) for name in contents if contents[name] is not state)
    )
    return PthContents(dict(state), arguments if isinstance(arguments, dict) else {}, others)


def _everything(contents: Any) -> Iterator[Any]:
    """Every value inside, however deep; each object once, so that cycles end."""
    waiting, seen = [contents], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        if hasattr(value, "__dict__") and not isinstance(value, Tensor):
            waiting.extend(vars(value).values())


def _require_ordinary(path: Path, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{path} holds a sparse or quantised tensor, or none at all in its place")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(
            f"{path} holds a tensor that claims {tensor.numel():,} numbers but has fewer: it "
            "may fill the memory"
        )


def _shown(contents: Mapping[Any, Any]) -> str:
    names = [repr(name) for name in contents][:6]
    return f"the entries {', '.join(names)}" if names else "no entries"
