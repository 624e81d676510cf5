"""Checkpoints of every kind, made from small detectors with strong random weights."""

import argparse
import json

import torch
from safetensors.torch import save_file

from detrlab.checkpoints import hf, native, official
from detrlab.checkpoints.hf_config import to_transformers
from detrlab.checkpoints.reading import Imported
from detrlab.checkpoints.rules import clean, export
from detrlab.config import DataConfig
from detrlab.presets import build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

FIVE_CLASSES = ("ant", "bee", "cat", "dog", "eel")
OWN = DataConfig(image_size=96, max_size=160, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def strong_state(config, seed=3):
    """Every tensor different from its initial value, and none of them absurd."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, each in build_network(config).state_dict().items():
        if each.is_floating_point():
            each = each + 0.2 * torch.randn(each.shape, generator=draw)
        state[name] = each.abs() + 0.5 if name.endswith("running_var") else each
    return state


def imported(preset, classes=FIVE_CLASSES, category_ids=None, **changes):
    """As it is read from our own file."""
    config = tiny_config(preset, num_classes=len(classes), **changes)
    ids = tuple(range(len(classes))) if category_ids is None else category_ids
    checkpoint = native.Checkpoint(
        strong_state(config), config, classes, ids, OWN, provenance={"data": "pets"}
    )
    return Imported(checkpoint, "here", "detrlab", {})


def batch(height, width):
    """Two images, one of them padded; in float64, so that rounding hides no difference."""
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, height * 2 // 3 :] = True
    pixels[1, :, height * 2 // 3 :] = 0
    return ImageBatch(pixels.double(), padding)


@torch.no_grad()
def assert_same_outputs(network, model, height=96, width=128):
    """Our network against a model of transformers."""
    images = batch(height, width)
    ours = network.double().eval()(images).final
    theirs = model.double().eval()(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=0, atol=1e-6)
    assert ours.logits.std() > 0.01  # numbers that could differ
    model.float()


def write_official(path, config, state, *, training=True, legacy=False):
    """As the originals' training loop writes it: optimiser, schedule, epoch and settings."""
    contents = {"model": export(state, official.layout(config))}
    if training:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter])
        parameter.sum().backward()
        optimizer.step()
        contents["optimizer"] = optimizer.state_dict()
        contents["lr_scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 40).state_dict()
        contents["epoch"] = 49
        contents["args"] = argparse.Namespace(
            nheads=config.num_heads,
            dilation=config.dilation,
            dropout=0.1,
            num_queries=config.num_queries,
            lr_backbone_names=["backbone.0"],
        )
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_hub_folder(folder, config, state, *, pickled=False, shards=1, own_resnet=False):
    """As files lie on the Hugging Face Hub."""
    folder.mkdir(parents=True)
    classes = [f"class {index}" for index in range(config.num_classes)]
    values = to_transformers(config, classes)
    del values["id2label"], values["label2id"]
    values["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.num_classes)}
    if own_resnet:
        values["use_timm_backbone"] = False
        values["backbone_config"] = {
            "model_type": "resnet",
            "depths": [1, 1, 1, 2],
            "hidden_sizes": [32, 64, 96, 128],
            "layer_type": "bottleneck",
        }
    (folder / "config.json").write_text(json.dumps(values))
    spelling = hf.ON_DISK._replace(own_resnet=own_resnet)
    tensors = export(state, hf.layout(config, spelling), one_name_each=True)
    tensors = {name: each.clone() for name, each in tensors.items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(tensors)
        places = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard::shards]
            save_file({name: tensors[name] for name in part}, folder / file)
            places.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def assert_same_tensors(ours, theirs):
    ours, theirs = clean(ours), clean(theirs)
    assert set(ours) == set(theirs)
    assert all(torch.equal(theirs[name], each) for name, each in ours.items())
