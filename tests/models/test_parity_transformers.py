"""Our detectors against transformers' models, mapped by our own table.

This checks the import of transformers' weights; losses and gradients are compared with the
authors' own numbers in test_parity.py. transformers differs from the original code in known
places; each is corrected here and marked.
"""

import re

import pytest
import torch
from torch import nn

from detrlab.checkpoints import hf
from detrlab.checkpoints.hf_config import to_transformers
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.presets import ORIGINALS, build_network
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrTwoStage,
)
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("plain_ops")

CLASSES = tuple("abcde")


def build_theirs(config):
    """transformers' model with strong random weights."""
    values = to_transformers(config, CLASSES)
    kind = "DeformableDetr" if isinstance(config, DeformableDetr) else "Detr"
    their_config = getattr(transformers, f"{kind}Config")(**values)
    their_config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForObjectDetection")(their_config)
    if type(config) is DeformableDetrRefine:
        # transformers ties the class heads even with refinement; the original does not.
        model.class_embed = nn.ModuleList(
            nn.Linear(config.width, len(CLASSES)) for _ in model.class_embed
        )
    model = model.double()
    randomise(model)
    return model.train()


@torch.no_grad()
def randomise(model):
    """Random values large enough to show every mistake; each tensor once."""
    draw = torch.Generator().manual_seed(1)
    seen = set()
    for name, each in sorted(
        {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
    ):
        if each.data_ptr() in seen or not each.is_floating_point():
            continue
        seen.add(each.data_ptr())
        noise = torch.rand(each.shape, generator=draw, dtype=torch.float64) * 2 - 1
        if name.endswith("running_var"):
            noise = 1.1 + 0.5 * noise
        elif "norm" in name or re.search(r"\.bn\d\.|downsample\.1\.|input_proj\.\d\.1\.", name):
            noise = (1 if name.endswith("weight") else 0) + 0.3 * noise
        elif "sampling_offsets.bias" in name:
            noise = 2 * noise
        elif "query_position_embeddings" in name or "level_embed" in name:
            pass
        elif each.dim() > 1:
            noise *= (3 / each[0].numel()) ** 0.5 * (1.4 if each.dim() == 4 else 1)
        else:
            noise *= 0.3
        each.copy_(noise)


def make_batch(config):
    """Two images, the second padded; wide ones where proposals are cut off near the edge."""
    two_stage = isinstance(config, DeformableDetrTwoStage)
    sizes = ((96, 512), (80, 416)) if two_stage else ((128, 160), (96, 128))
    draw = torch.Generator().manual_seed(101)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = torch.zeros(2, 3, height, width, dtype=torch.float64)
    padding = torch.ones(2, height, width, dtype=torch.bool)
    for image, (h, w) in enumerate(sizes):
        pixels[image, :, :h, :w] = torch.randn(3, h, w, generator=draw)
        padding[image, :h, :w] = False
    return ImageBatch(pixels, padding)


@pytest.mark.parametrize("preset", ORIGINALS)
@torch.no_grad()
def test_double_precision(preset):
    config = tiny_config(preset)
    model = build_theirs(config)
    images = make_batch(config)
    theirs = model(pixel_values=images.pixels, pixel_mask=(~images.padding).long())

    state = clean(model.state_dict())
    table = hf.layout(config, hf.IN_MEMORY)
    network = build_network(config).double()
    ours = translate_strictly(state, table, network.state_dict())
    back = export(ours, table)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], each) for name, each in state.items())
    network.load_state_dict(ours)
    final = network(images).final
    # Even here transformers embeds the proposals in single precision.
    near = 1e-6 if isinstance(config, DeformableDetrTwoStage) else 1e-9
    torch.testing.assert_close(final.logits, theirs.logits, rtol=0, atol=near)
    torch.testing.assert_close(final.boxes, theirs.pred_boxes, rtol=0, atol=near)
