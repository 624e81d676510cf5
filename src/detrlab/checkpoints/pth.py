"""Reading ``.pth`` files, which are pickles, without running anything in them.

PyTorch's restricted unpickler reads them (``torch.load(weights_only=True)``). Beside tensors and
plain containers it accepts ``argparse.Namespace`` here, in which the original training programs
keep their settings.
"""

from __future__ import annotations

import argparse
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from detrlab.errors import UserError, shortened

_STATE_DICT_NAMES = ("model", "state_dict", "model_state_dict")
_INFINITE = "decoder.anchors"
"""Holds infinities where a cell may not propose; it is no weight."""


class PthContents(NamedTuple):
    """The contents of a ``.pth`` file.

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
        UserError: it is no such file, is damaged, or holds anything but tensors and plain
            containers. Nothing in it was run.
    """
    path = Path(path)
    try:
        _check_kind(path)
        with _only_safe(argparse.Namespace), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual files, which are refused anyway
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # damaged files make PyTorch raise nearly anything
        raise UserError(_why(path, error)) from None
    return _sort_out(path, contents)


def _check_kind(path: Path) -> None:
    """Say what the file is if it is something else, and refuse what could unpack to any size."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path} is empty: it was not downloaded or written to its end")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run 'git lfs pull'")
    if tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is a tar archive, as PyTorch wrote them before 2017: load it there and "
            "save it again"
        )
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(each.filename.endswith("constants.pkl") for each in members):
            raise UserError(
                f"{path} is a TorchScript program, not weights: save model.state_dict() instead"
            )
        if any(each.compress_type != zipfile.ZIP_STORED for each in members):
            raise UserError(
                f"{path} is compressed, which no file of torch.save is: it may unpack to any size"
            )
    elif not head.startswith(b"\x80"):
        raise UserError(f"{path} is not a PyTorch checkpoint")


@contextmanager
def _only_safe(*classes: type) -> Iterator[None]:
    """Accept these classes, and none that other packages added to PyTorch's global list."""
    others = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(list(classes))
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(others)


def _why(path: Path, error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{path} names {refused[1]}, which is neither a tensor nor a plain container: it was "
            "not opened. Use another file, or save only model.state_dict() in it"
        )
    # PyTorch's own first lines advise to allow everything.
    reason = text.partition("WeightsUnpickler error: ")[2].strip() or text
    shown = shortened(reason.splitlines()[0], 200)
    return f"{path} is damaged, or not a checkpoint of torch.save ({shown}): get it again"


def _sort_out(path: Path, contents: Any) -> PthContents:
    if not isinstance(contents, dict):
        raise UserError(
            f"{path} holds a {type(contents).__name__}, not a state dict: save "
            "model.state_dict() in it"
        )
    state = next((contents[name] for name in _STATE_DICT_NAMES if name in contents), contents)
    averaged = contents.get("ema")
    if isinstance(averaged, dict) and "module" in averaged:  # what RT-DETR's code evaluates
        state = averaged["module"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(
            isinstance(name, str) and isinstance(each, Tensor) for name, each in state.items()
        )
    ):
        raise UserError(
            f"{path} holds no state dict, only {_shown(contents)}; it should be tensors by name, "
            f"alone or under {', '.join(map(repr, _STATE_DICT_NAMES))}"
        )
    for name, tensor in state.items():
        _check_tensor(f"{path}: {name!r}", tensor, finite=not name.endswith(_INFINITE))
    arguments = contents.get("args", {})
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    others = (str(name) for name, value in contents.items() if value is not state)
    return PthContents(
        dict(state),
        arguments if isinstance(arguments, dict) else {},
        () if state is contents else tuple(others),
    )


def _check_tensor(where: str, tensor: Tensor, *, finite: bool) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{where} is not an ordinary tensor ({tensor.layout}, {tensor.device})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(
            f"{where} claims {tensor.numel():,} numbers but holds fewer: it may fill the memory"
        )
    if finite and not tensor.isfinite().all():
        raise UserError(
            f"{where} holds numbers that are NaN or infinite: the training that wrote it had failed"
        )


def _shown(contents: Mapping[Any, Any]) -> str:
    names = [repr(name) for name in contents][:6]
    return f"the entries {', '.join(names)}" if names else "no entries"
