"""Our detectors against transformers' models, mapped by our own table.

This checks the import of transformers' weights; losses and gradients are compared with the
authors' own numbers in test_parity.py. transformers differs from the original code in known
places; each is corrected here and marked.
"""

import functools
import re

import pytest
import torch
from torch import nn

from detrlab.boxes import inverse_sigmoid
from detrlab.checkpoints import hf
from detrlab.checkpoints.hf_config import to_transformers
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.presets import ORIGINALS, build_network
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrTwoStage,
)
from detrlab.presets.detr import Detr
from detrlab.structures import ImageBatch, Target
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


def run_theirs(model, images, config):
    """Predictions of every layer and of the proposals, and the memory."""
    states, memory = [], {}

    def keep_state(_module, _inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    def keep_inputs(_module, _inputs, named):
        memory["visible"] = named["attention_mask"].bool()

    for layer in model.model.decoder.layers:
        layer.register_forward_hook(keep_state)
    model.model.encoder.register_forward_pre_hook(keep_inputs, with_kwargs=True)
    output = model(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    memory["tokens"] = output.encoder_last_hidden_state
    if isinstance(config, Detr):
        # With auxiliary_loss transformers would feed the normalised state to the next layer.
        normed = [model.model.decoder.layernorm(state) for state in states]
        layers = [
            (model.class_labels_classifier(each), model.bbox_predictor(each).sigmoid())
            for each in normed
        ]
        return layers, None, memory
    layers = []
    for index, state in enumerate(output.intermediate_hidden_states.unbind(1)):
        before = output.intermediate_reference_points[:, index - 1]
        reference = inverse_sigmoid(before if index else output.init_reference_points)
        deltas = model.bbox_embed[index](state)
        known = reference.shape[-1]
        boxes = torch.cat([deltas[..., :known] + reference, deltas[..., known:]], -1).sigmoid()
        layers.append((model.class_embed[index](state), boxes))
    proposals = None
    if isinstance(config, DeformableDetrTwoStage):
        proposals = (output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
    return layers, proposals, memory


@pytest.mark.parametrize("preset", ORIGINALS)
@torch.no_grad()
def test_double_precision(preset):
    config = tiny_config(preset)
    model = build_theirs(config)
    images = make_batch(config)
    layers, proposals, memory = run_theirs(model, images, config)

    state = clean(model.state_dict())
    table = hf.layout(config, hf.IN_MEMORY)
    network = build_network(config).double().train()
    ours = translate_strictly(state, table, network.state_dict())
    back = export(ours, table)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], each) for name, each in state.items())
    network.load_state_dict(ours)
    kept = []
    network.encoder.register_forward_hook(lambda _module, _inputs, result: kept.append(result))
    targets = [Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))] * 2
    output = network(images, targets)
    # Even here transformers embeds the proposals in single precision.
    close = functools.partial(
        torch.testing.assert_close, rtol=0, atol=1e-6 if proposals is not None else 1e-9
    )

    visible = memory["visible"]
    assert torch.equal(~kept[0].padding, visible)
    close(kept[0].tokens[visible], memory["tokens"][visible])
    sets = [*zip(output.layers, layers, strict=True)]
    if proposals is not None:
        sets.append((output.proposals, proposals))
    for mine, (logits, boxes) in sets:
        close(mine.logits, logits)
        close(mine.boxes, boxes)
