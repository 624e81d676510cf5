"""Any file to our record: the contents decide, every tensor is accounted for."""

import json

import pytest
import torch
from checkpoint_cases import (
    assert_same_tensors,
    imported,
    strong_state,
    write_hub_folder,
    write_official,
)
from safetensors.torch import save_file

from detrlab.checkpoints import coco, hf, native, official
from detrlab.checkpoints.reading import read
from detrlab.checkpoints.recognise import is_original, recognise, variant_of
from detrlab.checkpoints.rules import export
from detrlab.config import DataConfig
from detrlab.errors import UserError
from detrlab.presets import ORIGINALS, build_network, model_config
from tiny_detectors import tiny_config

BACKBONE = {"backbone": tiny_config("detr").backbone}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("preset", ORIGINALS)
def test_an_official_checkpoint_with_everything_in_it(tmp_path, preset, legacy):
    config = tiny_config(preset, num_classes=91)
    state = strong_state(config)
    path = write_official(tmp_path / "checkpoint.pth", config, state, legacy=legacy)
    found = read(path, told=BACKBONE)
    assert_same_tensors(found.checkpoint.state, state)
    # Its settings tell heads, queries and dilation.
    assert found.checkpoint.config == config.change(dropout=0.1)
    assert found.assumed == {}
    assert found.layout.startswith("official")
    assert found.left_aside == ("optimizer", "lr_scheduler", "epoch", "args")
    assert found.checkpoint.classes == coco.CLASSES
    assert found.checkpoint.category_ids == tuple(range(91))
    assert found.checkpoint.preprocessing == DataConfig()
    renamed = found.renamed["decoder.layers.0.ffn.linear1.weight"]
    assert renamed == "transformer.decoder.layers.0.linear1.weight"


def test_a_bare_state_dict_leaves_things_to_assume(tmp_path):
    config = tiny_config("detr-dc5", num_heads=8)
    state = strong_state(config)
    torch.save(export(state, official.layout(config)), tmp_path / "x.pth")
    found = read(tmp_path / "x.pth", likely=BACKBONE)
    assert found.assumed == {"num_heads": 8, "dilation": False}
    assert found.checkpoint.config.preset == "detr"
    told = read(tmp_path / "x.pth", told={"dilation": True}, likely=BACKBONE)
    assert told.assumed == {"num_heads": 8}
    assert told.checkpoint.config.preset == "detr-dc5"
    assert found.checkpoint.classes == tuple(f"class {index}" for index in range(5))


@pytest.mark.parametrize("preset", ORIGINALS)
def test_hub_folders(tmp_path, preset):
    config = tiny_config(preset, num_classes=91)
    state = strong_state(config)
    folder = write_hub_folder(tmp_path / "repo", config, state)
    for path in (folder, folder / "model.safetensors"):
        found = read(path)
        assert_same_tensors(found.checkpoint.state, state)
        assert found.checkpoint.config == config
        assert found.checkpoint.classes == coco.CLASSES
        assert found.layout.startswith("transformers")


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-two-stage"])
@pytest.mark.parametrize("how", ["pickled", "shards", "own_resnet"])
def test_other_hub_folders(tmp_path, preset, how):
    config = tiny_config(preset)
    state = strong_state(config)
    options = {"pickled": True} if how == "pickled" else {how: 3 if how == "shards" else True}
    folder = write_hub_folder(tmp_path / "repo", config, state, **options)
    found = read(folder, likely=BACKBONE)
    assert_same_tensors(found.checkpoint.state, state)
    assert found.checkpoint.config == config
    assert found.checkpoint.classes == tuple(f"class {index}" for index in range(5))


@pytest.mark.parametrize("preset", ORIGINALS)
def test_a_transformers_file_without_its_config(tmp_path, preset):
    config = tiny_config(preset)
    state = strong_state(config)
    tensors = export(state, hf.layout(config, hf.ON_DISK), one_name_each=True)
    save_file({n: e.clone() for n, e in tensors.items()}, tmp_path / "weights.safetensors")
    told = {**BACKBONE, "num_heads": 4, "num_queries": 24, "dilation": config.dilation}
    found = read(tmp_path / "weights.safetensors", told=told)
    assert_same_tensors(found.checkpoint.state, state)
    assert found.checkpoint.config == config.change(dropout=0.1)


def test_our_own_file(tmp_path):
    own = imported("deformable-detr").checkpoint
    path = native.save(
        tmp_path / "x", own.state, own.config, own.classes, own.category_ids, own.preprocessing
    )
    found = read(path)
    assert found.layout == "detrlab"
    assert found.renamed == {}
    assert_same_tensors(found.checkpoint.state, own.state)


