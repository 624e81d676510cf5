"""``.pth`` files: the official shape loads; whatever would run something does nothing but fail."""

import argparse
import collections
import io
import os
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from torch import nn

from detrlab.checkpoints import restricted
from detrlab.errors import UserError


def official_file(path, legacy=False):
    """A checkpoint as the originals' training loop writes it, optimiser and settings included."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    arguments = argparse.Namespace(
        nheads=8, dilation=True, lr_backbone_names=["backbone.0"], output_dir="", resume=None
    )
    contents = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 49,
        "args": arguments,
    }
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    return network


@pytest.mark.parametrize("legacy", [False, True])
def test_the_official_shape_loads(tmp_path, legacy):
    path = tmp_path / "checkpoint.pth"
    network = official_file(path, legacy)
    contents = restricted.read(path)
    assert list(contents.tensors) == list(network.state_dict())
    assert all(torch.equal(contents.tensors[n], t) for n, t in network.state_dict().items())
    assert contents.arguments["dilation"] is True
    assert contents.arguments["lr_backbone_names"] == ["backbone.0"]
    assert contents.others == ("optimizer", "lr_scheduler", "epoch", "args")


@pytest.mark.parametrize("name", ["model", "state_dict", None])
def test_other_shapes_load(tmp_path, name):
    state = {"a.weight": torch.ones(2, 3), "b": nn.Parameter(torch.zeros(4, dtype=torch.float16))}
    torch.save({name: state} if name else state, tmp_path / "x.pth")
    contents = restricted.read(tmp_path / "x.pth")
    assert set(contents.tensors) == {"a.weight", "b"}
    assert contents.arguments == {}


def test_aliases_stay_aliases(tmp_path):
    weight = torch.randn(3)
    torch.save({"model": {"a": weight, "b": weight}}, tmp_path / "x.pth")
    tensors = restricted.read(tmp_path / "x.pth").tensors
    assert tensors["a"].data_ptr() == tensors["b"].data_ptr()


# --- files that must do nothing but fail ----------------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Model(nn.Module):
    pass


def canary(tmp_path):
    return tmp_path / "the payload ran"


def runs_a_command(path, tmp_path):
    torch.save({"model": {"a": Call(os.system, f"touch '{canary(tmp_path)}'")}}, path)


def evaluates_code(path, tmp_path):
    code = f"open({str(canary(tmp_path))!r}, 'w')"
    torch.save({"model": {"a": torch.ones(1)}, "x": Call(eval, code)}, path)


def hides_in_the_settings(path, tmp_path):
    settings = argparse.Namespace(lr=Call(os.mkdir, str(canary(tmp_path))))
    torch.save({"model": {"a": torch.ones(1)}, "args": settings}, path)


def runs_in_the_old_format(path, tmp_path):
    contents = {"model": {"a": Call(os.system, f"touch '{canary(tmp_path)}'")}}
    torch.save(contents, path, _use_new_zipfile_serialization=False)


def is_a_bare_pickle_that_runs(path, tmp_path):
    path.write_bytes(pickle.dumps(Call(os.mkdir, str(canary(tmp_path))), protocol=2))


def names_things_through_the_stack(path, tmp_path):
    contents = {"model": {"a": Call(os.mkdir, str(canary(tmp_path)))}}
    torch.save(contents, path, pickle_protocol=4)


def pickles_a_whole_model(path, _):
    torch.save(Model(), path)


def pickles_numpy(path, _):
    import numpy as np

    torch.save({"model": {"a": torch.ones(1)}, "best": np.float64(0.3)}, path)


def is_torchscript(path, _):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is going away is why such files are refused
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def is_cut_short(path, _):
    official_file(path)
    path.write_bytes(path.read_bytes()[:-200])


def is_cut_short_in_the_old_format(path, _):
    official_file(path, legacy=True)
    path.write_bytes(path.read_bytes()[:-40])


def is_cut_short_in_the_old_formats_pickle(path, _):
    official_file(path, legacy=True)
    path.write_bytes(path.read_bytes()[:150])


def is_empty(path, _):
    path.touch()


def is_a_web_page(path, _):
    path.write_text("\n<!DOCTYPE html><html>Quota exceeded</html>")


def is_a_pointer(path, _):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n")


def is_something_else(path, _):
    path.write_bytes(b"RIFF" + bytes(600))


def is_a_zip_of_pictures(path, _):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.png", b"x")


def is_compressed(path, _):
    plain = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1_000_000)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def claims_more_than_it_holds(path, _):
    torch.save({"model": {"a": torch.ones(1).expand(10**12)}}, path)


def is_sparse(path, _):
    # Sparse tensors are rebuilt by functions that are not on the list.
    torch.save({"model": {"a": torch.eye(3).to_sparse()}}, path)


def reaches_outside_its_storage(path, _):
    plain = io.BytesIO()
    torch.save({"model": {"a": torch.arange(4.0)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("data.pkl"):  # the shape (4,) becomes (200,)
                assert data.count(b"K\x04\x85") == 1
                data = data.replace(b"K\x04\x85", b"K\xc8\x85")
            new.writestr(member.filename, data)


def has_no_state_dict(path, _):
    torch.save({"epoch": 3, "accuracy": 0.2}, path)


def is_a_list(path, _):
    torch.save([torch.ones(2)], path)


def is_not_a_number(path, _):
    torch.save({"model": {"a": torch.tensor([1.0, float("nan")])}}, path)


MALICIOUS = {
    runs_a_command: r"would call (posix|nt)\.system .*do not use this file",
    evaluates_code: r"would call builtins\.eval .*do not use this file",
    hides_in_the_settings: r"would call (posix|nt)\.mkdir",
    runs_in_the_old_format: r"would call (posix|nt)\.system",
    is_a_bare_pickle_that_runs: r"would call (posix|nt)\.mkdir",
    names_things_through_the_stack: r"pickle protocol that PyTorch's checkpoints do not use",
    pickles_a_whole_model: r"holds a [\w.]*test_restricted\.Model, .*model\.state_dict\(\)",
    pickles_numpy: r"holds a numpy\..*scalar, which is neither a tensor nor a plain container",
    is_torchscript: "TorchScript program",
    is_cut_short: "cut short or damaged",
    is_cut_short_in_the_old_format: "cut short or damaged",
    is_cut_short_in_the_old_formats_pickle: "cut short or damaged",
    is_empty: "is empty",
    is_a_web_page: "is a web page",
    is_a_pointer: "git lfs pull",
    is_something_else: "is not a PyTorch checkpoint",
    is_a_zip_of_pictures: "not one that torch.save wrote",
    is_compressed: "is compressed",
    claims_more_than_it_holds: "claims 1,000,000,000,000 numbers",
    is_sparse: "neither a tensor nor a plain container",
    reaches_outside_its_storage: "damaged",
    has_no_state_dict: r"no state dict: it has the entries 'epoch', 'accuracy'",
    is_a_list: "holds a list",
    is_not_a_number: r"'a' holds numbers that are NaN",
}


@pytest.mark.parametrize("make", MALICIOUS, ids=lambda make: make.__name__)
def test_nothing_runs_and_the_message_says_why(tmp_path, make):
    path = tmp_path / "weights.pth"
    make(path, tmp_path)
    with pytest.raises(UserError, match=MALICIOUS[make]) as raised:
        restricted.read(path)
    assert str(path) in str(raised.value)
    assert not canary(tmp_path).exists()


def test_the_payloads_would_run_elsewhere(tmp_path):
    path = tmp_path / "weights.pth"
    runs_a_command(path, tmp_path)
    torch.load(path, weights_only=False)
    assert canary(tmp_path).exists()


def test_what_others_allowed_is_not_allowed_here(tmp_path):
    """PyTorch's list of safe names is global, and any package may add to it."""
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}, "x": collections.deque()}, path)
    with (
        torch.serialization.safe_globals([collections.deque]),
        pytest.raises(UserError, match=r"collections\.deque"),
    ):
        restricted.read(path)


def test_huge_lengths_are_not_believed(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"short")
    with pytest.raises(UserError, match="cut short or damaged"):
        restricted.read(path)


def test_a_structure_may_contain_itself(tmp_path):
    loop = {"model": {"a": torch.ones(1)}}
    loop["again"] = [loop]
    torch.save(loop, tmp_path / "x.pth")
    assert set(restricted.read(tmp_path / "x.pth").tensors) == {"a"}


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        restricted.read(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot be read"):
        restricted.read(tmp_path)
