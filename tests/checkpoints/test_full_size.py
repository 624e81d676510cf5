"""Published sizes, R50 and R101: every layout there and back, equal numbers in transformers."""

import pytest
import torch
from checkpoint_cases import assert_same_outputs, assert_same_tensors

from detrlab.checkpoints import hf, native, official
from detrlab.checkpoints.convert import convert
from detrlab.checkpoints.reading import Imported, read
from detrlab.checkpoints.recognise import recognise
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.config import DataConfig
from detrlab.presets import build_network, model_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_ops")]

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
# Each detector once there: transformers takes its time.
IN_TRANSFORMERS = [
    each
    for each in KEYS
    if "single" not in each[0] and ("resnet101" in each) == (each[0] == "detr")
]


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


@pytest.mark.parametrize(("preset", "backbone"), KEYS)
def test_official_there_and_back(tmp_path, preset, backbone):
    config, state = random_model(preset, backbone)
    theirs = export(state, official.layout(config))
    assert len(theirs) == KEYS[preset, backbone]
    # From nothing but names and shapes, except for the dilation.
    told = {"dilation": config.dilation, "dropout": 0.0}
    found = recognise(theirs, "x", told=told)
    assert found.config == config
    assert_same_tensors(translate_strictly(theirs, found.layout, state), state)
    torch.save({"model": theirs}, tmp_path / "x.pth")
    back = read(tmp_path / "x.pth", told=told).checkpoint
    assert_same_tensors(export(back.state, official.layout(back.config)), theirs)


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
    assert_same_tensors(translate_strictly(in_memory, layout, state), state)
    assert_same_tensors(export(state, layout), in_memory)

    assert_same_outputs(checkpoint.build(), model, 160, 192)

    # Saved and loaded from disk there.
    model.save_pretrained(tmp_path / "again")
    assert_same_tensors(read(tmp_path / "again").checkpoint.state, state)
    assert_same_outputs(checkpoint.build(), family.from_pretrained(tmp_path / "again"), 160, 192)
