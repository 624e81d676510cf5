"""Published sizes, R50 and R101: every layout there and back, equal numbers in transformers."""

import pytest
import torch

from detrlab.checkpoints import hf, native, official
from detrlab.checkpoints.convert import convert
from detrlab.checkpoints.reading import Imported, read
from detrlab.checkpoints.recognise import recognise
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.config import DataConfig
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_ops")]

FULL = [
    ("detr", "resnet50"),
    ("detr-dc5", "resnet50"),
    ("detr", "resnet101"),
    ("detr-dc5", "resnet101"),
    ("deformable-detr", "resnet50"),
    ("deformable-detr-refine", "resnet50"),
    ("deformable-detr-two-stage", "resnet50"),
    ("deformable-detr-single-scale", "resnet50"),
    ("deformable-detr-single-scale-dc5", "resnet50"),
]
# Each detector once there: transformers takes its time.
IN_TRANSFORMERS = [
    ("detr", "resnet101"),
    ("detr-dc5", "resnet50"),
    ("deformable-detr", "resnet50"),
    ("deformable-detr-refine", "resnet50"),
    ("deformable-detr-two-stage", "resnet50"),
]
KEYS = {  # of the originals' state dicts
    ("detr", "resnet50"): 458,
    ("detr-dc5", "resnet50"): 458,
    ("detr", "resnet101"): 713,
    ("detr-dc5", "resnet101"): 713,
    ("deformable-detr", "resnet50"): 561,
    ("deformable-detr-refine", "resnet50"): 597,
    ("deformable-detr-two-stage", "resnet50"): 630,
    ("deformable-detr-single-scale", "resnet50"): 549,
    ("deformable-detr-single-scale-dc5", "resnet50"): 549,
}


def random_model(preset, backbone):
    """Random numbers in every tensor, of a size that a deep network survives."""
    config = model_config(preset, 91, backbone=backbone, dropout=0.0)
    state = build_network(config).state_dict()
    draw = torch.Generator().manual_seed(1)
    for name, each in state.items():
        scale = 0.02 if each.dim() > 1 else 0.1
        each += scale * torch.randn(each.shape, generator=draw)
        if name.endswith("running_var"):
            each.abs_().add_(0.5)
    return config, state


def assert_equal(a, b):
    assert set(a) == set(b)
    assert all(torch.equal(b[name], each) for name, each in a.items())


def batch():
    draw = torch.Generator().manual_seed(0)
    return ImageBatch(
        torch.randn(1, 3, 160, 192, generator=draw).double(),
        torch.zeros(1, 160, 192, dtype=torch.bool),
    )


@torch.no_grad()
def ours(config, state):
    network = build_network(config).eval()
    network.load_state_dict(state)
    return network.double()(batch()).final


@torch.no_grad()
def theirs(model):
    images = batch()
    output = model.double().eval()(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    return output.logits, output.pred_boxes


@pytest.mark.parametrize(("preset", "backbone"), FULL)
def test_official_there_and_back(tmp_path, preset, backbone):
    config, state = random_model(preset, backbone)
    theirs = export(state, official.layout(config))
    assert len(theirs) == KEYS[preset, backbone]
    # From nothing but names and shapes, except for the dilation.
    told = {"dilation": config.dilation, "dropout": 0.0}
    found = recognise(theirs, "x", told=told)
    assert found.config == config
    assert_equal(translate_strictly(theirs, found.layout, state), state)
    torch.save({"model": theirs}, tmp_path / "x.pth")
    back = read(tmp_path / "x.pth", told=told).checkpoint
    assert_equal(export(back.state, official.layout(back.config)), theirs)


@pytest.mark.parametrize(("preset", "backbone"), IN_TRANSFORMERS)
def test_transformers_there_and_back(tmp_path, preset, backbone):
    transformers = pytest.importorskip("transformers")
    config, state = random_model(preset, backbone)
    classes = tuple(f"class {index}" for index in range(91))
    checkpoint = native.Checkpoint(state, config, classes, tuple(range(91)), DataConfig())
    convert(Imported(checkpoint, "x", "detrlab", {}), "transformers", tmp_path / "model")
    kind = "DeformableDetr" if preset.startswith("deformable") else "Detr"
    family = getattr(transformers, f"{kind}ForObjectDetection")
    model = family.from_pretrained(tmp_path / "model")
    layout = hf.layout(config, hf.IN_MEMORY)
    in_memory = clean(model.state_dict())
    assert_equal(translate_strictly(in_memory, layout, state), state)
    assert_equal(export(state, layout), in_memory)

    expected = ours(config, state)
    logits, boxes = theirs(model)
    torch.testing.assert_close(expected.logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(expected.boxes, boxes, rtol=0, atol=1e-6)
    assert expected.logits.std() > 0.01  # numbers that could differ

    # Saved and loaded from disk there.
    model.float().save_pretrained(tmp_path / "again")
    assert_equal(read(tmp_path / "again").checkpoint.state, state)
    logits, _ = theirs(family.from_pretrained(tmp_path / "again"))
    torch.testing.assert_close(expected.logits, logits, rtol=0, atol=1e-5)
