"""``.pth`` files: the official shape loads; a hostile file is refused and runs nothing."""

import argparse
import collections
import io
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_cases import strong_state, write_official
from torch import nn

from detrlab.checkpoints import pth
from detrlab.errors import UserError
from tiny_detectors import tiny_config


def official(path, legacy=False):
    config = tiny_config("detr")
    return write_official(path, config, strong_state(config), legacy=legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_official_shape_loads(tmp_path, legacy):
    path = official(tmp_path / "checkpoint.pth", legacy)
    expected = torch.load(path, weights_only=False)
    contents = pth.read(path)
    assert list(contents.tensors) == list(expected["model"])
    assert all(torch.equal(contents.tensors[n], t) for n, t in expected["model"].items())
    assert contents.arguments == vars(expected["args"])
    assert contents.arguments["lr_backbone_names"] == ["backbone.0"]
    assert contents.others == ("optimizer", "lr_scheduler", "epoch", "args")


@pytest.mark.parametrize("name", ["model", "state_dict", None])
def test_other_shapes_load(tmp_path, name):
    weight = torch.ones(2, 3)
    state = {"a": weight, "alias": weight, "b": nn.Parameter(torch.zeros(4, dtype=torch.float16))}
    torch.save({name: state} if name else state, tmp_path / "x.pth")
    contents = pth.read(tmp_path / "x.pth")
    assert set(contents.tensors) == {"a", "alias", "b"}
    assert contents.tensors["a"].data_ptr() == contents.tensors["alias"].data_ptr()
    assert contents.arguments == {}


# --- files that must be refused -------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Model(nn.Module):
    pass


def command(canary):
    return Call(os.system, f"touch '{canary}'")


def saved(contents, **options):
    stream = io.BytesIO()
    torch.save(contents, stream, **options)
    return stream.getvalue()


def state(value):
    return saved({"model": {"a": value}})


def with_entry(value):
    return saved({"model": {"a": torch.ones(1)}, "entry": value})


def repacked(data, method=zipfile.ZIP_STORED, change=lambda data: data):
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for member in old.infolist():
            pickled = member.filename.endswith("data.pkl")
            new.writestr(member.filename, (change if pickled else bytes)(old.read(member)))
    return stream.getvalue()


def larger_shape(data):
    """The shape (4,) becomes (200,)."""
    assert data.count(b"K\x04\x85") == 1
    return data.replace(b"K\x04\x85", b"K\xc8\x85")


def zip_of_pictures():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images/1.png", b"x")
    return stream.getvalue()


def tar_archive():
    """Without the usual magic word, and with first bytes that look like a pickle."""
    header = bytearray(512)
    header[:2], header[100:107], header[124:135] = b"\x80\x02", b"0000644", b"0" * 11
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def torchscript():
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), stream)
    return stream.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
HOSTILE = {  # contents, given what the payload would write; what the message says
    "a command": (lambda canary: state(command(canary)), r"names (posix|nt)\.system.*not opened"),
    "code": (lambda canary: with_entry(Call(eval, f"open('{canary}', 'w')")), r"names .*eval"),
    "a command in the settings": (
        lambda canary: with_entry(argparse.Namespace(lr=command(canary))),
        r"names (posix|nt)\.system",
    ),
    "a command in the old format": (
        lambda canary: saved({"model": {"a": command(canary)}}, **OLD),
        r"names (posix|nt)\.system",
    ),
    "a bare pickle": (
        lambda canary: pickle.dumps(command(canary), protocol=2),
        r"names (posix|nt)\.system",
    ),
    "a command named through the stack": (
        lambda canary: saved({"model": {"a": command(canary)}}, pickle_protocol=4),
        "not a checkpoint",
    ),
    "a whole model": (lambda _: saved(Model()), r"names [\w.]*test_pth\.Model.*state_dict\(\)"),
    "numpy": (lambda _: with_entry(np.float64(0.3)), r"names numpy\..*scalar"),
    "another class": (lambda _: with_entry(collections.deque()), r"names collections\.deque"),
    "TorchScript": (lambda _: torchscript(), "TorchScript"),
    "cut short": (lambda _: state(torch.ones(99))[:-200], "damaged"),
    "cut short in the old format": (lambda _: saved({"a": torch.ones(9)}, **OLD)[:-9], "damaged"),
    "cut short in a pickle": (lambda _: saved({"a": torch.ones(9)}, **OLD)[:99], "damaged"),
    "nothing": (lambda _: b"", "empty"),
    "a web page": (lambda _: b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
    "a pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 3\n",
        "git lfs pull",
    ),
    "a tar archive": (lambda _: tar_archive(), "tar archive"),
    "something else": (lambda _: b"RIFF" + bytes(600), "not a PyTorch checkpoint"),
    "a zip of pictures": (lambda _: zip_of_pictures(), "not a checkpoint"),
    "compressed": (
        lambda _: repacked(state(torch.zeros(1_000_000)), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "more than it holds": (
        lambda _: state(torch.ones(1).expand(10**12)),
        "claims 1,000,000,000,000 numbers",
    ),
    "more than its storage": (
        lambda _: repacked(state(torch.arange(4.0)), change=larger_shape),
        "damaged",
    ),
    "a huge length": (lambda _: b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"short", "damaged"),
    "sparse": (lambda _: state(torch.eye(3).to_sparse()), "sparse"),
    "no state dict": (
        lambda _: saved({"epoch": 3, "best": 0.2}),
        r"no state dict.*'epoch', 'best'",
    ),
    "a list": (lambda _: saved([torch.ones(2)]), "holds a list"),
    "not a number": (lambda _: state(torch.tensor([1.0, float("nan")])), "'a' holds .* NaN"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_runs_and_the_message_says_why(tmp_path, kind):
    make, message = HOSTILE[kind]
    path, canary = tmp_path / "weights.pth", tmp_path / "the payload ran"
    path.write_bytes(make(canary))
    # PyTorch's list of safe classes is global, and any package may add to it.
    with (
        torch.serialization.safe_globals([collections.deque]),
        pytest.raises(UserError, match=message) as raised,
    ):
        pth.read(path)
    assert str(path) in str(raised.value)
    assert not canary.exists()
    if "command" in kind:  # elsewhere, the payload runs
        torch.load(path, weights_only=False)
        assert canary.exists()


def test_others_safe_classes_stay_theirs(tmp_path):
    with torch.serialization.safe_globals([collections.deque]):
        before = torch.serialization.get_safe_globals()
        assert collections.deque in before
        pth.read(official(tmp_path / "x.pth"))
        assert set(torch.serialization.get_safe_globals()) == set(before)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        pth.read(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot be read"):
        pth.read(tmp_path)
