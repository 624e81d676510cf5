"""RT-DETR, RT-DETRv2 and D-FINE out to transformers and back: equal tensors, equal numbers."""

import json

import pytest
import torch
from checkpoint_cases import FIVE_CLASSES, assert_same_tensors, imported

from detrlab.checkpoints import hf, native
from detrlab.checkpoints.convert import convert
from detrlab.checkpoints.reading import read
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.config import unit_square
from detrlab.errors import UserError
from detrlab.structures import ImageBatch

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("plain_ops")

BACKBONES = {
    "rt-detr-r18": "resnet18d",
    "rt-detr-r34": "resnet34d",
    "rt-detr-r50": "resnet50d",
    "rt-detr-v2-r18": "resnet18d",
    "rt-detr-v2-r18-dsp": "resnet18d",
    "d-fine-s": "hgnetv2_b0",
    "d-fine-n": "hgnetv2_b0",
    "d-fine-m": "hgnetv2_b2",
    "d-fine-l": "hgnetv2_b4",
}


def small(preset, **changes):
    found = imported(preset, backbone=BACKBONES[preset], encoder_layers=1, **changes)
    checkpoint = found.checkpoint
    # Values that grow from layer to layer say nothing about equality.
    state = {
        name: each * (0.3 if each.dim() > 1 else 1) if each.is_floating_point() else each
        for name, each in checkpoint.state.items()
    }
    inner = {"state": state, "preprocessing": unit_square(96)}
    return type(found)(native.Checkpoint(**{**vars(checkpoint), **inner}), "here", "detrlab", {})


@torch.no_grad()
def assert_same(network, model):
    """Two images of a shape that is not square.

    In double precision, except the sine embeddings: transformers makes them in single precision.
    """
    pixels = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1)).double()
    padding = torch.zeros(2, 96, 160, dtype=torch.bool)
    ours = network.double().eval()(ImageBatch(pixels, padding)).final
    theirs = model.double().eval()(pixel_values=pixels)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=0, atol=1e-5)
    assert ours.logits.std() > 0.01
    assert ours.boxes.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("preset", BACKBONES)
def test_transformers_reads_it_and_computes_the_same(tmp_path, preset):
    source = small(preset)
    target = tmp_path / "model"
    convert(source, "transformers", target)
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(
        target, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(FIVE_CLASSES))
    assert_same(source.checkpoint.build(), model)
    # What transformers itself writes comes back too, and the folder as we wrote it.
    model.float().save_pretrained(tmp_path / "again")
    for folder in (target, tmp_path / "again"):
        back = read(folder).checkpoint
        assert_same_tensors(source.checkpoint.state, back.state)
        assert back.classes == FIVE_CLASSES
        told = back.config.to_dict()
        assert told == {**source.checkpoint.config.to_dict(), **{k: told[k] for k in NOT_TOLD}}
    assert read(target).checkpoint.preprocessing == unit_square(96)


NOT_TOLD = ("backbone_trains",)
"""Settings of the training that transformers has no place for."""


def test_layers_that_do_not_run_are_left_out_and_named(tmp_path):
    source = imported("rt-detr-r50-m", backbone="resnet50d", encoder_layers=1, evaluated_layers=2)
    lines = convert(source, "transformers", tmp_path / "model")
    assert "not kept: decoder layers after number 2, which only train" in lines
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "model")
    assert len(model.model.decoder.layers) == 2
    back = read(tmp_path / "model").checkpoint
    assert back.config.preset == "rt-detr-r50-m"
    assert back.config.decoder_layers == 2


@pytest.mark.parametrize("preset", ["rt-detr-r18", "d-fine-s"])
def test_both_spellings_name_every_tensor_once(preset):
    source = small(preset).checkpoint
    for spelling in (hf.IN_MEMORY, hf.ON_DISK):
        layout = hf.layout(source.config, spelling)
        written = export(source.state, layout)
        assert hf.spelling_of(written).out_proj == spelling.out_proj
        back = translate_strictly(written, layout, source.state)
        assert_same_tensors(source.state, back)
        assert clean(written)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("deimv2-femto", "the memory is projected first"),
        ("deim-d-fine-s", "where DEIM's have SiLU"),
        ("deim-rt-detr-v2-r18", "where DEIM's have SiLU"),
        ("rt-detr-r18", "no backbone like"),
    ],
)
def test_what_transformers_cannot_compute(tmp_path, preset, expected):
    named = {"deimv2-femto": "hgnetv2_femto", "deim-d-fine-s": "hgnetv2_b0"}
    backbone = {"backbone": named[preset]} if preset in named else {}
    with pytest.raises(UserError, match=expected):
        convert(imported(preset, **backbone), "transformers", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"decoder_activation_function": "silu"}, "decoder_activation_function is 'silu'"),
        ({"reg_scale": 9.0}, "reg_scale is 9.0"),
        ({"backbone_config": {"model_type": "hgnet_v2"}}, "no HGNetV2 that detrlab knows"),
        ({"depth_mult": 1.0}, "depth_mult 1.0 is none of a d-fine-s"),
        ({"depth_mult": "large"}, "cannot be understood"),
        ({"d_model": "wide"}, "width"),
    ],
)
def test_a_config_with_other_parts_is_refused(tmp_path, change, expected):
    convert(small("d-fine-s"), "transformers", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "model")


def test_names_of_classes_are_kept_also_of_eighty(tmp_path):
    """Eighty rows without names are COCO's; with names of their own they are not."""
    pets = tuple(f"pet {i}" for i in range(80))
    source = imported("rt-detr-r18", classes=pets, backbone="resnet18d", encoder_layers=1)
    convert(source, "transformers", tmp_path / "model")
    back = read(tmp_path / "model").checkpoint
    assert back.classes == pets
    assert back.category_ids == tuple(range(80))


def test_the_pipeline_finds_what_we_find(tmp_path):
    """Also their image processor, which resizes a little differently."""
    import numpy as np
    from PIL import Image

    from detrlab.api import load

    source = small("rt-detr-r18")
    convert(source, "transformers", tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)  # of the size that the model sees: nothing is resized
    pipe = transformers.pipeline("object-detection", model=str(tmp_path / "model"), device="cpu")
    theirs = pipe(picture, threshold=0.0)
    ours = load(tmp_path / "model").predict(picture, threshold=None, limit=len(theirs))
    assert [each["label"] for each in theirs] == ours.names
    scores = torch.tensor([each["score"] for each in theirs])
    torch.testing.assert_close(scores, ours.scores, rtol=0, atol=1e-4)
    boxes = torch.tensor([list(each["box"].values()) for each in theirs], dtype=torch.float32)
    assert (boxes - ours.boxes).abs().max() < 1.01  # theirs are whole numbers
