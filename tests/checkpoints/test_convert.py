"""Out to the originals and transformers, and back: equal tensors, equal numbers."""

import json

import pytest
import torch
from checkpoint_cases import (
    FIVE_CLASSES,
    OWN,
    assert_same_outputs,
    assert_same_tensors,
    imported,
)

from detrlab.checkpoints import hf, native, official
from detrlab.checkpoints.convert import convert, default_target
from detrlab.checkpoints.hf_config import (
    preprocessing_from_transformers,
    preprocessing_to_transformers,
    to_transformers,
)
from detrlab.checkpoints.reading import read
from detrlab.checkpoints.rules import export, translate_strictly
from detrlab.errors import UserError
from detrlab.presets import ORIGINALS

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.mark.parametrize("preset", ORIGINALS)
def test_official_and_back(tmp_path, preset):
    source = imported(preset)
    target = tmp_path / "official.pth"
    lines = convert(source, "official", target)
    assert lines[0].startswith(f"wrote {target}")
    assert any("names of the 5 classes" in line for line in lines)
    assert any("only torchvision's ResNets" in line for line in lines)
    # The originals read it with torch.load, as it is.
    loaded = torch.load(target, weights_only=True)
    assert list(loaded) == ["model", "args"]
    state = export(source.checkpoint.state, official.layout(source.checkpoint.config))
    assert_same_tensors(state, loaded["model"])
    # Its settings tell what no shape does: 4 heads, dilation, dropout, a backbone without a name.
    back = read(target)
    assert_same_tensors(source.checkpoint.state, back.checkpoint.state)
    assert back.checkpoint.config == source.checkpoint.config
    assert back.assumed == {}


@pytest.mark.parametrize("preset", ORIGINALS)
def test_transformers_reads_it_and_computes_the_same(tmp_path, preset):
    transformers = pytest.importorskip("transformers")
    source = imported(preset)
    target = tmp_path / "model"
    lines = convert(source, "transformers", target)
    kind = "DeformableDetr" if preset.startswith("deformable") else "Detr"
    assert f"transformers.{kind}ForObjectDetection.from_pretrained" in lines[0]
    assert any("cannot be fine-tuned there" in line for line in lines) == ("two-stage" in preset)

    model, report = getattr(transformers, f"{kind}ForObjectDetection").from_pretrained(
        target, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(FIVE_CLASSES))
    assert_same_outputs(source.checkpoint.build(), model)
    # In memory, every alias included.
    layout = hf.layout(source.checkpoint.config, hf.IN_MEMORY)
    state = translate_strictly(model.state_dict(), layout, source.checkpoint.state)
    assert_same_tensors(source.checkpoint.state, state)

    # What transformers itself writes comes back too, and the folder as we wrote it.
    model.save_pretrained(tmp_path / "again")
    for folder in (target, tmp_path / "again"):
        back = read(folder)
        assert_same_tensors(source.checkpoint.state, back.checkpoint.state)
        assert back.checkpoint.config == source.checkpoint.config
        assert back.checkpoint.classes == FIVE_CLASSES
    assert read(target).checkpoint.preprocessing == OWN


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-refine", "deformable-detr-two-stage"])
def test_transformers_own_resnet_computes_the_same(tmp_path, preset):
    """The "no_timm" revisions: other names for the backbone, the same numbers."""
    transformers = pytest.importorskip("transformers")
    own = imported(preset).checkpoint
    multi = getattr(own.config, "levels", 1) > 1
    values = to_transformers(own.config, FIVE_CLASSES)
    del values["backbone"]
    values["use_timm_backbone"] = False
    values["backbone_config"] = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 2],
        layer_type="bottleneck",
        out_features=["stage2", "stage3", "stage4"] if multi else ["stage4"],
    )
    kind = "DeformableDetr" if preset.startswith("deformable") else "Detr"
    model = getattr(transformers, f"{kind}ForObjectDetection")(
        getattr(transformers, f"{kind}Config")(**values)
    )
    if preset == "deformable-detr-refine":  # tied by transformers, not by the original
        heads = [torch.nn.Linear(64, len(FIVE_CLASSES)) for _ in model.class_embed]
        model.class_embed = torch.nn.ModuleList(heads)
    layout = hf.layout(own.config, hf.IN_MEMORY._replace(own_resnet=True))
    model.load_state_dict(export(own.state, layout), strict=True)
    assert_same_outputs(own.build(), model)
    model.save_pretrained(tmp_path / "model")
    back = read(tmp_path / "model", likely={"backbone": own.config.backbone})
    assert_same_tensors(own.state, back.checkpoint.state)
    assert back.checkpoint.config == own.config


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-two-stage"])
def test_transformers_image_processor_agrees(tmp_path, preset):
    transformers = pytest.importorskip("transformers")
    convert(imported(preset), "transformers", tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert dict(processor.size) == {"shortest_edge": 96, "longest_edge": 160}
    assert tuple(processor.image_mean) == OWN.mean
    assert tuple(processor.image_std) == OWN.std


def test_square_images_of_transformers():
    square = OWN.change(resize="square", image_size=96, max_size=1333)
    values = preprocessing_to_transformers(imported("detr").checkpoint.config, square)
    assert values["size"] == {"height": 96, "width": 96}
    assert preprocessing_from_transformers(values) == square
    with pytest.raises(UserError, match="size 96 x 64"):
        preprocessing_from_transformers({**values, "size": {"height": 96, "width": 64}})


def test_our_own_file_keeps_everything(tmp_path):
    source = imported("deformable-detr", category_ids=(1, 2, 3, 5, 8))
    (line,) = convert(source, "detrlab", tmp_path / "own.safetensors")
    assert line == f"wrote {tmp_path / 'own.safetensors'}"
    back = native.load(tmp_path / "own.safetensors")
    assert_same_tensors(source.checkpoint.state, back.state)
    assert (back.classes, back.category_ids) == (FIVE_CLASSES, (1, 2, 3, 5, 8))
    assert back.preprocessing == OWN
    assert back.provenance == {"data": "pets"}


def test_trained_norms_go_out_as_the_numbers_they_are(tmp_path):
    transformers = pytest.importorskip("transformers")
    source = imported("detr", backbone_norms="trained", backbone_trains="all")
    lines = convert(source, "official", tmp_path / "x.pth")
    assert any("freeze batch norms" in line for line in lines)
    written = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    assert not any("num_batches" in name for name in written)
    convert(source, "transformers", tmp_path / "model")
    model = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "model")
    assert_same_outputs(source.checkpoint.build(), model)


