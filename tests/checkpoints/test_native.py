"""Our own file: it describes itself, is written whole or not at all, and is read strictly."""

import errno
import json

import pytest
import torch
from safetensors.torch import save_file

from detrlab.checkpoints import native
from detrlab.config import DataConfig
from detrlab.errors import UserError
from detrlab.presets import PRESETS, build_network, model_config
from detrlab.recipes import recipe
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

CLASSES = ("kettle", "Tasse à thé", "spoon")
PREPROCESSING = DataConfig(image_size=96, max_size=160, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))


def write(path, preset="deformable-detr-two-stage", **keep):
    config = tiny_config(preset, num_classes=3)
    network = build_network(config, seed=5)
    saved = native.save(path, network, config, CLASSES, (4, 9, 2), PREPROCESSING, **keep)
    return saved, network, config


def described_as(path, target, **changes):
    """A copy of a checkpoint whose description says something else."""
    description = {**native.describe(path), **changes}
    save_file(native.read_tensors(path), target, metadata={"detrlab": json.dumps(description)})
    return target


@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_saved_comes_back(tmp_path, preset):
    keep = {
        "threshold": 0.4,
        "provenance": {"recipe": "tiny", "epochs": 3},
        "extra": {"note": ["a", 1, None]},
    }
    path, network, config = write(tmp_path / "deep" / "last", preset, **keep)
    assert path == tmp_path / "deep" / "last.safetensors"
    checkpoint = native.load(path)
    assert checkpoint.config == config
    assert checkpoint.classes == CLASSES
    assert checkpoint.category_ids == (4, 9, 2)
    assert checkpoint.preprocessing == PREPROCESSING
    assert checkpoint.threshold == 0.4
    assert checkpoint.provenance == keep["provenance"]
    assert checkpoint.extra == keep["extra"]
    assert checkpoint.versions["torch"] == torch.__version__
    assert sorted(checkpoint.state) == sorted(network.state_dict())

    images = ImageBatch(torch.rand(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    again = checkpoint.build()
    with torch.no_grad():
        ours, theirs = network.eval()(images).final, again.eval()(images).final
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.boxes, theirs.boxes)


def test_the_data_itself_is_not_remembered(tmp_path):
    config = tiny_config("detr", num_classes=3)
    own = DataConfig(data="secret/place", workers=7, image_size=64, max_size=64)
    path = native.save(tmp_path / "m", build_network(config), config, CLASSES, (0, 1, 2), own)
    assert b"secret" not in path.read_bytes()
    assert native.load(path).preprocessing == DataConfig(image_size=64, max_size=64)


def test_square_images_are_remembered_and_the_usual_ones_not_named(tmp_path):
    config = tiny_config("detr", num_classes=3)
    for name, own in {
        "usual": PREPROCESSING,
        "square": PREPROCESSING.change(resize="square"),
    }.items():
        path = native.save(tmp_path / name, build_network(config), config, CLASSES, (0, 1, 2), own)
        assert native.load(path).preprocessing == own
        # Versions that know no square images refuse a file that names it.
        assert ("resize" in native.describe(path)["preprocessing"]) == (name == "square")


def write_without_backbone(path, change=0.0):
    config = model_config("detr", 3, **recipe("tiny").model)
    network = build_network(config, pretrained_backbone=True, seed=5)
    with torch.no_grad():
        next(network.backbone.parameters())[0] += change
    saved = native.save(
        path, network, config, CLASSES, (4, 9, 2), PREPROCESSING, imagenet_backbone=True
    )
    return saved, network


def test_an_imagenet_backbone_may_be_left_out_of_the_file(tmp_path):
    path, network = write_without_backbone(tmp_path / "m")
    assert not any(name.startswith("backbone.") for name in native.read_tensors(path))
    checkpoint = native.load(path)
    assert checkpoint.imagenet_backbone
    wanted = network.state_dict()
    assert set(checkpoint.state) == set(wanted)
    assert all(torch.equal(each, wanted[name]) for name, each in checkpoint.state.items())
    native.save(
        tmp_path / "whole", checkpoint.build(), checkpoint.config, CLASSES, (4, 9, 2), PREPROCESSING
    )
    assert not native.load(tmp_path / "whole.safetensors").imagenet_backbone


def test_another_backbone_than_the_one_left_out_is_refused(tmp_path):
    path, _ = write_without_backbone(tmp_path / "m", change=1e-3)
    with pytest.raises(UserError, match=r"other ImageNet weights of tf_efficientnet_lite0"):
        native.load(path)


def test_a_state_dict_can_be_saved_in_place_of_the_network(tmp_path):
    config = tiny_config("detr", num_classes=3)
    state = {name: each + 1 for name, each in build_network(config).state_dict().items()}
    path = native.save(tmp_path / "mean", state, config, CLASSES, (0, 1, 2), PREPROCESSING)
    network = native.load(path).build()
    assert all(torch.equal(state[name], each) for name, each in network.state_dict().items())


def test_the_same_weights_make_the_same_bytes(tmp_path):
    first, *_ = write(tmp_path / "a")
    second, *_ = write(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_half_precision_and_trained_norms_survive(tmp_path):
    changes = {"backbone_norms": "trained", "backbone_trains": "all"}
    config = tiny_config("detr", num_classes=3, **changes)
    network = build_network(config).to(torch.bfloat16)
    path = native.save(tmp_path / "m", network, config, CLASSES, (0, 1, 2), PREPROCESSING)
    state = native.load(path).state
    assert any(name.endswith("num_batches_tracked") for name in state)
    assert state["queries.position"].dtype == torch.bfloat16
    native.load(path).build()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path, *_ = write(tmp_path / "last")
    before = path.read_bytes()

    def breaks_off(target, data):
        with target.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", breaks_off)
    with pytest.raises(UserError, match="the disk is full"):
        write(tmp_path / "last", "detr")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["last.safetensors"]


BROKEN = {
    "empty": (lambda _: b"", "is empty"),
    "cut in its header": (lambda data: data[:300], "truncated"),
    "cut in its tensors": (lambda data: data[:-7], "truncated"),
    "longer than it says": (lambda data: data + b"more", "is damaged|truncated"),
    "text": (lambda _: b"<html>404 not found</html>", "not a safetensors file"),
    "zip": (lambda data: b"PK\3\4" + data, "PyTorch file"),
    "pickle": (lambda data: b"\x80\2" + data, "PyTorch file"),
    "garbled header": (lambda data: data[:9] + b"?" * 40 + data[49:], "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path, name):
    damage, message = BROKEN[name]
    path, *_ = write(tmp_path / "good")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as raised:
        native.load(broken)
    assert "broken.safetensors" in str(raised.value)
    assert not native.is_native(broken)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*absent"):
        native.load(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"is a folder.*last\.safetensors"):
        native.load(tmp_path)


def test_another_tools_file(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not written by detrlab"):
        native.load(path)
    assert not native.is_native(path)


def test_a_newer_format_is_refused(tmp_path):
    path, *_ = write(tmp_path / "m")
    versions = {"detrlab": "9.1"}
    newer = described_as(path, tmp_path / "n.safetensors", format=2, versions=versions)
    with pytest.raises(UserError, match=r"detrlab 9\.1 in format 2.*--upgrade"):
        native.load(newer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "2 classes and 3 category ids"),
        (
            {"architecture": {"preset": "detr", "num_classes": 3, "widht": 4}},
            "did you mean 'width'",
        ),
        ({"architecture": None}, "is damaged"),
        ({"preprocessing": {"image_size": -3}}, "image_size"),
        ({"format": "one"}, "is damaged"),
    ],
)
def test_a_description_that_makes_no_sense(tmp_path, changes, message):
    path, *_ = write(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        native.load(described_as(path, tmp_path / "n.safetensors", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8192, "ffn_width": 65_536}, "where the model has .*8192"),
        ({"width": 1 << 22, "ffn_width": 1 << 50}, "width.*4194304"),
        ({"encoder_layers": 10**9}, "encoder_layers.*1000000000"),
        ({"encoder_layers": 100, "decoder_layers": 100}, "where the model|lacks|layers"),
    ],
)
def test_a_small_file_cannot_ask_for_a_huge_network(tmp_path, changes, message):
    path, _, config = write(tmp_path / "m", "detr")
    huge = described_as(path, tmp_path / "h", architecture={**config.to_dict(), **changes})
    with pytest.raises(UserError, match=message):
        native.load(huge).build()


def test_names_and_shapes_must_fit_the_architecture(tmp_path):
    _, network, _ = write(tmp_path / "m")
    state = network.state_dict()
    kept = state.pop("decoder.heads.1.classes.bias")
    with pytest.raises(UserError, match=r"lacks 'decoder\.heads\.1\.classes\.bias'"):
        native.fill(network, state, where="it")
    state["decoder.heads.1.classes.bias"] = kept[:2]
    with pytest.raises(UserError, match=r"classes\.bias \(2,\) where the model has \(3,\)"):
        native.fill(network, state, where="it")
    state["decoder.heads.1.classes.bias"] = kept
    state["decoder.heads.9.classes.bias"] = kept
    with pytest.raises(UserError, match=r"unknown 'decoder\.heads\.9\.classes\.bias'"):
        native.fill(network, state, where="it")


@pytest.mark.parametrize("length", [0x80, int.from_bytes(b"PK", "little")])
def test_a_header_whose_length_spells_another_format(tmp_path, length):
    """The first eight bytes are a number, and may be any."""
    path, *_ = write(tmp_path / "m")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes(
        length.to_bytes(8, "little") + data[8 : 8 + size].ljust(length) + data[8 + size :]
    )
    native.require_safetensors(path)
