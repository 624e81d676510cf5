"""RT-DETR's files: recognised, read, written back, and loaded by the original code."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import assert_same_tensors, strong_state, write_official

from detrlab.checkpoints import official, rtdetr
from detrlab.checkpoints.convert import convert
from detrlab.checkpoints.reading import read
from detrlab.checkpoints.rules import export
from detrlab.errors import UserError
from detrlab.presets import PRESETS, build_network, model_config
from detrlab.presets.rungs import UNPUBLISHED
from tiny_detectors import tiny_config, tiny_resnet_d

ORIGINAL = Path(__file__).resolve().parents[3] / "shared" / "originals"
NAMES = [
    name
    for name in PRESETS
    if "rt-detr" in name and name not in (*UNPUBLISHED, "rt-detr-r50-focal")
]
SMALL = ["rt-detr-r18", "rt-detr-v2-r18", "rt-detr-v2-r50", "deim-rt-detr-v2-r18"]
LOAD = """
import sys, torch
sys.path.insert(0, {originals!r})
import witness
case = witness.CASES[{name!r}]
model = witness.build_yaml(case, False, None).model
found = torch.load({path!r}, weights_only=True)["model"]
own = model.state_dict()
model.load_state_dict(found, strict=True)
for name in ("decoder.anchors", "decoder.valid_mask"):
    assert name not in own or torch.equal(own[name], found[name]), name
for name in own:
    assert "num_points_scale" not in name or torch.equal(own[name], found[name]), name
"""


def floats(state):
    return {name: each for name, each in state.items() if each.is_floating_point()}


def tiny(preset, **changes):
    basic = any(depth in preset for depth in ("r18", "r34"))
    return tiny_config(preset, backbone=tiny_resnet_d(basic=basic), **changes)


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("changes", [{}, {"points": (3, 1, 2), "encoder_layers": 0, "levels": 3}])
def test_a_file_is_recognised_and_written_back(tmp_path, preset, changes):
    if preset == "rt-detr-r18" and changes:
        changes = {"points": 2, "encoder_layers": 0}
    config = tiny(preset, **changes)
    state = strong_state(config)
    path = write_official(tmp_path / "checkpoint.pth", config, state)
    found = read(path, told={"backbone": config.backbone})
    found_config = found.checkpoint.config
    same = {"dropout": 0.0}  # which the file says otherwise
    if not config.encoder_layers:
        same["encoder_ffn_width"] = config.encoder_ffn_width
    assert found_config.change(**same) == config
    assert found.assumed == {}
    assert_same_tensors(floats(found.checkpoint.state), floats(state))
    lines = convert(found, "official", tmp_path / "back.pth")
    assert any("640 x 640" in line for line in lines)
    theirs = torch.load(path, weights_only=False)["model"]
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_same_tensors(floats(back), floats(theirs))
    assert set(back) == set(theirs)


def test_the_averaged_weights_are_read(tmp_path):
    config = tiny("rt-detr-v2-r18")
    state = export(strong_state(config), official.layout(config))
    shifted = {name: each + 1 for name, each in state.items()}
    torch.save({"model": shifted, "ema": {"module": state, "updates": 7}}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth", told={"backbone": config.backbone}).checkpoint
    theirs = export(found.state, official.layout(config))
    name = "decoder.query_pos_head.layers.0.weight"
    assert torch.equal(theirs[name], state[name])


def test_80_classes_are_cocos(tmp_path):
    config = tiny("rt-detr-r18", num_classes=80)
    path = write_official(tmp_path / "x.pth", config, strong_state(config))
    checkpoint = read(path, told={"backbone": config.backbone}).checkpoint
    assert checkpoint.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert checkpoint.classes[-1] == "toothbrush"
    assert checkpoint.preprocessing == config.preprocessing()


def test_other_backbones_keep_their_names(tmp_path):
    config = tiny_config("rt-detr-r50")
    path = write_official(tmp_path / "x.pth", config, strong_state(config), training=False)
    assert "backbone.body.conv1.weight" in torch.load(path, weights_only=True)["model"]
    with pytest.raises(UserError, match="say which it is"):
        read(path)
    told = {"backbone": config.backbone, "num_heads": 4, "num_queries": 24}
    assert read(path, told=told).checkpoint.config == config


@pytest.mark.parametrize("preset", NAMES)
def test_published_sizes_are_recognised(preset):
    config = model_config(preset, 80)
    with torch.device("meta"):
        state = build_network(config).state_dict()
    theirs = export(state, official.layout(config))
    found, sizes = rtdetr.sizes_of(theirs, "x", {"num_heads": 8, "backbone": None})
    assert found == preset.removesuffix("-dsp")
    assert model_config(found, **sizes) == model_config(found, 80)


@pytest.mark.slow
@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the authors' code does not lie beside us")
@pytest.mark.parametrize("preset", SMALL)
def test_the_original_loads_ours(tmp_path, preset):
    config = model_config(preset, 80)
    path = tmp_path / "ours.pth"
    found = write_official(tmp_path / "x.pth", config, build_network(config).state_dict())
    convert(read(found), "official", path)
    program = LOAD.format(originals=str(ORIGINAL), name=preset, path=str(path))
    subprocess.run([sys.executable, "-B", "-c", program], check=True)


@pytest.mark.parametrize("scale", [None, torch.tensor(float("nan")), torch.zeros(0)])
def test_a_broken_number_of_points_is_one_clear_error(tmp_path, scale):
    config = tiny_config("deimv2-femto", backbone="hgnetv2_femto")
    path = write_official(tmp_path / "x.pth", config, strong_state(config))
    contents = torch.load(path, weights_only=False)  # ours, with its settings
    name = "decoder.decoder.layers.0.cross_attn.num_points_scale"
    contents["model"].pop(name)
    if scale is not None:
        contents["model"][name] = scale
    torch.save(contents, path)
    with pytest.raises(UserError):
        read(path)