def test_category_ids_that_are_lost_are_named(tmp_path):
    lines = convert(
        imported("detr", category_ids=(1, 2, 3, 5, 8)), "transformers", tmp_path / "model"
    )
    assert any("category ids 1, 2, 3, 5, 8" in line for line in lines)


def test_what_cannot_be_converted(tmp_path):
    sigmoid = imported("detr-sigmoid")
    for to in ("official", "transformers"):
        with pytest.raises(UserError, match="detr-sigmoid"):
            convert(sigmoid, to, tmp_path / to)
    with pytest.raises(UserError, match=r"'offical', did you mean 'official'\?"):
        convert(sigmoid, "offical", tmp_path / "x")
    convert(sigmoid, "detrlab", tmp_path / "x.safetensors")
    lite = imported("detr", backbone="tf_efficientnet_lite0", backbone_norms="trained")
    with pytest.raises(UserError, match=r"tf_efficientnet_lite0.*only with ResNets"):
        convert(lite, "transformers", tmp_path / "lite")


def test_nothing_is_overwritten(tmp_path):
    source = imported("detr")
    convert(source, "detrlab", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="exists already"):
        convert(source, "detrlab", tmp_path / "x.safetensors")


def test_default_targets_stand_beside_the_source(tmp_path):
    source = tmp_path / "last.safetensors"
    assert default_target(source, "official") == tmp_path / "last-official.pth"
    assert default_target(source, "transformers") == tmp_path / "last-transformers"
    assert default_target(tmp_path / "a.pth", "detrlab") == tmp_path / "a-detrlab.safetensors"
    assert default_target("hf:facebook/detr", "official").as_posix() == "detr-official.pth"
    assert default_target("detr", "transformers").as_posix() == "detr-transformers"


def test_older_transformers_reads_the_config(tmp_path):
    """4.x knows the backbone by name only; 5.x reads that too."""
    convert(imported("detr-dc5"), "transformers", tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["backbone"].startswith("detrlab_test_resnet")
    assert values["use_timm_backbone"] is True
    assert values["use_pretrained_backbone"] is False
    assert values["dilation"] is True
    assert "backbone_config" not in values
