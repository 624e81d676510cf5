"""DINO's own layout and detrex's: every name, there and back, recognised without being told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import assert_same_tensors, imported, strong_state, write_official

from detrlab.checkpoints import official
from detrlab.checkpoints.convert import convert
from detrlab.checkpoints.reading import read
from detrlab.checkpoints.rules import export, translate_strictly
from detrlab.checkpoints.weights import first_network, load_detector
from detrlab.errors import UserError
from detrlab.presets import build_network, model_config
from tiny_detectors import tiny_config

ORIGINAL = Path(__file__).resolve().parents[3] / "shared" / "originals"
STEPS = ["mixed-deformable-detr", "dino-4scale", "dino-5scale", "dino-4scale-detrex"]
UNMIXED = ["dab-deformable-detr", "dn-deformable-detr", "cdn-deformable-detr"]
SAME_NAMES = {  # they differ in training only
    "dn-deformable-detr": "cdn-deformable-detr",
    "mixed-deformable-detr": "dino-4scale",
}
CLASSES = tuple("abcde")
BUILD = """
import torch, witness
model = witness.build_args(witness.CASES["dino-4scale"], False, {changes}).model
witness.randomise(model, 0)
torch.save({{"model": model.state_dict(), "epoch": 11}}, {path!r})
"""
NO_BYTECODE = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
KEYS = {"dino-4scale": 626, "dino-5scale": 630}


@pytest.mark.parametrize("preset", [*UNMIXED, *STEPS])
def test_a_file_is_recognised_and_written_back(tmp_path, preset):
    config = tiny_config(preset)
    state = strong_state(config)
    path = write_official(tmp_path / "checkpoint.pth", config, state)
    found = read(path, told={"backbone": config.backbone})
    assert_same_tensors(found.checkpoint.state, state)
    assert found.checkpoint.config.preset == SAME_NAMES.get(preset, preset)
    assert found.checkpoint.config.num_queries == config.num_queries
    assert found.assumed == {}
    convert(found, "official", tmp_path / "back.pth")
    theirs = torch.load(path, weights_only=False)["model"]
    assert_same_tensors(torch.load(tmp_path / "back.pth", weights_only=True)["model"], theirs)
    convert(found, "detrlab", tmp_path / "ours.safetensors")
    assert_same_tensors(load_detector(tmp_path / "ours.safetensors").checkpoint.state, state)


@pytest.mark.parametrize("preset", ["cdn-deformable-detr", "dino-4scale", "dino-4scale-detrex"])
def test_a_training_starts_from_it(tmp_path, preset):
    config = tiny_config(preset)
    state = strong_state(config)
    path = write_official(tmp_path / "x.pth", config, state)
    start = first_network(config, str(path), CLASSES, class_rows="keep")
    assert_same_tensors(start.network.state_dict(), state)


def test_80_classes_of_detrex_are_cocos(tmp_path):
    config = tiny_config("dino-4scale-detrex", num_classes=80)
    path = write_official(tmp_path / "x.pth", config, strong_state(config))
    checkpoint = read(path, told={"backbone": config.backbone}).checkpoint
    pairs = list(zip(checkpoint.category_ids, checkpoint.classes, strict=True))
    assert (len(pairs), pairs[0], pairs[-1]) == (80, (1, "person"), (90, "toothbrush"))


def test_names_of_detrex():
    """As its modules give them."""
    config = tiny_config("dino-4scale-detrex")
    names = set(export(build_network(config).state_dict(), official.layout(config)))
    norm = {"weight", "bias", "running_mean", "running_var"}
    assert {f"backbone.stem.conv1.norm.{each}" for each in norm} < names
    for name in (
        "backbone.stem.conv1.weight",
        "backbone.res2.0.shortcut.weight",
        "backbone.res2.0.shortcut.norm.running_var",
        "backbone.res5.1.conv3.norm.bias",
        "neck.convs.2.conv.bias",
        "neck.extra_convs.0.norm.weight",
        "transformer.level_embeds",
        "transformer.tgt_embed.weight",
        "transformer.enc_output.bias",
        "transformer.enc_output_norm.weight",
        "transformer.encoder.layers.1.attentions.0.sampling_offsets.weight",
        "transformer.encoder.layers.1.ffns.0.layers.0.0.weight",
        "transformer.encoder.layers.1.ffns.0.layers.1.bias",
        "transformer.encoder.layers.1.norms.1.weight",
        "transformer.decoder.layers.2.attentions.0.attn.in_proj_weight",
        "transformer.decoder.layers.2.attentions.0.attn.out_proj.bias",
        "transformer.decoder.layers.2.attentions.1.value_proj.weight",
        "transformer.decoder.layers.2.norms.2.bias",
        "transformer.decoder.ref_point_head.layers.1.bias",
        "transformer.decoder.norm.weight",
        "transformer.decoder.class_embed.3.weight",
        "transformer.decoder.bbox_embed.0.layers.2.bias",
        "class_embed.3.bias",
        "bbox_embed.3.layers.0.weight",
        "label_enc.weight",
    ):
        assert name in names, name
    assert not any(re.search(r"heads|queries|body|linear\d", name) for name in names)


@pytest.mark.parametrize(
    ("preset", "given", "name"),
    [
        ("dino-4scale", "cdn-deformable-detr", "queries.source.content"),
        ("dino-4scale", "dab-deformable-detr", "queries.labels"),
        ("deformable-detr-two-stage", "dino-4scale", "position_offset"),
    ],
)
def test_a_checkpoint_of_another_step_says_what_differs(tmp_path, preset, given, name):
    config, other = tiny_config(preset), tiny_config(given)
    path = write_official(tmp_path / "x.pth", other, strong_state(other))
    with pytest.raises(UserError, match=re.escape(name)):
        first_network(config, str(path), CLASSES)


def test_fewer_parts_are_reported(tmp_path):
    config, other = tiny_config("cdn-deformable-detr"), tiny_config("dino-4scale")
    path = write_official(tmp_path / "x.pth", other, strong_state(other))
    report = first_network(config, str(path), CLASSES).report
    assert "queries.source.content" in report.left_aside


def test_other_classes_take_their_rows_of_heads_and_label_embedding(tmp_path):
    """Class b was row 1 and is row 0; class x is new. Fewer queries take the first ones."""
    source = imported("dino-4scale", CLASSES)
    checkpoint = source.checkpoint
    convert(source, "detrlab", tmp_path / "x.safetensors")
    config = tiny_config("dino-4scale", num_classes=2, num_queries=9)
    start = first_network(
        config, str(tmp_path / "x.safetensors"), ("b", "x"), class_rows="seed"
    ).network.state_dict()
    fresh = build_network(config).state_dict()
    for name in (
        "queries.labels",
        "queries.source.head.classes.weight",
        "decoder.heads.0.classes.weight",
    ):
        assert torch.equal(start[name][0], checkpoint.state[name][1])
        assert torch.equal(start[name][1], fresh[name][1])
    assert torch.equal(
        start["queries.source.content"], checkpoint.state["queries.source.content"][:9]
    )


def test_what_transformers_does_not_have(tmp_path):
    with pytest.raises(UserError, match="dino-4scale"):
        convert(imported("dino-4scale"), "transformers", tmp_path / "x")


@pytest.mark.slow
@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the authors' code is not beside the checkout")
@pytest.mark.parametrize("preset", ["dino-4scale", "dino-5scale"])
def test_published_size_from_the_original_code(tmp_path, preset):
    path = tmp_path / "checkpoint0011.pth"
    changes = {"num_feature_levels": 5, "return_interm_indices": [0, 1, 2, 3]}
    program = BUILD.format(path=str(path), changes=changes if preset == "dino-5scale" else {})
    # Their code replaces functions of torch.
    subprocess.run([sys.executable, "-c", program], cwd=ORIGINAL, check=True, env=NO_BYTECODE)
    theirs = torch.load(path, weights_only=True)["model"]
    assert len(theirs) == KEYS[preset]
    found = read(path)
    assert found.checkpoint.config == model_config(preset, 91)
    layout = official.layout(found.checkpoint.config)
    state = build_network(found.checkpoint.config).state_dict()
    assert_same_tensors(translate_strictly(theirs, layout, state), found.checkpoint.state)
    assert_same_tensors(export(found.checkpoint.state, layout), theirs)