@pytest.mark.parametrize(
    ("preset", "backbone"),
    [("detr", "resnet50"), ("detr", "resnet101"), ("deformable-detr-refine", "resnet50")],
)
def test_the_backbone_is_told_by_its_blocks(preset, backbone):
    config = model_config(preset, 91, backbone=backbone)
    with torch.device("meta"):
        state = build_network(config).state_dict()
    for layout in (
        official.layout(config),
        hf.layout(config, hf.ON_DISK),
        hf.layout(config, hf.IN_MEMORY._replace(own_resnet=True)),
    ):
        found = recognise(export(state, layout), "x")
        assert found.config == config
        assert found.layout == layout


def test_the_variant_follows_from_dilation_and_levels():
    assert variant_of("detr", dilation=True) == "detr-dc5"
    assert variant_of("deformable-detr", dilation=False) == "deformable-detr"
    single = variant_of("deformable-detr", dilation=True, levels=1)
    assert single == "deformable-detr-single-scale-dc5"
    assert variant_of("dino-4scale", dilation=False, levels=5) == "dino-5scale"
    assert is_original(model_config("detr-dc5", 3))
    assert not is_original(model_config("detr-sigmoid", 3))


# --- files that are not what they should be -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bbox_head.fc_cls.weight", "a model of mmdetection"),
        ("transformer.encoder.layers.0.attentions.0.attn.in_proj_weight", "a model of detrex"),
        ("detr.transformer.encoder.layers.0.linear1.weight", "panoptic segmentation"),
        ("model.model.encoder.x", "wrapped by a training framework"),
        ("fc.weight", "an image classifier"),
        ("features.0.weight", r"no detector that detrlab knows: its names are like features\.0"),
    ],
)
def test_other_models_are_named(tmp_path, name, message):
    torch.save({name: torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.pth")


def test_a_backbone_that_cannot_be_told(tmp_path):
    config = tiny_config("detr")
    write_official(tmp_path / "x.pth", config, strong_state(config))
    with pytest.raises(UserError, match="the backbone is none of resnet18"):
        read(tmp_path / "x.pth")


def test_a_shape_that_does_not_fit(tmp_path):
    config = tiny_config("deformable-detr")
    state = strong_state(config)
    state["queries.reference_points.bias"] = torch.zeros(3)
    write_official(tmp_path / "x.pth", config, state)
    with pytest.raises(UserError, match=r"transformer\.reference_points\.bias \(3,\) instead of"):
        read(tmp_path / "x.pth", told=BACKBONE)


def test_a_tensor_too_many_is_named_with_the_file(tmp_path):
    config = tiny_config("deformable-detr")
    theirs = export(strong_state(config), official.layout(config))
    torch.save({"model": {**theirs, "mask_head.weight": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: .*unknown 'mask_head\.weight'"):
        read(tmp_path / "x.pth", told=BACKBONE)


CONFIG_MISTAKES = {
    "model_type": ("yolos", "describes a 'yolos' model"),
    "activation_function": ("gelu", "activation_function is 'gelu'"),
    "position_embedding_type": ("learned", "position_embedding_type is 'learned'"),
    "decoder_ffn_dim": (7, "encoder_ffn_dim is 96 and decoder_ffn_dim 7"),
    "decoder_n_points": (3, "encoder_n_points is 4 and decoder_n_points 3"),
    "backbone_config": ({"model_type": "swin"}, "the backbone is a 'swin'"),
    "d_model": (65, "width 65 is not divisible"),
}


@pytest.mark.parametrize("field", CONFIG_MISTAKES)
def test_configurations_that_detrlab_does_not_have(tmp_path, field):
    value, message = CONFIG_MISTAKES[field]
    config = tiny_config("deformable-detr")
    folder = write_hub_folder(tmp_path / "repo", config, strong_state(config))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, field: value}))
    with pytest.raises(UserError, match=message):
        read(folder)


def test_a_resnet_with_its_stride_elsewhere_is_refused(tmp_path):
    """The same shapes, other numbers: its stride lies in the first 1x1 convolution."""
    config = tiny_config("detr")
    folder = write_hub_folder(tmp_path / "repo", config, strong_state(config), own_resnet=True)
    values = json.loads((folder / "config.json").read_text())
    values["backbone_config"]["downsample_in_bottleneck"] = True
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is none that timm has"):
        read(folder, likely=BACKBONE)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        read(tmp_path)
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "last.safetensors").touch()
    with pytest.raises(UserError, match=r"the folder of a run: give .*last\.safetensors"):
        read(run)
    config = tiny_config("detr")
    folder = write_hub_folder(tmp_path / "repo", config, strong_state(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read(folder)


def test_shards_cannot_lead_out_of_their_folder(tmp_path):
    config = tiny_config("detr")
    folder = write_hub_folder(tmp_path / "repo", config, strong_state(config), shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        read(folder)
